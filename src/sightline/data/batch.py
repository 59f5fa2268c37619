"""What a training step gets from the data, and the account of what was wrong with them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sightline.data.augment import Augment

_LISTED = 100


@dataclass(frozen=True)
class Failure:
    """A pair that was skipped."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class Batch:
    """Pairs of one step, or of a piece of it where the step comes in pieces of `micro_batch_size`.

    The pixels stay bytes until they are used: a quarter of the memory on the way from a worker, and in a step that
    keeps all its pieces. `images` makes floats of them; `augment.normalise(batch.pixels.to(device))` does so elsewhere.
    """

    step: int
    piece: int
    pixels: "torch.Tensor"
    """(n, 3, image_size, image_size) uint8, in memory as `torch.channels_last`."""
    tokens: "torch.Tensor"
    """(n, length) int64, as long as the longest caption among them."""
    indices: "torch.Tensor"
    """(n,) int64: which pairs these are."""
    names: tuple[str, ...]
    augment: "Augment"
    failures: tuple[Failure, ...] = ()
    """The pairs that were skipped, with others in their place."""
    cut: tuple[str, ...] = ()
    """The names of pairs whose caption was longer than the context, and was cut."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> "torch.Tensor":
        """(n, 3, image_size, image_size) float32, normalised; made anew each time."""
        return self.augment.normalise(self.pixels)


@dataclass
class Report:
    """What was wrong with the data so far: how much of it, and the first hundred different ones by name."""

    pairs: int = 0
    failed: int = 0
    cut: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    cut_names: dict[str, None] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        self.pairs += len(batch)
        self.failed += len(batch.failures)
        self.cut += len(batch.cut)
        for failure in batch.failures:
            if len(self.failures) < _LISTED:
                self.failures.setdefault(failure.name, failure)
        for name in batch.cut:
            if len(self.cut_names) < _LISTED:
                self.cut_names[name] = None

    def lines(self, most: int = 5) -> list[str]:
        """The report for a person: nothing if nothing was wrong."""
        lines = []
        if self.failed:
            lines.append(f"{self.failed:,} of {self.pairs + self.failed:,} pairs read were bad and were skipped:")
            lines += _first(map(str, self.failures.values()), len(self.failures), most)
        if self.cut:
            lines.append(f"{self.cut:,} of {self.pairs:,} captions were longer than the context and were cut:")
            lines += _first(self.cut_names, len(self.cut_names), most)
        return lines


def _first(names: Iterable[str], count: int, most: int) -> list[str]:
    shown = [f"  {name}" for name, _ in zip(names, range(most), strict=False)]
    return shown + ([f"  and {'more' if count >= _LISTED else count - most}"] if count > most else [])
