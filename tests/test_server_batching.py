"""Batches of many clients: how they form, and that nobody's input harms another's."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from serving import wait_until
from sightline.server import batching
from sightline.server.batching import Batcher
from sightline.server.errors import ApiError
from sightline.server.metrics import Metrics


class Tower:
    """Numbers to features of one number; batches wait until it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: list[int]) -> np.ndarray:
        self.begun.set()
        self.open.wait(10)
        self.batches.append(items)
        if -1 in items:
            raise ValueError("a poison")
        if -2 in items:
            raise SystemExit
        return np.array([[np.nan if item == -3 else item] for item in items], np.float32)


def run(
    test: Callable[[Batcher, Tower], Awaitable[None]],
    batch_size: int = 8,
    queue_length: int = 100,
    deadline: float = 0.01,
) -> None:
    async def main() -> None:
        tower = Tower()
        batcher = Batcher(
            {"image": tower, "text": tower},
            batch_size=batch_size,
            deadline=deadline,
            queue_length=queue_length,
            metrics=Metrics(),
        )
        batcher.start()
        try:
            await asyncio.wait_for(test(batcher, tower), 20)
        finally:
            tower.open.set()
            await batcher.close()

    asyncio.run(main())


def test_batches_are_of_few_sizes() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        for number in range(1, 60):
            await asyncio.gather(*(ask(batcher, each) for each in range(number)))
        assert {len(batch) for batch in tower.batches} <= {1, 2, 3, 4, 6, 8, 12, 16, 20}
        assert sum(map(len, tower.batches)) == sum(range(60))

    run(test, batch_size=20)


async def begun(tower: Tower) -> None:
    await asyncio.to_thread(tower.begun.wait, 10)


def ask(batcher: Batcher, *numbers: int, kind: str = "image") -> "asyncio.Task[list[Any]]":
    return asyncio.ensure_future(batcher.encode(kind, numbers))


def test_what_waits_meanwhile_is_encoded_together_and_each_gets_its_own() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        tower.open.clear()
        tasks = [ask(batcher, 0)]
        await begun(tower)
        tasks += [ask(batcher, number) for number in range(1, 11)]
        await asyncio.sleep(0)
        tower.open.set()
        assert [float(found[0][0]) for found in await asyncio.gather(*tasks)] == list(range(11))
        assert [len(batch) for batch in tower.batches] == [1, 8, 2]

    run(test)


def test_the_first_waits_for_others_no_longer_than_the_deadline() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        await ask(batcher, 1, 2, 3)  # three came together, so that the next waits for two more
        assert (await ask(batcher, 4))[0] == 4
        assert tower.batches == [[1, 2, 3], [4]]

    run(test)


def test_the_kind_that_waits_longest_is_next_and_kinds_are_not_mixed() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        tower.open.clear()
        tasks = [ask(batcher, 0)]
        await begun(tower)
        for number, kind in ((1, "text"), (2, "image"), (3, "text")):
            tasks.append(ask(batcher, number, kind=kind))
            await asyncio.sleep(0.002)
        tower.open.set()
        await asyncio.gather(*tasks)
        assert tower.batches == [[0], [1, 3], [2]]

    run(test)


@pytest.mark.parametrize(("poison", "error"), [(-1, "a poison"), (-3, "the features are not finite")])
def test_a_poison_fails_alone(poison: int, error: str) -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        found = await ask(batcher, 1, 2, poison, 4, 5)
        assert str(found.pop(2)) == error
        assert [float(feature[0]) for feature in found] == [1, 2, 4, 5]
        assert batcher.is_alive

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        with batcher.room("image", 5):
            with pytest.raises(ApiError) as refused, batcher.room("image", 6):
                pass
            assert (refused.value.status, refused.value.retry_after) == (429, 1)
            with batcher.room("image", 5), batcher.room("text", 10):
                pass
        with batcher.room("image", 10):
            pass

    run(test, queue_length=10)


def test_who_is_cancelled_leaves_the_queue() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        tower.open.clear()
        first = ask(batcher, 0)
        await begun(tower)
        gone, stays = ask(batcher, 1, 2), ask(batcher, 3)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait({gone})
        tower.open.set()
        await asyncio.gather(first, stays)
        assert gone.cancelled()
        assert tower.batches == [[0], [3]]

    run(test)


def test_who_is_cancelled_while_encoded_harms_nobody() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        tower.open.clear()
        first = ask(batcher, 0)
        await begun(tower)
        first.cancel()
        tower.open.set()
        assert (await ask(batcher, 1))[0] == 1

    run(test)


def test_a_thread_that_dies_takes_its_batch_alone_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "RESTART_AFTER", 0.05)

    async def test(batcher: Batcher, tower: Tower) -> None:
        tower.open.clear()
        first = ask(batcher, -2)
        await begun(tower)
        waiting = ask(batcher, 7)
        await asyncio.sleep(0)
        tower.open.set()
        assert (await first)[0].status == 503
        assert not batcher.is_alive
        with pytest.raises(ApiError, match="started again"), batcher.room("image", 1):
            pass
        assert (await waiting)[0] == 7  # it was in the queue, and not in the batch
        assert batcher.is_alive

    run(test, batch_size=1)


def test_closing_waits_for_the_batch_that_is_encoded() -> None:
    async def test(batcher: Batcher, tower: Tower) -> None:
        await ask(batcher, 1)
        thread = batcher._thread
        await batcher.close()
        assert thread is not None
        wait_until(lambda: not thread.is_alive())

    run(test)
