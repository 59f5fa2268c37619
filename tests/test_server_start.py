"""`sightline serve` from its start to its end, and what stands below the API: HTTP itself, and the threads."""

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from index_files import draw
from serving import JSON, client, data_uri, photo, running
from sightline.cli import app as commands
from sightline.cli import serve
from sightline.errors import SightlineError
from sightline.server import features
from sightline.server.app import create_app
from sightline.server.features import Features
from tiny import small_vocabulary


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(create_app(small_vocabulary())) as address:
        yield address


@pytest.fixture
def model(tmp_path: Path) -> str:
    small_vocabulary().save(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def say(address: str, raw: bytes) -> tuple[bytes, Any]:
    """The head and the JSON of the answer to what is said on a connection, which ends with it."""
    host, _, port = urlsplit(address).netloc.partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
        connection.sendall(raw)
        with connection.makefile("rb") as reader:
            head, _, body = reader.read().partition(b"\r\n\r\n")
    return head, json.loads(body or "null")


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "raw",
    [
        b"no HTTP\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000,
        b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
    ],
)
def test_what_is_no_http_is_an_error_like_any_other(address: str, raw: bytes) -> None:
    head, body = say(address, raw)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert b"content-security-policy: default-src 'none'" in head
    assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", "invalid_http")


def test_what_is_no_http_after_an_answer_ends_the_connection_alone(address: str, caplog: Any) -> None:
    host, _, port = urlsplit(address).netloc.partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n")
        with connection.makefile("rb") as reader:
            assert reader.readline().startswith(b"HTTP/1.1 403 ")  # before the body has come
            connection.sendall(b"no length\r\n")
            assert b" 400 " not in reader.read()
    assert {record.levelname for record in caplog.records} <= {"WARNING"}


def test_who_asks_for_a_websocket_is_answered_without_one_and_nothing_is_logged(address: str, caplog: Any) -> None:
    upgrade = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"
    )
    with caplog.at_level(logging.WARNING):
        head, body = say(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
    assert (head[:13], body) == (b"HTTP/1.1 200 ", {"status": "alive"})
    assert not caplog.records


def test_the_answer_to_head_is_a_head_and_the_connection_goes_on(address: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)) as connection:
        for method, length in (("HEAD", 0), ("GET", 18)):
            connection.request(method, "/health")
            reply = connection.getresponse()
            assert (reply.status, reply.headers["content-length"], len(reply.read())) == (200, "18", length)


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_many_slow_images_of_one_client_leave_others_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_THREADS", 1)
    decoded: list[bytes] = []
    go_on, begun = threading.Event(), threading.Event()
    prepare = Features._prepare_image

    def slow(self: Features, image: bytes) -> Any:
        begun.set()
        go_on.wait(10)
        decoded.append(image)
        return prepare(self, image)

    monkeypatch.setattr(Features, "_prepare_image", slow)
    many, other = [photo(f"#0000{number:02x}", format="PNG") for number in range(20)], photo("red", format="PNG")
    with running(create_app(small_vocabulary())) as address, ThreadPoolExecutor(2) as clients:
        first = clients.submit(embed, address, *map(data_uri, many))
        assert begun.wait(10)
        assert embed(address, "a text")  # meanwhile, and needs no thread that decodes
        second = clients.submit(embed, address, data_uri(other))
        with client() as _:  # as long as it takes to start another server, so that the second request is there
            go_on.set()
        assert len(first.result()) == 20
        assert len(second.result()) == 1
    assert decoded.index(other) < 5


def embed(address: str, *inputs: str) -> list[Any]:
    request = urllib.request.Request(f"{address}/v1/embeddings", json.dumps({"input": inputs}).encode(), JSON)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)["data"]


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_is_let_in_before_the_model_is_there(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]

    def load(*_: Any) -> Any:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with pytest.raises(OSError, match="in use"), closing(socket.socket()) as taken:  # and yet it is ours
            taken.bind(("127.0.0.1", port))
        tried.append(port)
        raise SightlineError("no model")

    monkeypatch.setattr(serve, "load_model", load)
    result = CliRunner().invoke(commands, ["serve", "--model", model, "--port", str(port)])
    assert (result.exit_code, tried) == (1, [port])


def test_a_port_that_another_program_takes_meanwhile_is_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]

    def load(*_: Any) -> Any:
        others.append(socket.create_server(("127.0.0.1", port)))
        return small_vocabulary()

    others: list[socket.socket] = []
    monkeypatch.setattr(serve, "load_model", load)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    result = CliRunner().invoke(commands, ["serve", "--model", model, "--port", str(port)])
    others[0].close()
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: cannot listen on 127.0.0.1:{port} (" in result.output


def test_a_model_that_encodes_nothing_is_an_error_before_anybody_is_let_in(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Features, "probe", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    result = CliRunner().invoke(commands, ["serve", "--model", model, "--port", "0"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: the server could not start" in result.output


def test_what_another_program_indexes_is_found_while_the_server_runs(model: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name, grey in (("a.jpg", 40), ("b.jpg", 200)):
        draw(photos / name, grey)
    command = [sys.executable, "-m", "sightline", "serve", str(photos), "--model", model, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "SIGHTLINE_API_KEY"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        assert found(address) == {"a.jpg", "b.jpg"}
        draw(photos / "new.jpg", 120)
        (photos / "a.jpg").unlink()
        assert CliRunner().invoke(commands, ["index", str(photos), "--model", model]).exit_code == 0
        assert found(address) == {"b.jpg", "new.jpg"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def found(address: str) -> set[str]:
    request = urllib.request.Request(f"{address}/v1/search", json.dumps({"query": "a"}).encode(), JSON)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return {row["name"] for row in json.load(reply)["data"]}
