"""Images with a class each, or with captions: what a model is measured on."""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from sightline.data.pairs import Pairs
from sightline.errors import DataError
from sightline.evaluate.sources import labelled_pairs
from sightline.images import printable_name

_SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".tar")
_TWO = -2  # in place of the number of a class: there are two
_SEPARATORS = str.maketrans("_-/", "   ")


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, and how its labels spell them.

    Attributes:
        names: what to call each class, in the order of the label numbers.
        spellings: other labels that data may have, and the number of the class that each means.
        others_left_out: whether images with a label of no class are left out, and not an error.
        remedy: what to do about a label of no class.
    """

    names: tuple[str, ...]
    spellings: Mapping[str, int] = field(default_factory=dict)
    others_left_out: bool = False
    remedy: str = "correct it"

    @classmethod
    def numbered(cls, names: Sequence[str], remedy: str = remedy) -> "ClassList":
        """Classes that labels may also name by their number, from 0."""
        return cls(tuple(names), {str(number): number for number in range(len(names))}, remedy=remedy)

    def without(self, left_off: Collection[str]) -> "ClassList":
        """The classes but some, and the labels that mean one of these classes still."""
        kept = [number for number, name in enumerate(self.names) if name not in left_off]
        place = {number: i for i, number in enumerate(kept)}
        spellings = {label: place[number] for label, number in self.spellings.items() if number in place}
        return replace(self, names=tuple(self.names[number] for number in kept), spellings=spellings)

    def numbers(self, labels: Sequence[str], pairs: Pairs, name: str) -> np.ndarray:
        """The number of each label's class, (n,) int64; -1 for one that is left out.

        Raises:
            DataError: naming the first label that is of no class, or may be of two.
        """
        known = {label: self._number(label) for label in set(labels)}
        for index, label in enumerate(labels):
            if known[label] is None and not self.others_left_out:
                raise DataError(
                    pairs.name(index),
                    f"has the label {label!r:.80}, which is none of the {len(self.names):,} classes of {name} "
                    f"({_some(self.names)}): {self.remedy}",
                )
            if known[label] == _TWO:
                raise DataError(
                    pairs.name(index), f"has the label {label!r:.80}, which is the name of two classes: label by number"
                )
        return np.fromiter((-1 if (number := known[label]) is None else number for label in labels), np.int64)

    def _number(self, label: str) -> int | None:
        for known in (self.spellings, self._exact):
            if label in known:
                return known[label]
        if label.isascii() and label.isdigit():
            return self.spellings.get(label.lstrip("0") or "0")
        # What has no letters is not folded: -1 is not 1.
        return self._folded.get(folded(label)) if any(map(str.isalpha, label)) else None

    @cached_property
    def _exact(self) -> dict[str, int]:
        return _known((name, number) for number, name in enumerate(self.names))

    @cached_property
    def _folded(self) -> dict[str, int]:
        given = {folded(spelling): number for spelling, number in self.spellings.items()}
        return given | _known((folded(name), number) for number, name in enumerate(self.names))


def _known(named: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The number of each name; `_TWO` for one that two have."""
    known: dict[str, int] = {}
    for name, number in named:
        known[name] = _TWO if name in known else number
    return known


