"""A real browser for the tests of the page, and what it complains of."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
HOSTILE = "<img src=x onerror=alert(1)>&quot;.jpg"
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LONGEST = 20_000  # milliseconds for anything that is waited for
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
expect.set_options(timeout=LONGEST)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium without a window."""
    arguments = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []  # which root cannot have
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Watched:
    """Pages of one server in contexts of their own, and what goes wrong in them."""

    def __init__(self, browser: Browser, address: str):
        self._browser, self.address = browser, address
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.outside: list[str] = []

    def open(
        self, place: str = "", *, before: Callable[[Page], object] = id, waits: bool = True, **options: Any
    ) -> Page:
        """A new page; `before` is done with it before it is opened, and it is waited for until a tab is shown."""
        context = self._browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(LONGEST)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._look(request.url))
        before(page)
        page.goto(f"{self.address}/{place}")
        if waits:
            page.locator('[role="tab"][aria-selected="true"]').wait_for()
        return page

    def forgive(self, *parts: str) -> None:
        """Chromium complains of every reply of 400 and above: these were meant."""
        assert self.complaints, f"nothing was complained of, also not {parts}"
        self.complaints = [line for line in self.complaints if not any(part in line for part in parts)]

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _look(self, url: str) -> None:
        if not url.startswith((self.address, "blob:", "data:")):
            self.outside.append(url)


def drop(page: Page, place: str, files: dict[str, tuple[str, bytes]]) -> None:
    """Drops files (name: type and content) onto an element, as a person does from a folder."""
    given = [[name, kind, list(content)] for name, (kind, content) in files.items()]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, content] of files)
                transfer.items.add(new File([new Uint8Array(content)], name, { type }));
            return transfer;
        }""",
        given,
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(place, event, {"dataTransfer": transfer})


def stroke(page: Page, places: list[tuple[float, float]]) -> None:
    """Draws with the mouse, through places in parts of the paper's side."""
    box = page.locator("#draw-canvas").bounding_box()
    assert box is not None
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=3)
    page.mouse.up()


def download(page: Page, button: str, folder: Path) -> str:
    """What a button has the browser save."""
    with page.expect_download() as saved:
        page.click(button)
    path = folder / saved.value.suggested_filename
    saved.value.save_as(path)
    return path.read_text("utf-8")


def wait_for(page: Page, expression: str, argument: Any = None, seconds: float = 15) -> None:
    """Wait until JavaScript holds. Asked from here: the page's own policy forbids Playwright's way of asking in it."""
    for _ in range(round(seconds / 0.05)):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never held: {expression}")
