"""A model on a data set: what several tasks need of the two, computed when it is first asked for, and once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sightline.encoder import Encoder
from sightline.errors import DataError
from sightline.evaluate.data_sets import DataSet
from sightline.evaluate.features import ImageFeatures, image_features
from sightline.evaluate.fitting import unreadable
from sightline.evaluate.labelled import CaptionedImages, LabelledImages
from sightline.linear_probe import LinearProbe
from sightline.templates import TemplateSet, fill, template_set
from sightline.zero_shot import class_features

_NAMED = 3  # images that cannot be read


class Progress(Protocol):
    """Told what is being done, how much of it is, and of how much."""

    def __call__(self, what: str, done: int, of: int, /) -> object: ...


@dataclass(frozen=True)
class Settings:
    """How is measured.

    Attributes:
        templates: what class names are put into; None for those of the data set.
        limit: at most so many images of each split, drawn by the seed; for training, evenly of all classes.
        labels: what to look for in the groups of the task `bias`.
        seed: of all that is drawn: images, shots, resamples, noise.
        batch_size: images that go through the model together.
        cache: the folder that features are kept in; None keeps none.
    """

    templates: TemplateSet | None = None
    limit: int | None = None
    labels: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 256
    cache: Path | None = None


class Subject:
    """A model on a data set.

    Attributes:
        measured: the images that are measured on, which decide nothing.
        training: the images that choices are made on and probes are fitted to; None if there are none.
        unreadable: of "measured" and "training", where some could not be read: how many, and which the first are.
    """

    def __init__(self, clip: Encoder, data: DataSet, settings: Settings, progress: Progress):
        self.clip, self.data, self.settings, self._progress = clip, data, settings, progress
        self.unreadable: dict[str, tuple[int, list[str]]] = {}

    @cached_property
    def measured(self) -> LabelledImages:
        return self.some(self.data.open(self.data.measured), self.settings.limit)

    @cached_property
    def training(self) -> LabelledImages | None:
        """Those to learn from.

        Raises:
            DataError: if they are read from the same files as those that are measured.
        """
        if self.data.training is None:
            return None
        images, limit = self.data.open(self.data.training), self.settings.limit
        if images.files & self.measured.files:
            which = f"{self.data.training!r} and {self.data.measured!r}"
            raise DataError(self.data.name, f"has the same files for {which}: what was learned from is not measured")
        return images if limit is None else Part(images, _evenly(images.labels, limit, self.settings.seed))

    @property
    def opened_training(self) -> LabelledImages | None:
        """Those for training if something has asked for them: a data set that is fetched is fetched no further."""
        return vars(self).get("training")

    @cached_property
    def features(self) -> ImageFeatures:
        """Of the measured images."""
        return self.encode(self.measured, self.data.measured)

    @cached_property
    def training_features(self) -> ImageFeatures:
        if self.training is None or self.data.training is None:
            raise DataError(self.data.name, "has no training split")
        return self.encode(self.training, self.data.training)

    @cached_property
    def probe(self) -> LinearProbe:
        """Fitted to the training features; its strength is chosen on a part of them."""
        return self.fit(self.training_features)

    def fit(self, features: ImageFeatures) -> LinearProbe:
        """A linear probe, said in the progress.

        Raises:
            DataError: if no class has an image to choose the strength on beside one to learn from.
        """
        if np.bincount(features.labels).max() < 2:
            limit, classes = self.settings.limit, len(self.data.class_names)
            more = "add some" if limit is None else f"raise --limit {limit:,} well above the {classes:,} classes"
            what = "has one training image of each class, and none to choose a probe's strength on"
            raise DataError(self.data.name, f"{what}: {more}")
        self.say("fitting a probe")
        return LinearProbe(random_state=self.settings.seed).fit(features.features, features.labels)

    @cached_property
    def templates(self) -> TemplateSet:
        return self.settings.templates or template_set(self.data.templates)

    @cached_property
    def classes(self) -> np.ndarray:
        """The unit feature of each class in the templates, (n_classes, embed_dim)."""
        return class_features(self.clip, [fill(self.templates, name) for name in self.data.class_names])

    def encode(self, images: LabelledImages, what: str, **how: Any) -> ImageFeatures:
        """The features of images, as `image_features` gives them; `what` is what the progress says.

        Raises:
            DataError: if none can be read.
        """
        at_once, cache, report = self.settings.batch_size, self.settings.cache, self.report(what)
        found = image_features(self.clip, images, batch_size=at_once, cache=cache, progress=report, **how)
        part = "measured" if images.name == self.measured.name else "training"
        if found.unreadable > self.unreadable.get(part, (0, []))[0]:
            named = map(str, islice(unreadable(images, found), _NAMED))
            self.unreadable[part] = found.unreadable, list(named)
        return found

    def on(self, data: DataSet) -> "Subject":
        """The same model on another data set, measured in the same way."""
        return Subject(self.clip, data, self.settings, self._progress)

    def cosines(self, features: np.ndarray) -> np.ndarray:
        """(n, n_classes): of image features to the classes."""
        return features @ self.classes.T

    def probabilities(self, features: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
        """(n, n_classes) float64: zero-shot, of the classes of the data set or of others."""
        return softmax(np.float32(self.clip.scale) * (features @ (self.classes if classes is None else classes).T))

    def say(self, what: str) -> None:
        """Something that takes a while, and does not tell how far it is."""
        self._progress(f"{self.data.name}: {what}", 0, 1)

    def report(self, what: str) -> Callable[[int, int], object]:
        """To be called with how far it is, and of how much."""
        return lambda done, of: self._progress(f"{self.data.name}: {what}", done, of)

    def captions(self, row: int) -> tuple[str, ...]:
        """The captions of a measured image."""
        images = self.measured
        captioned, place = (images.whole, int(images.rows[row])) if isinstance(images, Part) else (images, row)
        assert isinstance(captioned, CaptionedImages)
        return captioned.captions(place)

    def some(self, images: LabelledImages, most: int | None) -> LabelledImages:
        """At most so many of the images, drawn by the seed."""
        if most is None or most >= len(images):
            return images
        rows = np.random.default_rng(self.settings.seed).permutation(len(images))[:most]
        return Part(images, np.sort(rows))


class Part(LabelledImages):
    """Some of the images of a set, with labels or captions."""

    def __init__(self, whole: LabelledImages, rows: np.ndarray):
        self.whole, self.rows = whole, rows
        self.name, self.labels, self.pairs = whole.name, whole.labels[rows], whole.pairs

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> bytes | Path:
        return self.whole.image(int(self.rows[index]))

    @property
    def notes(self) -> tuple[str, ...]:
        return self.whole.notes

    def identity(self) -> str:
        return f"{self.whole.identity()} {self.rows.tolist()}"


def _evenly(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The rows of at most so many images, sorted: drawn by the seed, of each class as many as of any other."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0 for the first of each class
    return np.sort(by_class[np.argsort(turn, kind="stable")][:most])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64, that sum to one in each row."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
