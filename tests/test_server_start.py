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
from serving import JSON, Gate, client, data_uri, photo, running
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
        b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0",
        b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_an_error_like_any_other_and_nothing_is_logged(
    address: str, raw: bytes, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        head, body = say(address, raw)
    assert not caplog.records  # else whoever scans ports fills the log
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head
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


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/v1/models", b"localhost", b"200"),
        (b"HTTP://127.0.0.1:8000/v1/models?x=/", b"evil.example", b"200"),  # what the target says counts
        (b"http://localhost", b"localhost:", b"200"),
        (b"http://evil.example/v1/models", b"localhost", b"403"),
        (b"http://evil@localhost/v1/models", b"localhost", b"403"),
        (b"/http://localhost/v1/models", b"localhost", b"404"),
    ],
)
def test_a_whole_url_may_be_asked_for(address: str, target: bytes, host: bytes, status: bytes) -> None:
    host_port, _, port = urlsplit(address).netloc.partition(":")
    with closing(socket.create_connection((host_port, int(port)), timeout=20)) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        assert connection.recv(20).split()[1] == status


def test_who_is_not_answered_when_the_server_ends_is_told_so(caplog: Any) -> None:
    app = create_app(small_vocabulary())
    with ThreadPoolExecutor(1) as clients:
        with running(app) as address:
            gate = Gate(app)
            gate.open.clear()
            host, _, port = urlsplit(address).netloc.partition(":")
            half = socket.create_connection((host, int(port)), timeout=20)
            half.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            asked = clients.submit(raw_embedding, address, data_uri(photo()))
            asked.add_done_callback(lambda _: gate.open.set())
            assert gate.reached.wait(10)
        with closing(half), half.makefile("rb") as reader:
            assert reader.readline().startswith(b"HTTP/1.1 503 ")
        status, connection, body = asked.result()
    assert (status, connection, body["error"]["code"]) == (503, "close", "unavailable")
    assert not [record for record in caplog.records if record.exc_info]


def raw_embedding(address: str, image: str) -> tuple[int, str | None, Any]:
    """Status, `Connection` and JSON of the reply."""
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)) as connection:
        connection.request("POST", "/v1/embeddings", json.dumps({"input": image}), JSON)
        reply = connection.getresponse()
        return reply.status, reply.headers["connection"], json.load(reply)


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


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::1%lo", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_what_is_loopback(address: str, expected: bool) -> None:
    assert serve._is_loopback(address) is expected


@pytest.mark.parametrize("what", ["nothing", "a folder", "a file", "a damaged index"])
def test_what_is_no_index_is_an_error_before_the_model_is_loaded(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    if what == "a file":
        index.write_text("no index")
    elif what != "nothing":
        index.mkdir()
    if what == "a damaged index":
        (index / "catalogue.sqlite").write_text("no database")
    monkeypatch.setattr(serve, "load_model", None)
    result = CliRunner().invoke(commands, ["serve", "--index", str(index), "--port", "0"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert result.stderr.startswith("error: ")


def test_a_key_that_is_set_and_empty_is_none_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_API_KEY", "")
    result = CliRunner().invoke(commands, ["serve", "--port", "0"])
    assert (result.exit_code, "the API key is empty" in result.output) == (2, True)


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
