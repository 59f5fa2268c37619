"""A server on this machine for the tests of what is fetched: of published files, and in the hub's place."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sightline import hub

SRC = Path(hub.__file__).parents[1]
CONTENT = bytes(range(256)) * 4096  # one MiB, four blocks of a download
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """A loopback server for both kinds of source. `log` has a line for each request; a test says what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.log: list[str] = []
        self.sent = 0
        self.ranges = True  # whether Range is honoured
        self.wrong_range = False  # whether it is answered with other bytes than asked for
        self.cuts: list[int] = []  # for the requests to come: how many bytes are sent before the connection is cut
        self.content = CONTENT
        self.status = 200
        self.stalled: threading.Event | None = None  # what a request waits for after its first half
        self.repository: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._hub_api()
        elif "/resolve/" in self.path:
            self._hub_file(send=True)
        else:
            self._published_file()

    def do_HEAD(self) -> None:
        self._hub_file(send=False)

    def _published_file(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.log.append(wanted or "whole")
        if server.status != 200:
            return self._reply(server.status, b"", {})
        if not wanted or not server.ranges:
            return self._send(200, server.content, {})
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            return self._reply(416, b"", {"Content-Range": f"bytes */{len(server.content)}"})
        said = start + server.wrong_range
        span = f"bytes {said}-{len(server.content) - 1}/{len(server.content)}"
        return self._send(206, server.content[said:], {"Content-Range": span})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._reply(status, None, {**headers, "Content-Length": str(len(body))})
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        if self.server.stalled and not self.server.stalled.is_set():
            self.server.sent += HALF  # before it is written: who has read it may look at once
            self.wfile.write(body[:HALF])
            self.server.stalled.wait(60)
            return
        self.server.sent += len(body[:cut])
        self.wfile.write(body[:cut])

    def _hub_api(self) -> None:
        self.server.log.append(self.path.partition("?")[0])
        if self.server.refusal:
            status, code = self.server.refusal
            return self._reply(status, b"", {"X-Error-Code": code})
        if "/tree/" in self.path:
            data: Any = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.repository.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in self.server.repository]
            data = {"id": "owner/name", "sha": COMMIT, "siblings": siblings}
        return self._reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _hub_file(self, send: bool) -> None:
        body = self.server.repository[self.path.rpartition("/")[2]]
        if send:
            self.server.log.append(self.path)
        etag = hashlib.sha1(body).hexdigest()
        self._reply(200, body if send else None, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, len(body))

    def _reply(self, status: int, body: bytes | None, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        if body is not None or length is not None:
            headers = {**headers, "Content-Length": str(len(body or b"") if length is None else length)}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(body)


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests neither see how this machine reaches a network nor reach one."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SIGHTLINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def origin() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def url(origin: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the server serves what these tests take for the published RN50."""
    url = f"{origin.url}/{SHA256}/RN50.pt"
    monkeypatch.setitem(hub.PUBLISHED, "RN50", (url, SHA256))
    return url
