"""A server in this process, behind real HTTP or without, and what is sent to it."""

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sightline.server.app import create_app
from sightline.server.limits import Guard
from sightline.server.protocol import Protocol
from sightline.server.settings import Settings
from tiny import small_vocabulary

JSON = {"content-type": "application/json"}


def photo(colour: str = "red", size: tuple[int, int] = (40, 32), format: str = "JPEG") -> bytes:
    """The bytes of an image file with something in it."""
    image = Image.new("RGB", size, colour)
    image.paste("white", (0, 0, max(1, size[0] // 3), max(1, size[1] // 2)))
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def data_uri(file: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


@contextmanager
def client(**limits: Any) -> Iterator[TestClient]:
    """A client of a server of a tiny model, in this process."""
    with TestClient(create_app(small_vocabulary(), settings=Settings(**limits)), base_url="http://localhost") as asked:
        yield asked


def guard_of(app: Any) -> Guard:
    """The middleware that stands before a running app."""
    layer = app.middleware_stack
    while not isinstance(layer, Guard):
        layer = layer.app
    return layer


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of `app` on loopback, until the block ends."""
    # With its protocol said, for asyncio sends at once (TCP_NODELAY) only where it knows that it is TCP.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    server = uvicorn.Server(uvicorn.Config(app, http=Protocol, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def wait_until(holds: Callable[[], object], seconds: float = 10) -> None:
    """Raises AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.01)


class Gate:
    """Stands before a tower of a server's model, and lets batches through when it is open."""

    def __init__(self, app: FastAPI, kind: str = "image"):
        self._encoders = app.state.features.batcher._encoders
        self._kind, self._encode = kind, self._encoders[kind]
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.batches: list[int] = []
        self._encoders[kind] = self

    def __call__(self, items: list[Any]) -> np.ndarray:
        self.reached.set()
        self.open.wait(10)
        self.batches.append(len(items))
        return self._encode(items)
