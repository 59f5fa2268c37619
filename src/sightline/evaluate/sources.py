"""What labels and captions are read from: the sources of training, but labels are never taken for captions."""

import os
from collections.abc import Sequence
from typing import Any

from sightline.data.folders import CaptionedFolder, ClassFolder
from sightline.data.pairs import Concat, Pairs
from sightline.data.sources import Source, open_pairs
from sightline.errors import DataError
from sightline.evaluate.labelled_shards import CaptionedShards, LabelledShards, UnlabelledError

_TEXTS = "has .txt files beside images, which are captions, and so no labels: to measure its classes, move those away"


def labelled_pairs(source: Source | Sequence[Source]) -> Pairs:
    """The pairs of a source that has labels. Of a folder of classes, images in none of them are left out, with a note.

    Raises:
        UnlabelledError: if it has no labels, and may have captions.
        DataError: as `open_pairs`.
        MissingExtraError: for Parquet without pyarrow.
    """
    pairs = open_pairs(source, labels_first=True, shards=LabelledShards)
    for part in _parts(pairs):
        if not _of_labels(part):
            wanting = _TEXTS if isinstance(part, CaptionedFolder) else LabelledShards.wanting
            raise UnlabelledError(", ".join(part.sources[:3]), wanting)
    parts = [_InClasses(part) if isinstance(part, ClassFolder) else part for part in _parts(pairs)]
    return parts[0] if len(parts) == 1 else Concat(parts)


def captioned_pairs(source: Source | Sequence[Source]) -> Pairs:
    """The pairs of a source that has captions.

    Raises:
        DataError: as `open_pairs`, or if it has labels and no captions.
        MissingExtraError: for Parquet without pyarrow.
    """
    pairs = open_pairs(source, shards=CaptionedShards)
    for part in _parts(pairs):
        if _of_labels(part):
            raise DataError(", ".join(part.sources[:3]), "has labels and no captions")
    return pairs


class _InClasses(ClassFolder):
    """A folder of classes without the images that lie in none of them."""

    def __init__(self, whole: ClassFolder):
        inside = [image for image in whole._images if os.sep in image]
        strays = [whole.name(i) for i, image in enumerate(whole._images) if os.sep not in image]
        super().__init__(whole.root, inside, [*whole.notes, *_told(strays)], whole.templates)


def _told(strays: list[str]) -> list[str]:
    """What there is to say of images that are in no class, if there are any."""
    if not strays:
        return []
    many = "1 image is" if len(strays) == 1 else f"{len(strays):,} images are"
    return [f"{many} left out, in no folder of a class: {strays[0]}{', …' if len(strays) > 1 else ''}"]


def _parts(pairs: Pairs) -> tuple[Pairs, ...]:
    return pairs.parts if isinstance(pairs, Concat) else (pairs,)


def _of_labels(pairs: Any) -> bool:
    """Whether it has labels, or columns for them, whatever is in these."""
    columns = getattr(pairs, "columns", None)  # of tables and Parquet
    return isinstance(pairs, ClassFolder | LabelledShards) or (columns is not None and columns.label is not None)
