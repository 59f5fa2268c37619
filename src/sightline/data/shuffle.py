"""An order of n things, shuffled anew for each epoch, of which any place can be asked for.

    order(n, seed, epoch)[i]        the thing at place i
    order(n, seed, epoch).at(array) the things at many places

Nothing is stored, so any process can go on from any place: the order is a permutation that is computed, a Feistel
network over the digits of a number in two bases, whose product is just above n. What it sends beyond n it sends on
(cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3).
"""

from collections.abc import Sequence
from math import ceil, isqrt

import numpy as np

from sightline.data.pairs import Block

_ROUNDS = 24  # with 10, the orders of five or six things are not yet equally likely
_MASK = 2**64 - 1
_CHUNK = 1000  # pairs of a source that is cheap to read anywhere, when they are mixed with blocks


class Order:
    """A pseudo-random permutation of range(n). Equal arguments give an equal order, on any machine."""

    def __init__(self, n: int, seed: int, epoch: int, salt: int = 0):
        self.n = n
        self._high = isqrt(max(n - 1, 0)) + 1
        self._low = -(-n // self._high)
        state = 0
        for number in (seed, epoch, salt, n):
            state = _mix(state ^ (number & _MASK))
        self._keys = [np.uint64(state := _mix(state)) for _ in range(_ROUNDS)]

    def __getitem__(self, i: int) -> int:
        return int(self.at(np.array([i]))[0])

    def at(self, places: np.ndarray) -> np.ndarray:
        """The things at `places`, int64 as they are."""
        things = self._permute(places.astype(np.uint64))
        while (outside := things >= self.n).any():
            things[outside] = self._permute(things[outside])
        return things.astype(np.int64)

    def _permute(self, numbers: np.ndarray) -> np.ndarray:
        bases = [np.uint64(self._high), np.uint64(self._low)]
        digits = list(np.divmod(numbers, bases[1]))
        for turn, key in enumerate(self._keys):
            one, other = turn % 2, 1 - turn % 2
            digits[one] = (digits[one] + _mixed(digits[other] ^ key)) % bases[one]
        return digits[0] * bases[1] + digits[1]


class BlockOrder:
    """A shuffled order in which neighbours lie in few blocks: as many of them at a time as fit into `memory` bytes make
    a window, and the pairs of a window are shuffled among themselves. Each window has blocks from all over the data."""

    def __init__(self, blocks: Sequence[Block], memory: int, seed: int, epoch: int):
        windows = ceil(sum(block.memory for block in blocks) / memory)
        chosen = _spread(len(blocks), windows, Order(-(-len(blocks) // windows) * windows, seed, epoch, salt=1))
        sizes = np.array([block.pairs for block in blocks], np.int64)
        starts = np.cumsum(sizes) - sizes
        self._block_starts = starts[chosen]
        self._block_places = np.cumsum(sizes[chosen]) - sizes[chosen]
        self._windows = _windows([blocks[i] for i in chosen], memory)  # where each begins, and the end of the last
        self._seed, self._epoch = seed, epoch

    def __getitem__(self, i: int) -> int:
        return int(self.at(np.array([i]))[0])

    def at(self, places: np.ndarray) -> np.ndarray:
        windows = np.searchsorted(self._windows, places, side="right") - 1
        shuffled = np.empty_like(places, np.int64)
        for window in np.unique(windows):
            inside = windows == window
            start, end = int(self._windows[window]), int(self._windows[window + 1])
            order = Order(end - start, self._seed, self._epoch, salt=2 + int(window))
            shuffled[inside] = start + order.at(places[inside] - start)
        blocks = np.searchsorted(self._block_places, shuffled, side="right") - 1
        return self._block_starts[blocks] + shuffled - self._block_places[blocks]


def order(n: int, seed: int, epoch: int) -> Order:
    """The permutation of range(n) for a seed and an epoch."""
    return Order(n, seed, epoch)


def order_of_blocks(blocks: Sequence[Block], memory: int, seed: int, epoch: int) -> Order | BlockOrder:
    """An order of the pairs of `blocks` that can be read with `memory` bytes: all shuffled alike where all fit."""
    if sum(block.memory for block in blocks) <= memory:
        return Order(sum(block.pairs for block in blocks), seed, epoch)
    return BlockOrder([part for block in blocks for part in _chunks(block) if part.pairs], memory, seed, epoch)


def _chunks(block: Block) -> list[Block]:
    """A block that costs nothing in pieces, so that it mixes with those that cost."""
    if block.memory:
        return [block]
    return [Block(min(_CHUNK, block.pairs - start)) for start in range(0, block.pairs, _CHUNK)]


def _spread(n: int, windows: int, drawn: Order) -> np.ndarray:
    """An order of n blocks that deals each run of `windows` of them out, one to a window.

    So sources of different kinds, and pairs that lie sorted, are mixed in every window as they are in the whole.
    """
    keys = drawn.at(np.arange(drawn.n)).reshape(-1, windows)
    window = keys.argsort(axis=1).argsort(axis=1).ravel()[:n]
    return np.lexsort((keys.ravel()[:n], window))


def _windows(blocks: Sequence[Block], memory: int) -> np.ndarray:
    starts, pairs, held = [0], 0, 0
    for block in blocks:
        if held and held + block.memory > memory:
            starts.append(pairs)
            held = 0
        pairs, held = pairs + block.pairs, held + block.memory
    return np.array([*starts, pairs], np.int64)


def _mix(number: int) -> int:
    """The finisher of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit given."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & _MASK
    return number ^ number >> 31


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The same for an array."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)
