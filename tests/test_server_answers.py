"""No answer is longer than it may be, and none is kept for a client that does not read it."""

import io
import socket
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from serving import client, data_uri, photo, running, wait_until
from sightline.server import explaining, protocol

SIZE = 2**23  # more than the system itself keeps for a connection
NEARLY = SIZE - 200  # where some has been read, and whoever reads shall not wait for the connection's end
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def api() -> Iterator[TestClient]:
    with client(max_answer=4_000) as asked:
        yield asked


# ── how long an answer is ────────────────────────────────────────────────────────────────────────────────────────────


def classify(api: TestClient, images: int, **asked: Any) -> Any:
    return api.post("/v1/classify", json={"images": [data_uri(photo())] * images, **asked})


def test_an_answer_that_may_be_too_long_is_refused_before_it_is_made(api: TestClient) -> None:
    labels = [f"cat {number}" for number in range(30)]
    many: list[dict[str, Any]] = [
        {"images": 3, "labels": labels, "top_k": 30},
        {"images": 1, "label_sets": {name: {"labels": labels} for name in "abc"}, "top_k": 30},
        {"images": 1, "labels": ["cat", "cat" + " " * 1900, "\u3000" * 600 + "cat"], "top_k": 3},  # 6 bytes a letter
        {"images": 1, "label_sets": {"x" * 1900: {"labels": ["a"]}, "y" * 1900: {"labels": ["a"]}}},
    ]
    for asked in many:
        reply = classify(api, **asked)
        assert reply.status_code == 422, len(reply.content)
        assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == ("answer_too_large", "top_k")
        assert "lower top_k" in reply.json()["error"]["message"]
    assert classify(api, 3, labels=labels, top_k=15).status_code == 200


def test_what_is_let_through_is_no_longer_than_was_thought(api: TestClient) -> None:
    for labels in (
        ["cat", "dog"],
        [f"{'é' * number} cat" for number in range(1, 9)],
        ['"\\"' * 10 + str(n) for n in "ab"],
    ):
        for images in range(1, 20):
            reply = classify(api, images, labels=labels, top_k=1000)
            assert reply.status_code in (200, 422)
            assert len(reply.content) <= 4_000
    assert reply.status_code == 422  # the most images


def test_pictures_of_many_heat_maps_have_no_more_pixels_than_one(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "WHOLE", 60)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG")
    for texts, side in ((["a cat"], 60), (["a cat", "a dog", "a", "b"], 30)):
        asked = {"image": data_uri(file.getvalue()), "texts": texts, "picture": True}
        rows = api.post("/v1/explain", json=asked).json()["data"]
        pictures = [Image.open(io.BytesIO(b64decode(row["picture"].partition(",")[2]))) for row in rows]
        assert {picture.size for picture in pictures} == {(side, side)}
        assert rows[0]["size"] == [60, 60]


# ── clients that do not read it ──────────────────────────────────────────────────────────────────────────────────────


async def long_answer(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        head = [(b"content-length", str(SIZE).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": bytes(SIZE)})


def connect(address: str) -> socket.socket:
    """A connection on which the answer was asked for."""
    host, _, port = urlsplit(address).netloc.partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    connection.sendall(ASK)
    return connection


def taken(connection: socket.socket, pause: float = 0) -> int:
    """Bytes of the answer until the connection ends."""
    count = 0
    try:
        while chunk := connection.recv(2**20):
            count += len(chunk)
            time.sleep(pause)
            if count >= NEARLY:
                break
    except ConnectionResetError:
        pass
    return count


def test_who_takes_nothing_of_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    end = protocol.Protocol._end
    monkeypatch.setattr(protocol, "STALLED_SECONDS", 0.2)

    def noted(connection: protocol.Protocol) -> None:
        ended.append(connection.unread())
        end(connection)

    monkeypatch.setattr(protocol.Protocol, "_end", noted)
    with running(long_answer) as address, closing(connect(address)) as stalled:  # type: ignore[arg-type]
        wait_until(lambda: ended)
        assert taken(stalled) < NEARLY
    assert ended[0] > 0


def test_who_takes_it_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "_LEAST", 1)
    with running(long_answer) as address, closing(connect(address)) as slow:  # type: ignore[arg-type]
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
        assert taken(slow, pause=0.002) >= NEARLY


def test_of_many_who_do_not_read_the_first_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_UNREAD", SIZE)
    with running(long_answer) as address, closing(connect(address)) as first:  # type: ignore[arg-type]
        first.recv(100)
        with closing(connect(address)) as second:
            second.recv(100)
            assert taken(first) < NEARLY
            assert taken(second) >= NEARLY
