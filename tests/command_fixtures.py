"""The command line as the tests of it run it: a tiny model, three images, and what it printed."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from sightline.cli import app
from tiny import small_vocabulary

LABELS = "cat, dog, rocket"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    small_vocabulary().save(folder)
    return str(folder)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which models are on this machine is then for the test to say."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `photos` with three images, seen from the folder it is in."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        draw(folder / f"{number}-{colour}.png", colour)
    monkeypatch.chdir(tmp_path)
    return folder


def draw(path: Path | bytes, colour: str = "red") -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "png")
    with open(path, "wb") as file:
        file.write(buffer.getvalue())


def run(*arguments: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input, catch_exceptions=False)


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def command(*arguments: str | bytes, **options) -> subprocess.Popen:
    """The command in a process of its own, which Ctrl-C reaches even where these tests run in the background."""
    streams: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    streams["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-m", "sightline", *arguments], **{**streams, **options})