class Images:
    """Images by number, 0 to `len`, some or all of those of a source."""

    def __init__(self, pairs: Pairs, name: str, rows: np.ndarray):
        self.pairs, self.name, self._rows = pairs, name, rows

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> bytes | Path:
        """An encoded image, or the path of one.

        Raises:
            DataError: if it cannot be had.
        """
        return self.pairs[int(self._rows[index])].image

    @property
    def files(self) -> set[str]:
        """The files and folders that they are read from, links followed."""
        return {os.path.realpath(place) for place in self.pairs.places}

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of its files: what was left out of them."""
        return self.pairs.notes

    def identity(self) -> str:
        """A digest that is another as soon as the images or what is said of them are: what a cache goes by.

        It is of the sources' sizes and dates, of those of the images themselves where they are files of their own,
        and of the labels or captions, all as they were when it was first asked for. Of remote data the address alone
        is known.
        """
        return self._identity

    @cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256()
        for place in self.pairs.places:
            _stamp(digest, place)
        if any(isinstance(image, Path) for image in self._first()):
            for row in self._rows:
                try:
                    _stamp(digest, os.fspath(self.pairs[int(row)].image))  # type: ignore[arg-type]
                except DataError as error:
                    digest.update(str(error).encode("utf-8", "surrogateescape"))
        digest.update(self._rows.tobytes())
        digest.update(self._said())
        return digest.hexdigest()

    def _first(self) -> list[bytes | Path]:
        """The first image that can be had."""
        for row in self._rows:
            try:
                return [self.pairs[int(row)].image]
            except DataError:
                continue
        return []

    def _said(self) -> bytes:
        raise NotImplementedError


class LabelledImages(Images):
    """Images by number, 0 to `len`, and the class of each.

    Attributes:
        name: what to call the set: the last two parts of its path, as "cifar10/test".
        class_names: those that were given; otherwise the labels that occur, sorted.
        labels: (n,) int64, for each image its place in `class_names`.

    Raises:
        DataError: if a label is missing or of no class, if there is one class alone, or if no image has a label.
    """

    def __init__(self, pairs: Pairs, name: str, class_names: Sequence[str] | ClassList | None = None):
        labels = pairs.labels()
        given = class_names if class_names is not None else sorted(set(labels))
        classes = given if isinstance(given, ClassList) else ClassList(tuple(given))
        self.class_names = classes.names
        if len(self.class_names) < 2:
            raise DataError(name, f"has one class alone ({_some(self.class_names)}): there is nothing to tell apart")
        numbers = classes.numbers(labels, pairs, name)
        super().__init__(pairs, name, np.flatnonzero(numbers >= 0))
        self.labels = numbers[self._rows]
        if not len(self):
            raise DataError(name, f"has no image of one of its {len(self.class_names):,} classes")

    def _said(self) -> bytes:
        return self.labels.tobytes() + "\n".join(self.class_names).encode("utf-8", "surrogateescape")


class CaptionedImages(Images):
    """Images by number, 0 to `len`, with one caption or more each. An image file that stands in several rows is one.

    Attributes:
        name: what to call the set.
        labels: (n,) int64, 0 to n - 1: every image is of a class of its own.

    Raises:
        DataError: if fewer than half of the rows have captions.
    """

    def __init__(self, pairs: Pairs, name: str):
        captions: dict[int | Path, list[str]] = {}
        rows: dict[int | Path, int] = {}
        self.bad: list[str] = []
        for index in range(len(pairs)):
            try:
                pair = pairs[index]
            except DataError as error:
                self.bad.append(str(error))
                continue
            key = pair.image if isinstance(pair.image, Path) else index
            rows.setdefault(key, index)
            captions.setdefault(key, []).extend(pair.captions)
        if not rows:
            raise DataError(
                name, f"has no captions; the first of {len(self.bad):,} faults: {(self.bad or ['none'])[0]}"
            )
        if 2 * len(self.bad) > len(pairs):
            some = f"{len(pairs) - len(self.bad):,} of {len(pairs):,} images"
            raise DataError(name, f"has captions of {some} alone, and the rest none, as here: {self.bad[0]}")
        super().__init__(pairs, name, np.fromiter(rows.values(), np.int64))
        self._captions = tuple(tuple(dict.fromkeys(texts)) for texts in captions.values())
        self.labels = np.arange(len(self))

    @property
    def notes(self) -> tuple[str, ...]:
        bad = len(self.bad)
        many = f"1 row of {self.name} is" if bad == 1 else f"{bad:,} rows of {self.name} are"
        return (
            *super().notes,
            *([f"{many} left out, for want of an image or a caption: {self.bad[0]}"] if bad else []),
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an image, each once."""
        return self._captions[index]

    def _said(self) -> bytes:
        return repr(self._captions).encode("utf-8", "surrogateescape")


def open_labelled(name: str | os.PathLike[str], class_names: Sequence[str] | ClassList | None = None) -> LabelledImages:
    """The labelled images of a source: a folder of images for each class, Parquet or a table with a label column, or
    tar shards with `.cls` files.

    Raises:
        DataError: naming the source that is missing, damaged or without labels, or has one class alone.
        MissingExtraError: for Parquet without pyarrow.
    """
    return LabelledImages(labelled_pairs(name), _short(name), class_names)


def folded(label: str) -> str:
    """A label without what spellings differ in: case, and `_`, `-`, `/` for a space."""
    return " ".join(label.casefold().translate(_SEPARATORS).split())


def _short(name: str | os.PathLike[str]) -> str:
    """The last two parts of a path, without the suffix of a file of data."""
    text = os.fsdecode(name)
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".", "..", "~")][-2:]
    if parts and parts[-1].lower().endswith(_SUFFIXES):
        parts[-1] = parts[-1].rpartition(".")[0]
    return printable_name("/".join(parts) or text)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.40}" for name in names[:3])
    return shown + (", …" if len(names) > 3 else "")


def _stamp(digest: "hashlib._Hash", path: str) -> None:
    digest.update(os.path.realpath(path).encode("utf-8", "surrogateescape"))
    try:
        status = os.stat(path)
        digest.update(f" {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    except (OSError, ValueError):
        digest.update(b" not there\n")
