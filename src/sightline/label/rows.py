"""What is known of an image once it is labelled, and who labels it."""

import math
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import numpy as np

from sightline.errors import ImageError, InvalidArgumentError, SightlineError
from sightline.zero_shot import BACKGROUND, ZeroShotClassifier, class_features, rank


@dataclass(frozen=True)
class Labelled:
    """An image and its labels, or else its error. Numbers have six significant digits.

    Attributes:
        path: as it was given or found; `os.fsencode(path)` is the name that the file system has.
        ranked: the best labels with their probabilities, best first; empty where the image failed.
        fit: from 0 to 1, how the best label alone fares against a background of nothing in particular.
        accepted: the labels that stand: none where it abstains, the best, or each that fits with `independent`.
        error: why the image failed; else None.
    """

    path: str
    ranked: tuple[tuple[str, float], ...] = ()
    fit: float = 0.0
    accepted: tuple[str, ...] = ()
    error: str | None = None

    @property
    def abstain(self) -> bool:
        return not self.accepted

    @property
    def certainty(self) -> float:
        """The lesser of the best label's probability and its fit: what `abstain_below` is held against."""
        return min(self.ranked[0][1], self.fit)


class Labeller:
    """Labels images with a `ZeroShotClassifier`, and abstains where the best label is not certain enough.

    Args:
        classifier: says which label fits best.
        abstain_below: it abstains where `Labelled.certainty` is less than this, from 0 (never) to 1.
        top: how many labels to keep for each image.
        background: the unit feature (embed_dim,) of `BACKGROUND`, where it is known already.

    Raises:
        InvalidArgumentError: for a value that is out of range.
    """

    def __init__(
        self,
        classifier: ZeroShotClassifier,
        *,
        abstain_below: float = 0.5,
        top: int = 5,
        background: np.ndarray | None = None,
    ):
        if not 0 <= abstain_below <= 1:
            raise InvalidArgumentError(f"abstain_below is {abstain_below}; it goes from 0 to 1, as 0.5")
        if top < 1:
            raise InvalidArgumentError(f"top is {top}; it must be a whole number above zero")
        self.classifier, self.clip, self.abstain_below = classifier, classifier.clip, abstain_below
        self.top = min(top, len(classifier.classes_))
        nothing = class_features(self.clip, [BACKGROUND])[0] if background is None else background
        self._background = np.float32(self.clip.scale) * nothing

    @property
    def labels(self) -> list[str]:
        return [str(label) for label in self.classifier.classes_]

    def rows(self, images: Iterable[str | os.PathLike[str]], *, batch_size: int = 32) -> Generator[Labelled]:
        """A row for each image, in order; memory does not grow with their number."""
        stream = self.clip.stream_images(images, batch_size=batch_size)
        with closing(cast(Generator, stream)):  # an interruption then ends its threads, and not Python's exit
            for path, feature in stream:
                yield self.row(os.fsdecode(cast(str, path)), feature)

    def row(self, path: str, feature: np.ndarray | SightlineError) -> Labelled:
        """The row of an image with this unit feature (embed_dim,), or with this error."""
        if isinstance(feature, SightlineError):
            return Labelled(path, error=feature.reason if isinstance(feature, ImageError) else str(feature))
        probabilities = self.classifier.predict_proba(feature[None])[0]
        ranked = tuple((label, _six_digits(p)) for label, p in rank(self.classifier.classes_, probabilities, self.top))
        fit = self._fit(feature, int(probabilities.argmax()), ranked[0][1])
        return Labelled(path, ranked, fit, self._accepted(ranked, fit))

    def _fit(self, feature: np.ndarray, best: int, probability: float) -> float:
        if self.classifier.independent:  # it has been weighed against the background already
            return probability
        margin = float((self.classifier.coef_[best] - self._background) @ feature)
        return _six_digits(1 / (1 + math.exp(min(700.0, -margin))))  # of more there is no exponential

    def _accepted(self, ranked: Sequence[tuple[str, float]], fit: float) -> tuple[str, ...]:
        if fit < self.abstain_below:
            return ()
        candidates = ranked if self.classifier.independent else ranked[:1]
        return tuple(label for label, probability in candidates if probability >= self.abstain_below)


class Writer:
    """What each format does: `write` for each image, in order, then `finish`; `close` also after a failure."""

    def write(self, row: Labelled) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Write what comes after the last image."""

    def close(self) -> None:
        """Let go of what is open, but for the output."""


def shown_path(path: str) -> str:
    r"""A path as valid text, whatever its bytes: one that is not UTF-8 stands as \udcff."""
    return path.encode("utf-8", "backslashreplace").decode()


def _six_digits(number: float) -> float:
    """A float32 has no more significant digits than these."""
    return float(f"{number:.6g}")
