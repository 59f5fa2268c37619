"""docs/serve.md shows what the server answers."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import sightline
from sightline.index.image_index import ImageIndex
from sightline.server.app import create_app

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "photos"
EXAMPLES = re.findall(
    r"```sh\n(curl .*?)\n```\n```\n(.*?)\n```", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.DOTALL
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
# Ids are new with each start; in base64 one digit of a feature changes many letters.
SECRETS = re.compile(r'("id": "|"embedding":")[^"…]*"?')


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("photos")
    for file in PHOTOS.glob("*.jpg"):
        shutil.copy(file, folder)
    with ImageIndex.open(folder / ".sightline", sightline.load("starter")) as index:
        index.update(folder)
        with TestClient(create_app(index.clip, index=index.folder), base_url="http://localhost") as asked:
            yield asked


def run(api: TestClient, command: str) -> str:
    """What curl would print."""
    _, url, *options = shlex.split(command)
    request: dict[str, Any] = {"files": [], "headers": {}}
    for option, value in zip(options[::2], options[1::2], strict=True):
        name, _, content = value.partition(": " if option == "-H" else "=")
        if option == "-d":
            request["content"] = value
        elif option == "-H":
            request["headers"][name] = content
        elif content.startswith("@"):
            request["files"].append((name, (content[1:], (PHOTOS / content[1:]).read_bytes())))
        else:
            request["files"].append((name, (None, content)))
    reply = api.post(url.removeprefix("http://127.0.0.1:8000"), **request)
    assert reply.status_code == 200, reply.text
    return reply.text


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command.split()[1][24:] for command, _ in EXAMPLES])
def test_an_example_shows_what_is_answered(api: TestClient, command: str, shown: str) -> None:
    shown, cut, _ = SECRETS.sub(r"\1", shown).partition("…")
    answered = SECRETS.sub(r"\1", run(api, command))
    words, expected = NUMBER.split(shown), NUMBER.split(answered)
    assert words[:-1] == expected[: len(words) - 1]
    assert expected[len(words) - 1].startswith(words[-1])
    assert cut or len(words) == len(expected)
    numbers = list(zip(NUMBER.findall(shown), NUMBER.findall(answered), strict=False))
    assert [float(number) for number, _ in numbers] == pytest.approx([float(number) for _, number in numbers], rel=1e-3)
