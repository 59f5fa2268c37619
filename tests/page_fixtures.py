"""What the tests of the page start from: a browser, and a server of the starter model and the example photos."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

import sightline
from browsing import HOSTILE, PHOTOS, Watched, chromium
from serving import photo, running
from sightline.encoder import Encoder
from sightline.index.image_index import ImageIndex
from sightline.server import mapping
from sightline.server.app import create_app


@pytest.fixture(scope="module")
def clip() -> Encoder:
    return sightline.load("starter")


@pytest.fixture(scope="module")
def index(clip: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    """The example photos, and one with a name that would like to be a part of the page."""
    folder = tmp_path_factory.mktemp("photos")
    for file in PHOTOS.glob("*.jpg"):
        shutil.copy(file, folder)
    (folder / HOSTILE).write_bytes(photo("blue"))
    with ImageIndex.open(folder / "index", clip) as opened:
        opened.update(folder)
        yield opened


@pytest.fixture(scope="module")
def server(clip: Encoder, index: ImageIndex) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "find_spec", lambda name: None)  # UMAP would compile itself for half a minute
        with running(create_app(clip, index=index.folder)) as address:
            yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def watched(browser: Browser, server: str) -> Iterator[Watched]:
    """Whatever a test does, nothing is complained of in the console, and nothing is asked of another place."""
    pages = Watched(browser, server)
    yield pages
    pages.close()
    assert pages.complaints == []
    assert pages.outside == []
