"""The server under load, on loopback: beside a plain FastAPI handler that encodes each request alone, and the encoder.

    python benchmarks/serving.py                  # everything
    python benchmarks/serving.py quick            # a part of it, to see that it runs

Requests carry one image, which no cache has seen; both servers run in a process of their own, and are asked in turn.
Clients send their next request when they have the answer to the last, over connections that stay open; what they cost
comes out of the same cores. A rate is the median of three rounds. Prints Markdown tables, and what
the goals say of them: about ten minutes. `infinity_emb` is not beside it: its last version asks for numpy 1 and typer
0.12.
"""

import asyncio
import base64
import itertools
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pybase64

import sightline
from sightline.encoder import Encoder

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
LABELS = ["a dog", "a cat", "a rocket"]
CLIENTS = (1, 8, 32, 128)
OVERLOAD = 10  # times what the queue holds
ROUNDS = 3  # of which the median rate is told
_numbers = itertools.count()


@dataclass
class Load:
    """What clients saw: seconds of each answer, how many were refused, and how long it all took."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.took

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[math.ceil(share * len(self.seconds)) - 1] if self.seconds else math.nan


def new_photo(photos: list[bytes]) -> bytes:
    """A photo with some bytes behind its end, which no decoder looks at and every hash does."""
    number = next(_numbers)
    return photos[number % len(photos)] + number.to_bytes(8, "big")


def request(path: str, photos: list[bytes]) -> bytes:
    """The bytes of a request, made with little work: it is the server's time that is measured."""
    uri = b"data:image/jpeg;base64," + pybase64.b64encode(new_photo(photos))
    labels = json.dumps(LABELS).encode()
    body = b'{"input":"%b"}' % uri if path == "embeddings" else b'{"images":["%b"],"labels":%b}' % (uri, labels)
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _client(port: int, path: str, photos: list[bytes], until: float, most: Iterator[int], load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until and next(most, None) is not None:
        asked = request(path, photos)
        started = time.perf_counter()
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        status = int(head.split(b" ", 2)[1])
        if status == 200:
            load.seconds.append(time.perf_counter() - started)
        elif status == 429:
            load.refused += 1
            wait = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"retry-after:"))
            writer.close()  # a server ends connections on which nothing is asked for some seconds
            await asyncio.sleep(int(wait.partition(b":")[2]) * random.uniform(1, 2))  # or all would come back at once
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        else:
            sys.exit(f"the server answered {status}")
    writer.close()


def rate_of(rounds: list[Load]) -> float:
    return statistics.median(load.rate for load in rounds)


def put_load(port: int, path: str, photos: list[bytes], clients: int, seconds: float, most: int = 10**9) -> Load:
    async def all_of_them() -> Load:
        load, begun, left = Load(), time.perf_counter(), iter(range(most))
        await asyncio.gather(*(_client(port, path, photos, begun + seconds, left, load) for _ in range(clients)))
        load.took = time.perf_counter() - begun
        return load

    return asyncio.run(all_of_them())


@contextmanager
def server(kind: str, model: str, queue_length: int = 512) -> Iterator[tuple[int, int]]:
    """The port and the process of a server that is ready."""
    command = [sys.executable, __file__, "--serve", kind, model, str(queue_length)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


def serve(kind: str, model: str, queue_length: int) -> None:
    """In a process of its own: print the port, and serve."""
    import uvicorn

    from sightline.server.app import create_app
    from sightline.server.protocol import Protocol
    from sightline.server.settings import Settings

    clip = sightline.load(model, device="cpu")
    settings = Settings(queue_length=queue_length, max_items=min(queue_length, Settings.max_items))
    config: dict[str, Any] = {"log_config": None, "access_log": False}
    if kind == "Sightline":
        config |= {"app": create_app(clip, settings=settings), "http": Protocol}
    else:
        config |= {"app": plain(clip)}
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(**config)).run([listening])


def plain(clip: Encoder):
    """What one writes first: each request is encoded alone, one after the other."""
    from threading import Lock

    from fastapi import FastAPI

    app, one = FastAPI(), Lock()
    classifier = sightline.ZeroShotClassifier(clip, LABELS)

    @app.post("/v1/embeddings")
    def embeddings(asked: dict):
        image = base64.b64decode(asked["input"].partition(",")[2])
        with one:
            return {"data": [{"embedding": clip.encode_images([image])[0].tolist()}]}

    @app.post("/v1/classify")
    def classify(asked: dict):
        image = base64.b64decode(asked["images"][0].partition(",")[2])
        with one:
            return {"data": classifier.top_k([image])}

    return app


