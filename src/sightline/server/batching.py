"""Requests of many clients become batches: by size, and by how long the first has waited.

One thread encodes; both towers share it, since two that compute at once would share the same cores. It takes what waits
when it has finished what it had, so that batches grow with the load and a lone request waits for nobody.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sightline.server.errors import busy, unavailable
from sightline.server.metrics import Metrics

logger = logging.getLogger("sightline.server")
Encode = Callable[[list[Any]], Any]  # prepared inputs to features (n, embed_dim)
RESTART_AFTER = 0.5  # seconds
_LONGEST_WAIT = 60  # seconds that Retry-After says at most


@dataclass(eq=False, slots=True)
class _Item:
    """One prepared input, and who waits for its feature."""

    what: Any
    future: "asyncio.Future[np.ndarray]"
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Encodes what is handed to it, in batches, in the order in which it came.

    Args:
        encoders: for each kind of input, prepared inputs to features (embed_dim,), all or an exception.
        batch_size: inputs encoded together.
        deadline: seconds that the first of a batch waits for others, where others have come before.
        queue_length: inputs of a kind that may be inside.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encode],
        *,
        batch_size: int,
        deadline: float,
        queue_length: int,
        metrics: Metrics,
    ):
        self._encoders = encoders
        self._deadline, self._queue_length = deadline, queue_length
        self._sizes = {batch_size, *(size for k in range(16) for size in (2**k, 3 * 2**k) if size < batch_size)}
        self._metrics = metrics
        self._waiting: dict[str, deque[_Item]] = {kind: deque() for kind in encoders}
        self._inside = dict.fromkeys(encoders, 0)
        self._last = dict.fromkeys(encoders, 1)  # the size of the last batch
        self._pace = dict.fromkeys(encoders, 0.0)  # seconds an input
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self.is_alive = False

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._encoders)

    def start(self) -> None:
        """Begin to encode; in the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self.is_alive = True
        self._thread.start()

    async def close(self) -> None:
        """Finish the batch that is being encoded; what waits is not answered any more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def check_room(self, kind: str, n: int) -> None:
        """Whether n inputs may come in.

        Raises:
            ApiError: 429 if there is no room, with when there will be; 503 while the thread is dead.
        """
        if not self.is_alive:
            raise unavailable("the encoder has stopped and is being started again: try again in a second")
        if self._inside[kind] + n > self._queue_length:
            seconds = math.ceil(self._inside[kind] * self._pace[kind])
            raise busy(min(max(1, seconds), _LONGEST_WAIT))

    @contextmanager
    def room(self, kind: str, n: int) -> Iterator[None]:
        """Room for n inputs, from before they are decoded until they are encoded. Raises ApiError as `check_room`."""
        self.check_room(kind, n)
        self._count(kind, n)
        try:
            yield
        finally:
            self._count(kind, -n)

    async def encode(self, kind: str, items: Sequence[Any]) -> list[np.ndarray | BaseException]:
        """The feature of each input, or its own error. Who is cancelled here leaves the queue."""
        if not items:
            return []
        entries = [_Item(item, self._loop.create_future()) for item in items]
        with self._changed:
            self._waiting[kind].extend(entries)
            self._changed.notify()
        try:
            return await asyncio.gather(*(entry.future for entry in entries), return_exceptions=True)
        except asyncio.CancelledError:
            with self._changed:
                left = [entry for entry in self._waiting[kind] if not entry.future.cancelled()]
                self._waiting[kind].clear()
                self._waiting[kind].extend(left)
            raise

    def _count(self, kind: str, n: int) -> None:
        self._inside[kind] += n
        self._metrics.queue.labels(kind).set(self._inside[kind])

    def _work(self) -> None:
        """The encoding thread, from its start to its end."""
        batch: list[_Item] = []
        try:
            while (taken := self._take()) is not None:
                kind, batch = taken
                self._deliver(batch, self._encode(kind, batch))
                batch = []
        except BaseException:
            logger.exception("the encoding thread died with a batch of %d", len(batch))
            self._loop.call_soon_threadsafe(self._died)  # first: who is answered shall find it so
            self._deliver(
                batch, [unavailable("the encoder stopped at this request: try again in a second")] * len(batch)
            )

    def _take(self) -> tuple[str, list[_Item]] | None:
        """The next batch, of the kind whose first has waited longest; None when there will be no more."""
        with self._changed:
            while not self._closing:
                kind = min((k for k, queue in self._waiting.items() if queue), key=self._oldest, default=None)
                if kind is None:
                    self._changed.wait()
                    continue
                queue, wait = self._waiting[kind], self._patience(kind)
                if wait <= 0:
                    return kind, [queue.popleft() for _ in range(self._size(len(queue)))]
                self._changed.wait(wait)
        return None

    def _size(self, waiting: int) -> int:
        """How many of those that wait to encode together: one of few numbers, as oneDNN keeps code for each."""
        return max(size for size in self._sizes if size <= waiting)

    def _oldest(self, kind: str) -> float:
        return self._waiting[kind][0].arrived

    def _patience(self, kind: str) -> float:
        """Seconds to wait for more: none if as many are there as came together the last time."""
        if len(self._waiting[kind]) >= self._last[kind]:
            return 0.0
        return self._oldest(kind) + self._deadline - time.monotonic()

    def _encode(self, kind: str, batch: list[_Item]) -> list[np.ndarray | Exception]:
        started = time.perf_counter()
        results = self._results(kind, batch)
        seconds = time.perf_counter() - started
        self._last[kind] = len(batch)
        self._pace[kind] = 0.8 * (self._pace[kind] or seconds / len(batch)) + 0.2 * seconds / len(batch)
        self._metrics.batches.labels(kind).observe(len(batch))
        self._metrics.encoding.labels(kind).observe(seconds)
        return results

    def _results(self, kind: str, batch: list[_Item]) -> list[np.ndarray | Exception]:
        """A batch that fails is halved until what it fails on is alone."""
        try:
            features = self._encoders[kind]([item.what for item in batch])
            usable = np.isfinite(features).all(axis=1)
            return [feature if sound else _NotFinite() for feature, sound in zip(features, usable, strict=True)]
        except Exception as error:
            if len(batch) == 1:
                self._metrics.failed.labels(kind).inc()
                return [error]
            half = len(batch) // 2
            return self._results(kind, batch[:half]) + self._results(kind, batch[half:])

    def _deliver(self, batch: list[_Item], results: Sequence[np.ndarray | Exception]) -> None:
        self._loop.call_soon_threadsafe(_settle, batch, results)

    def _died(self) -> None:
        self.is_alive = False
        self._metrics.restarts.inc()
        if not self._closing:
            self._loop.call_later(RESTART_AFTER, self.start)


class _NotFinite(ArithmeticError):
    """The model made no numbers of an input."""

    def __str__(self) -> str:
        return "the features are not finite"


def _settle(batch: list[_Item], results: Sequence[np.ndarray | Exception]) -> None:
    for item, result in zip(batch, results, strict=True):
        if item.future.done():
            continue  # whoever waited has gone
        if isinstance(result, Exception):
            item.future.set_exception(result)
        else:
            item.future.set_result(result)
