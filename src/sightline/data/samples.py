"""Positions in the endless sequence of epochs to batches: a pure function, whichever process calls it.

Position p is in epoch p // n, and there at place p % n of that epoch's shuffled order. What is drawn for a pair (its
caption, its crop) depends on the seed, the epoch and the pair alone. A pair that is bad is replaced by the one at the
same place of another order of the same epoch, and so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from sightline.data.augment import Augment
from sightline.data.batch import Batch, Failure
from sightline.data.pairs import Pairs
from sightline.data.parquet import WINDOW_BYTES
from sightline.data.reading import read_file
from sightline.data.shuffle import BlockOrder, Order, order_of_blocks
from sightline.errors import DataError, SightlineError
from sightline.images import MAX_BYTES
from sightline.tokenizer import Tokenizer

TRIES = 100
"""So many pairs one after another may be bad before it is taken for a fault of the whole."""

_MAX_CHARACTERS = 4096  # more than any context holds; the cleaning of a text takes time that grows with its square


@dataclass(frozen=True)
class Sample:
    """One pair, ready for a batch: its pixels, and the row of ids of one of its captions, which may have been cut."""

    index: int
    pixels: np.ndarray
    ids: list[int]
    name: str
    cut: bool


class Samples:
    """What `Batches` and `preflight` read from: pairs with all that is drawn for them."""

    def __init__(self, pairs: Pairs, tokenizer: Tokenizer, augment: Augment, seed: int):
        if not len(pairs):
            raise DataError(", ".join(pairs.sources) or "the training data", "has no pairs")
        self.pairs, self.tokenizer, self.augment, self.seed = pairs, tokenizer, augment, seed
        self._orders: dict[int, Order | BlockOrder] = {}  # the one used last

    def batch(self, positions: Sequence[int] | np.ndarray, step: int = 0, piece: int = 0) -> Batch:
        """The pairs at `positions`.

        Raises:
            DataError: if `TRIES` pairs one after another were bad.
        """
        import torch

        failures: list[Failure] = []
        samples = [self._good(int(p), int(i), failures) for p, i in zip(positions, self.order(positions), strict=True)]
        pixels = np.stack([sample.pixels for sample in samples])
        tokens = np.zeros((len(samples), max(len(sample.ids) for sample in samples)), np.int64)
        for row, sample in zip(tokens, samples, strict=True):
            row[: len(sample.ids)] = sample.ids
        return Batch(
            step=step,
            piece=piece,
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            tokens=torch.from_numpy(tokens),
            indices=torch.tensor([sample.index for sample in samples]),
            names=tuple(sample.name for sample in samples),
            augment=self.augment,
            failures=tuple(failures),
            cut=tuple(sample.name for sample in samples if sample.cut),
        )

    def sample(self, index: int, epoch: int) -> Sample:
        """A pair with what is drawn for it in an epoch.

        Raises:
            SightlineError: if the pair is bad.
        """
        random = Random(f"{self.seed} {epoch} {index}")
        pair = self.pairs[index]
        caption = pair.captions[int(random.random() * len(pair.captions))]
        data = pair.image if isinstance(pair.image, bytes) else read_file(pair.image, MAX_BYTES)
        pixels = self.augment.read(data, random, pair.name)
        ids = self.tokenizer.encode(caption[:_MAX_CHARACTERS])
        if not ids:
            raise DataError(pair.name, "has a caption without a word")
        room = self.tokenizer.context_length - 2
        row = [self.tokenizer.start_id, *ids[:room], self.tokenizer.end_id]
        return Sample(index, pixels, row, pair.name, len(ids) > room or len(caption) > _MAX_CHARACTERS)

    def _good(self, position: int, index: int, failures: list[Failure]) -> Sample:
        epoch, place = divmod(position, len(self.pairs))
        for attempt in range(1, TRIES + 1):
            try:
                return self.sample(index, epoch)
            except (SightlineError, OSError) as error:
                failures.append(self.failure(index, error))
            index = Order(len(self.pairs), self.seed, epoch, salt=-attempt)[place]
        raise DataError(failures[-1].name, f"{failures[-1].reason}; and so it is with {TRIES} pairs one after another")

    def failure(self, index: int, error: Exception) -> Failure:
        name = getattr(error, "name", None)
        if isinstance(name, str):
            return Failure(name, getattr(error, "reason", str(error)))
        return Failure(self.pairs.name(index), str(error))

    def order(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which pairs stand at `positions`."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), len(self.pairs))
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order_of(int(epoch)).at(places[here])
        return indices

    def _order_of(self, epoch: int) -> Order | BlockOrder:
        if epoch not in self._orders:
            self._orders = {epoch: order_of_blocks(self.pairs.blocks, WINDOW_BYTES, self.seed, epoch)}
        return self._orders[epoch]