def encoder_rates(model: str, photos: list[bytes], rounds: int = 3) -> list[float]:
    """Images a second that the encoder does by itself, in batches, several times."""
    clip = sightline.load(model, device="cpu")
    images = [new_photo(photos) for _ in range(128)]
    clip.encode_images(images[:32])
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        clip.encode_images(images)
        rates.append(len(images) / (time.perf_counter() - started))
    return rates


def memory(process: int) -> float:
    """MiB that a process has (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def show_load(name: str, model: str, photos: list[bytes], seconds: float, clients: tuple[int, ...]) -> None:
    before = encoder_rates(model, photos)
    found: defaultdict[tuple[str, str, int], list[Load]] = defaultdict(list)
    with server("plain", model) as (plain_port, _), server("Sightline", model) as (our_port, _):
        for path, n in itertools.product(("embeddings", "classify"), clients):
            for number, (kind, port) in itertools.product(
                range(ROUNDS + 1), (("plain", plain_port), ("Sightline", our_port))
            ):
                load = put_load(port, path, photos, n, seconds / ROUNDS)
                if number:  # the first warms up
                    found[kind, path, n].append(load)
    own = statistics.median(before + encoder_rates(model, photos))
    print(f"\n{name}: the encoder alone, in batches: {own:.1f} images/s\n")
    print("| request | clients | Sightline /s | p50 | p99 | plain /s | p50 | p99 | ratio | of the encoder |")
    print("|---" * 10 + "|")
    for path, n in itertools.product(("embeddings", "classify"), clients):
        ours, theirs = found["Sightline", path, n], found["plain", path, n]
        cells = [path, str(n)]
        for loads in (ours, theirs):
            whole = Load([seconds for load in loads for seconds in load.seconds])
            cells += [f"{rate_of(loads):.1f}", *(f"{whole.quantile(share) * 1e3:.0f} ms" for share in (0.5, 0.99))]
        ratio, share = rate_of(ours) / rate_of(theirs), rate_of(ours) / own
        if n == 32:
            cells += [f"{ratio:.2f}× (goal 2×)", f"{share:.0%} (goal 90%)"]
        else:
            cells += [f"{ratio:.2f}×", f"{share:.0%}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def show_overload(name: str, model: str, photos: list[bytes], seconds: float, queue_length: int = 32) -> None:
    with server("Sightline", model, queue_length) as (port, _):
        put_load(port, "embeddings", photos, queue_length, seconds / 4)
        usual = put_load(port, "embeddings", photos, queue_length, seconds)
        over = put_load(port, "embeddings", photos, OVERLOAD * queue_length, seconds)
    print(f"\n{name}, {OVERLOAD * queue_length} clients at a queue of {queue_length}: {over.rate:.1f}/s answered")
    print(
        f"({usual.rate:.1f}/s without the overload), {over.refused} refused; p99 {over.quantile(0.99):.2f} s,", end=" "
    )
    print(f"queue over throughput {queue_length / over.rate:.2f} s", flush=True)


def show_memory(name: str, model: str, photos: list[bytes], requests: int) -> None:
    with server("Sightline", model) as (port, process):
        found = []
        for _ in range(10):
            put_load(port, "embeddings", photos, 32, 1e9, requests // 10)
            found.append(memory(process))
    print(f"\n{name}, MiB after each tenth of {requests:,} requests: {', '.join(f'{mib:.0f}' for mib in found)}")


def main() -> None:
    quick = sys.argv[1:] == ["quick"]
    if sys.argv[1:] and not quick:
        sys.exit(__doc__)
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    print(f"{os.cpu_count()} cores, {len(photos)} photos of {statistics.median(map(len, photos)) / 1024:.0f} KiB")
    seconds, clients = (2.0, (1, 32)) if quick else (8.0, CLIENTS)
    with tempfile.TemporaryDirectory() as folder:
        model = sightline.create_model("ViT-B/32").eval()
        Encoder(model, sightline.Tokenizer.standard()).save(folder)
        del model
        for name, where in (("starter", "starter"), ("ViT-B/32-shaped", folder)):
            show_load(name, where, photos, seconds, clients)
            show_overload(name, where, photos, seconds)
        show_memory("starter", "starter", photos, 500 if quick else 10_000)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
