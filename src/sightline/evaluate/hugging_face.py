"""Data sets of Hugging Face, by way of its library `datasets`, which runs no code of theirs."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sightline.data.columns import CAPTIONS, LABELS
from sightline.data.labels import check_label
from sightline.data.pairs import Pair, Pairs, captions_of
from sightline.errors import DataError, MissingExtraError, SightlineError
from sightline.evaluate.labelled import ClassList
from sightline.evaluate.layouts import Layout
from sightline.evaluate.sources import UnlabelledError
from sightline.images import printable_name

_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def hugging_face_layout(name: str) -> Layout:
    """The layout of "owner/name" or "owner/name:configuration", or of a local folder that `datasets` loads.

    Raises:
        DataError: if it cannot be had, or has no column of images.
        MissingExtraError: without `datasets`.
    """
    path, _, configuration = name.partition(":")
    path, where = os.path.expanduser(path), printable_name(f"hf:{name}")
    if not os.path.exists(path) and not is_of_the_hub(name):
        raise DataError(where, "there is no such folder, and it is no owner/name of Hugging Face")
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("reading data sets of Hugging Face", "datasets") from None
    with _explained(where):
        splits = tuple(datasets.get_dataset_split_names(path, configuration or None))

    @cache
    def loaded(split: str) -> Any:
        with _explained(where):
            return datasets.load_dataset(path, configuration or None, split=split)

    def pairs(split: str, captions: bool) -> Pairs:
        return Rows(loaded(split), f"{where}/{split}", captions)

    classes = ClassList.numbered(names) if (names := _label_names(loaded(splits[0]))) else None
    return Layout(printable_name(path.rstrip("/").rpartition("/")[2]), splits, pairs, classes)


def is_of_the_hub(name: str) -> bool:
    """Whether "owner/name" is asked of Hugging Face, as it could be there and is no folder of this machine."""
    path = name.partition(":")[0]
    return not os.path.exists(os.path.expanduser(path)) and _REPOSITORY.fullmatch(path) is not None


class Rows(Pairs):
    """The rows of a split: its first column of images, and either labels or captions."""

    def __init__(self, split: Any, where: str, captions: bool):
        image, label = _image_column(split, where), _column(split, LABELS)
        caption = _column(split, CAPTIONS)
        if captions and caption is None:
            raise DataError(where, f"has no column of captions ({', '.join(CAPTIONS)})")
        if not captions and label is None:
            raise UnlabelledError(where, f"has no column of labels ({', '.join(LABELS)})")
        self.where, self.image_column = where, image
        self.text_column: str = caption if captions else label  # type: ignore[assignment]
        self.captions, self._names = captions, _label_names(split)
        files = tuple(file["filename"] for file in split.cache_files)
        self.sources, self.places = (where,), files or (split._fingerprint,)
        self._rows = _undecoded(split.select_columns([image, self.text_column]), image)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        name, row = self.name(index), self._rows[index]
        image = row[self.image_column] or {}
        data = image.get("bytes") or (Path(image["path"]) if image.get("path") else None)
        if data is None:
            raise DataError(name, f"has no image in column {self.image_column!r}")
        text = row[self.text_column]
        return Pair(data, captions_of(text, name) if self.captions else (self._label(text, index),), name)

    def name(self, index: int) -> str:
        return f"{self.where}, row {index + 1}"

    def labels(self) -> list[str]:
        return [self._label(label, index) for index, label in enumerate(self._rows[self.text_column])]

    def _label(self, label: object, index: int) -> str:
        """A number as a numeral, where there are names for numbers; else a name."""
        if isinstance(label, int) and self._names:
            return str(label)
        return check_label(label, (), self.name(index))


def _image_column(split: Any, where: str) -> str:
    found = next((name for name, feature in split.features.items() if type(feature).__name__ == "Image"), None)
    if found is None:
        raise DataError(where, f"has no column of images; it has {', '.join(map(repr, list(split.features)[:12]))}")
    return found


def _column(split: Any, usual: Sequence[str]) -> str | None:
    known = {name.strip().lower(): name for name in split.features}
    return next((known[name] for name in usual if name in known), None)


def _label_names(split: Any) -> tuple[str, ...]:
    """The class names of a label column that holds numbers."""
    return tuple(getattr(split.features.get(_column(split, LABELS)), "names", None) or ())


def _undecoded(split: Any, image: str) -> Any:
    import datasets

    return split.cast_column(image, datasets.Image(decode=False))


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Whatever `datasets` raises leaves as a DataError of one line, and of its attempts nothing is said."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except SightlineError:
        raise
    except Exception as error:  # its own, the hub's, pyarrow's, the system's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(where, f"cannot be loaded ({reason})") from error
    finally:
        logger.setLevel(level)
