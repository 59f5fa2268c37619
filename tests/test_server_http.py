"""The server behind real HTTP: OpenAI's client, slow and vanishing clients, too many of them, and a dead worker."""

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from serving import JSON, Gate, data_uri, guard_of, photo, running, wait_until
from sightline.cli import app as commands
from sightline.cli import serve
from sightline.server import batching
from sightline.server.app import create_app
from sightline.server.settings import Settings
from tiny import small_vocabulary


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGHTLINE_API_KEY", raising=False)


@contextmanager
def served(**limits: Any) -> Iterator[tuple[str, FastAPI]]:
    app = create_app(small_vocabulary(), settings=Settings(**limits))
    with running(app) as address:
        yield address, app


def ask(address: str, path: str, request: object = None) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a reply, over a connection of its own."""
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)) as connection:
        body = None if request is None else json.dumps(request)
        connection.request("GET" if body is None else "POST", path, body, JSON)
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, json.loads(reply.read())


def embed(address: str, number: int = 0) -> tuple[int, dict[str, str], Any]:
    """An image that no cache knows."""
    return ask(address, "/v1/embeddings", {"input": data_uri(photo(f"#{number:06x}", format="PNG"))})


def begin(address: str, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request was begun."""
    host, _, port = urlsplit(address).netloc.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n{head}".encode() + body)
    return connection


