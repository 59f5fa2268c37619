"""A server with an index of drawn photos, for the tests of what it says of photos."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_files import age, counting_encoder, draw
from sightline.index.image_index import ImageIndex
from sightline.server.app import create_app
from sightline.server.settings import Settings

HOSTILE = [
    b"<img src=x onerror=alert(1)>.jpg",
    b"=cmd|'calc'!A1.jpg",
    b"a\nb\r\nX-Evil: 1\xff.jpg",
    b"%2e%2e%2f..\\x.jpg",
]
Served = tuple[TestClient, ImageIndex, Path]


def draw_library(folder: Path) -> Path:
    """Photos in two folders, one of them twice, some with names that mean harm, one with metadata and a place."""
    for number in range(6):
        draw(folder / f"{number:02}.jpg", number)
    for number in range(10, 13):
        draw(folder / "2019" / f"{number}.jpg", number)
    shutil.copy(folder / "03.jpg", folder / "copy.jpg")
    for number, name in enumerate(HOSTILE, 20):
        draw(folder / "x.jpg", number)
        os.rename(folder / "x.jpg", os.path.join(os.fsencode(folder), name))
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    exif.get_ifd(0x8769)[0x9003] = "2021:05:06 07:08:09"
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 0.0), 3: "E", 4: (8.0, 32.0, 0.0)})
    with Image.open(folder / "00.jpg") as image:
        image.resize((900, 600)).save(folder / "large.jpg", exif=exif, comment=b"a secret")
    age(folder / "copy.jpg", 3)
    age(folder / "large.jpg", 40)
    return folder


@contextmanager
def serving(index: ImageIndex, **limits: Any) -> Iterator[TestClient]:
    app = create_app(index.clip, index=index.folder, settings=Settings(**limits))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as asked:
        yield asked


def make_index(folder: Path) -> ImageIndex:
    index = ImageIndex.open(folder / "index", counting_encoder()[0])
    index.update(draw_library(folder / "photos"))
    return index


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For tests that change nothing."""
    folder = tmp_path_factory.mktemp("server-of-secrets")
    index = make_index(folder)
    with serving(index) as api:
        yield api, index, folder / "photos"
    index.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    index = make_index(tmp_path)
    with serving(index) as api:
        yield api, index, tmp_path / "photos"
    index.close()


def search(api: TestClient, path: str = "search", **request: Any) -> list[dict[str, Any]]:
    reply = api.post(f"/v1/{path}", json=request)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def names(found: list[dict[str, Any]]) -> list[str]:
    return [photo["name"] for photo in found]


def id_of(api: TestClient, name: str) -> str:
    return next(photo["id"] for photo in search(api, query="a", top_k=100) if photo["name"] == name)
