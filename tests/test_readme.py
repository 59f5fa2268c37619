"""README.md shows what the starter model answers."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sightline.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)\n```", README, re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README's commands find: the example photos."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGHTLINE_MODEL", "starter")
    return tmp_path


def after(code: str) -> tuple[str, str]:
    """The block that has this code, and the block of output that follows it."""
    (number,) = (i for i, (language, block) in enumerate(BLOCKS) if language in ("sh", "python") and code in block)
    assert BLOCKS[number + 1][0] == ""
    return BLOCKS[number][1], BLOCKS[number + 1][1]


def printed(commands: list[str]) -> str:
    return "".join(CliRunner().invoke(app, shlex.split(command)[1:]).output for command in commands)


def assert_same(shown: str, answered: str, within: float) -> None:
    words = [re.sub(r"\s+", " ", NUMBER.sub("#", text)).strip() for text in (shown, answered)]
    assert words[0] == words[1]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (shown, answered)]
    assert numbers[0] == pytest.approx(numbers[1], abs=within)


def test_the_first_command_names_the_example_photos_as_shown(clone: Path) -> None:
    code, shown = after("&& sightline classify examples/photos")
    assert_same(shown, printed([code.rpartition("&& ")[2]]), within=0.25)


def test_a_search_finds_what_is_shown(clone: Path) -> None:
    code, shown = after("sightline index examples/photos")
    index, *searches = code.splitlines()
    assert "12 added" in printed([index])
    assert_same(shown, printed(searches), within=0.0025)


def test_the_library_prints_what_is_shown(clone: Path) -> None:
    for first in ('clip = sightline.load("starter")', 'starter = clip.load("starter", device=device)'):
        code, shown = after(first)
        before = "import sightline as clip\nfrom PIL import Image\ndevice = 'cpu'\n" if "device" in code else ""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(before + code, {})
        assert_same(shown, output.getvalue(), within=0.0025)