def test_the_openai_client_works() -> None:
    with served(api_key="key") as (address, app):
        clip = app.state.features.clip
        with openai.OpenAI(base_url=f"{address}/v1", api_key="key", max_retries=0) as client:
            (model,) = client.models.list().data
            made = client.embeddings.create(model=model.id, input=["a cat", data_uri(photo())])  # base64 by default
            expected = [clip.encode_texts(["a cat"])[0], clip.encode_images([photo()])[0]]
            np.testing.assert_allclose([row.embedding for row in made.data], expected, atol=1e-6)
            assert made.usage.total_tokens > 0
            as_floats = client.embeddings.create(model=model.id, input="a cat", encoding_format="float")
            np.testing.assert_allclose(as_floats.data[0].embedding, expected[0], atol=1e-6)
            with pytest.raises(openai.UnprocessableEntityError, match="no text in it"):
                client.embeddings.create(model=model.id, input="")
            with pytest.raises(openai.NotFoundError, match="one model"):
                client.models.retrieve("other")
        with (
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_many_clients_at_once_make_batches_and_each_gets_its_own() -> None:
    with served(batch_size=8) as (address, app):
        clip, gate = app.state.features.clip, Gate(app)
        gate.open.clear()
        with ThreadPoolExecutor(12) as clients:
            replies = [clients.submit(embed, address, number) for number in range(12)]
            gate.reached.wait(10)
            batcher = app.state.features.batcher
            wait_until(lambda: batcher._inside["image"] == 12 and sum(map(len, batcher._waiting.values())) >= 4)
            gate.open.set()
            found = [reply.result()[2]["data"][0]["embedding"] for reply in replies]
        assert max(gate.batches) > 1
        np.testing.assert_allclose(
            found, clip.encode_images([photo(f"#{number:06x}", format="PNG") for number in range(12)]), atol=1e-6
        )


def test_a_slow_client_is_told_so_and_keeps_nobody_waiting() -> None:
    with served(body_seconds=0.4) as (address, _):
        head = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        with closing(begin(address, head, b'{"input"')) as slow, closing(begin(address, "X-Half: a he")):
            assert embed(address)[0] == 200
            with slow.makefile() as reader:
                reply = reader.read()  # to its end: the connection is closed
            assert "408 Request Timeout" in reply
            assert "too_slow" in reply
        assert embed(address, 1)[0] == 200


def test_a_body_that_drips_has_no_more_time_than_any() -> None:
    with served(body_seconds=0.4) as (address, _):
        with closing(begin(address, "Content-Type: application/json\r\nContent-Length: 10000\r\n\r\n")) as slow:
            for _ in range(100):
                if select.select([slow], [], [], 0.02)[0]:
                    break
                slow.sendall(b" ")
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        assert embed(address)[0] == 200


def test_a_head_without_end_is_refused() -> None:
    with served() as (address, _):
        with closing(begin(address, "X: " + "a" * 2**17)) as endless:
            assert endless.recv(100).startswith(b"HTTP/1.1 400 ")
        assert embed(address)[0] == 200


def test_who_vanishes_leaves_the_queue() -> None:
    with served() as (address, app):
        batcher, gate = app.state.features.batcher, Gate(app)
        gate.open.clear()
        with ThreadPoolExecutor(1) as other:
            stays = other.submit(embed, address)
            gate.reached.wait(10)
            body = json.dumps({"input": [data_uri(photo(colour)) for colour in ("lime", "navy")]}).encode()
            gone = begin(address, f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n", body)
            wait_until(lambda: len(batcher._waiting["image"]) == 2)
            gone.close()
            wait_until(lambda: batcher._inside["image"] == 1)
            gate.open.set()
            assert stays.result()[0] == 200
        assert embed(address, 1)[0] == 200
        assert gate.batches == [1, 1]  # neither of the two was encoded
        assert "sightline_cancelled_total 1.0" in app.state.metrics.text().decode()


def test_who_vanishes_amid_a_body_is_forgotten() -> None:
    with served() as (address, app):
        begin(address, "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n", b'{"in').close()
        wait_until(lambda: "sightline_cancelled_total 1.0" in app.state.metrics.text().decode())
        assert embed(address)[0] == 200


def test_after_a_storm_of_clients_that_vanish_nothing_is_left() -> None:
    with served(queue_length=8, max_items=8, batch_size=4) as (address, app):

        def vanish(number: int) -> None:
            images = [data_uri(photo(f"#{number:03x}{place:03x}", format="PNG")) for place in range(number % 4 + 1)]
            body = json.dumps({"input": images}).encode()
            head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            with closing(begin(address, head, body[: len(body) * (number % 3 + 1) // 3])) as connection:
                connection.settimeout(number % 5 / 200)  # some wait a little, and some not at all
                with suppress(OSError):
                    connection.recv(1)

        with ThreadPoolExecutor(20) as clients:
            list(clients.map(vanish, range(60)))
        guard, batcher = guard_of(app), app.state.features.batcher
        wait_until(lambda: (batcher._inside, guard._held) == ({"image": 0, "text": 0}, 0))
        assert not any(batcher._waiting.values())
        assert embed(address, 1)[0] == 200


def test_an_image_for_a_full_queue_is_refused_before_it_is_parsed_and_its_connection_goes_on() -> None:
    with served(queue_length=1, max_items=1) as (address, app):
        gate = Gate(app)
        gate.open.clear()
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(embed, address)
            gate.reached.wait(10)
            with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)) as connection:
                for body, status in ((b'{"input": "data:image/', 429), (b'{"input": ""}', 422)):
                    connection.request("POST", "/v1/embeddings", body, JSON)
                    reply = connection.getresponse()
                    assert reply.status == status, reply.read()
                    reply.read()
            gate.open.set()
            assert first.result()[0] == 200


def test_ten_times_too_many_are_refused_and_the_rest_is_served() -> None:
    with served(queue_length=4, max_items=4, batch_size=2) as (address, app):
        gate = Gate(app)
        gate.open.clear()
        with ThreadPoolExecutor(40) as clients:
            replies = [clients.submit(embed, address, number) for number in range(40)]
            wait_until(lambda: sum(reply.done() for reply in replies) == 36)
            gate.open.set()
            found = [reply.result() for reply in replies]
        assert sorted(status for status, _, _ in found) == [200] * 4 + [429] * 36
        refused = [reply for reply in found if reply[0] == 429]
        assert all(int(headers["retry-after"]) >= 1 for _, headers, _ in refused)
        assert all(body["error"]["type"] == "rate_limit_error" for _, _, body in refused)
        assert embed(address, 50)[0] == 200
        assert app.state.features.batcher._inside == {"image": 0, "text": 0}
        assert 'sightline_rejected_total{code="queue_full"} 36.0' in app.state.metrics.text().decode()


def test_a_worker_that_is_killed_is_told_of_by_ready_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "RESTART_AFTER", 0.5)
    with served() as (address, app):
        gate = Gate(app)
        encode, gate._encode = gate._encode, _end_the_thread
        assert (embed(address)[0], ask(address, "/ready")[0]) == (503, 503)
        assert ask(address, "/health")[0] == 200
        assert embed(address)[1]["retry-after"] == "1"
        gate._encode = encode
        wait_until(lambda: ask(address, "/ready")[0] == 200)
        assert embed(address)[0] == 200
        assert "sightline_worker_restarts_total 1.0" in app.state.metrics.text().decode()


def _end_the_thread(_: Any) -> Any:
    raise SystemExit


def test_ready_says_so_when_the_model_fails() -> None:
    with served() as (address, app):
        Gate(app)._encode = _fail
        Gate(app)._encode = _fail
        assert ask(address, "/ready")[0] == 503
        assert (embed(address)[0], ask(address, "/health")[0]) == (500, 200)
        assert ask(address, "/v1/embeddings", {"input": "a cat"})[0] == 200


def _fail(_: Any) -> Any:
    raise RuntimeError("/secret/path: out of memory")


@pytest.fixture
def model(tmp_path: Path) -> str:
    small_vocabulary().save(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_command_prints_the_address_and_ends_well_with_ctrl_c(model: str) -> None:
    command = [sys.executable, "-m", "sightline", "serve", "--model", model, "--port", "0"]
    environment = {**os.environ, "SIGHTLINE_API_KEY": "key"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        assert ask(address, "/ready")[0] == 200
        assert ask(address, "/v1/models")[0] == 401
        with closing(begin(address, "")):  # a client that stays keeps nobody from ending it
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_one_line(model: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(commands, ["serve", "--model", model, "--port", str(port)])
    assert result.exit_code == 1
    assert re.fullmatch(rf"error: cannot listen on 127\.0\.0\.1:{port} \(.*\): choose another port .*\n", result.output)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "no.such.name.invalid"], "no address of this machine"),
        (["--api-key", " "], "the API key is empty"),
        (["nowhere"], "no folder"),
        (["--precision", "float7"], "precision must be"),
    ],
)
def test_wrong_usage_is_one_line(model: str, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(commands, ["serve", "--model", model, "--port", "0", *arguments])
    assert (result.exit_code, says in result.output) == (2, True), result.output


def test_who_serves_other_machines_is_told_to_take_a_key(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FastAPI] = []
    monkeypatch.setattr(serve, "_run", lambda app, listening, host: made.append(app))
    public = ["serve", "--model", model, "--port", "0", "--host", "0.0.0.0"]
    assert "SIGHTLINE_API_KEY" in CliRunner().invoke(commands, public).output
    assert "SIGHTLINE_API_KEY" not in CliRunner().invoke(commands, [*public, "--api-key", "key"]).output
    assert "SIGHTLINE_API_KEY" not in CliRunner().invoke(commands, public[:-2]).output
    assert [app.state.settings.hosts is None for app in made] == [True, True, False]
