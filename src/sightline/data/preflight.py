"""What there is to know of training data before the first step."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field

from sightline.data.augment import Augment
from sightline.data.batch import Failure
from sightline.data.pairs import Pairs
from sightline.data.samples import Samples
from sightline.errors import SightlineError
from sightline.tokenizer import Tokenizer

_LISTED = 5
_NOTES = 20


@dataclass(frozen=True)
class Preflight:
    """What `preflight` found. With `refusals` training would fail; the rest is to be known."""

    pairs: int
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    sampled: int = 0
    unreadable: tuple[Failure, ...] = ()
    cut: tuple[str, ...] = ()
    images_per_second: float = 0.0
    """That one worker reads, decodes and augments."""
    global_batch_size: int = 0
    refusals: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The findings for a person."""
        many = f" in {len(self.sources):,} files" if len(self.sources) > 1 else f" in {', '.join(self.sources)}"
        lines = [f"{self.pairs:,} pairs{many}", *self.notes[:_NOTES]]
        if len(self.notes) > _NOTES:
            lines.append(f"and {len(self.notes) - _NOTES:,} more such notes")
        if self.global_batch_size:
            lines.append(f"an epoch is {self.pairs / self.global_batch_size:,.1f} steps of {self.global_batch_size:,}")
        if self.sampled:
            lines.append(f"{len(self.unreadable)} of {self.sampled} pairs tried are bad and would be skipped")
            lines += [f"  {failure}" for failure in self.unreadable[:_LISTED]]
            lines.append(f"{len(self.cut)} of {self.sampled} captions are longer than the context and would be cut")
            lines.append(f"{self.images_per_second:,.0f} images per second and worker")
        return lines + [f"refused: {refusal}" for refusal in self.refusals]


def preflight(
    pairs: Pairs,
    tokenizer: Tokenizer,
    augment: Augment,
    *,
    batch_size: int,
    world_size: int = 1,
    sample: int = 64,
    seed: int = 0,
) -> Preflight:
    """Reads `sample` pairs as training would, and looks for what would make it fail. It raises nothing of the data."""
    refusals = [f"{source} is there twice" for source in _twice(pairs.sources)]
    total = batch_size * world_size
    if not len(pairs):
        return Preflight(0, pairs.sources, pairs.notes, refusals=[*refusals, "there are no pairs"])
    if len(pairs) < total:
        refusals.append(f"a step contrasts {total:,} pairs, but there are {len(pairs):,}: use a smaller batch")
    unreadable, cut, seconds, tried = _try(Samples(pairs, tokenizer, augment, seed), min(sample, len(pairs)))
    if tried and len(unreadable) == tried:
        refusals.append(f"all {tried} pairs tried are bad; the first is {unreadable[0]}")
    speed = (tried - len(unreadable)) / seconds if seconds else 0.0
    return Preflight(len(pairs), pairs.sources, pairs.notes, tried, unreadable, cut, speed, total, refusals)


def _twice(sources: tuple[str, ...]) -> list[str]:
    files = [source if "://" in source else os.path.realpath(source) for source in sources]
    return [file for file, times in Counter(files).items() if times > 1]


def _try(samples: Samples, n: int) -> tuple[tuple[Failure, ...], tuple[str, ...], float, int]:
    unreadable, cut = [], []
    started = time.perf_counter()
    for index in samples.order(range(n)):
        try:
            sample = samples.sample(int(index), 0)
        except (SightlineError, OSError) as error:
            unreadable.append(samples.failure(int(index), error))
        else:
            cut += [sample.name] if sample.cut else []
    return tuple(unreadable), tuple(cut), time.perf_counter() - started, n
