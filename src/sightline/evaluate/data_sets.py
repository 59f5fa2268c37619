"""Data sets to measure on: their splits, class names and prompts, from a path, a name or Hugging Face."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sightline.data.pairs import Pairs
from sightline.errors import DataError
from sightline.evaluate.fetching import fetched
from sightline.evaluate.labelled import CaptionedImages, ClassList, LabelledImages, folded, open_labelled
from sightline.evaluate.layouts import SPLITS, Layout, layout_of
from sightline.evaluate.named_sets import Description, available_data_sets, describe, like, same_name
from sightline.evaluate.sources import UnlabelledError
from sightline.images import printable_name

_HUGGING_FACE = "hf:"
_SUFFIX = re.compile(r"\.(parquet|pq|csv|tsv|jsonl|ndjson|tar)$", re.IGNORECASE)
_STRANGERS = "AUROC of its images as strangers"
_VALIDATION = ("val", "valid", "validation", "dev")
_MEASURED = ("test", *_VALIDATION)

__all__ = ["DataSet", "available_data_sets", "open_captioned", "open_data_set", "open_measurable", "open_split"]


@dataclass(frozen=True)
class DataSet:
    """A data set for classification.

    Attributes:
        name: what tables show, as "cifar10".
        splits: those that are there, as ("train", "test").
        class_names: in the order of the label numbers, the same for every split; a split need not show all.
        templates: what `template_set` takes.
        licence, how_to_get: one line each, where they are known.
        measure: the figure that is usually given: "top-1", or as in the paper's table 9 "mean per class" and others.
        imagenet_numbers: of a set with some of ImageNet's 1,000 classes, which these are, for each class one or more.
        notes: what a reader of its figures should know.
        imagenet: ImageNet itself, where a set of its classes is measured beside it.
    """

    name: str
    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: str | tuple[str, ...] = "plain"
    licence: str | None = None
    how_to_get: str | None = None
    measure: str = "top-1"
    imagenet_numbers: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    imagenet: "DataSet | None" = None
    opener: Callable[[str], LabelledImages] = field(default=lambda split: None, repr=False, compare=False)  # type: ignore[assignment]

    @property
    def measured(self) -> str:
        """The split to measure on: test, otherwise that for validation, otherwise the only one.

        Raises:
            DataError: if there are splits of other names alone.
        """
        for split in _MEASURED:
            if split in self.splits:
                return split
        if len(self.splits) == 1:
            return self.splits[0]
        raise DataError(self.name, f"has no split to measure on: it has {', '.join(self.splits)}, needed is a 'test'")

    @property
    def of_strangers(self) -> bool:
        """Whether its images are of none of its classes, as those of ImageNet-O."""
        return self.measure == _STRANGERS

    @property
    def training(self) -> str | None:
        """The split to learn from, if it is there; None if it is the only one, and so the one that is measured."""
        return "train" if "train" in self.splits and len(self.splits) > 1 else None

    def open(self, split: str) -> LabelledImages:
        """The labelled images of a split.

        Raises:
            DataError: if there is no such split, if it is damaged, or if it has a label that is of no class.
        """
        if split not in self.splits:
            raise DataError(self.name, f"has no split {split!r:.40}; it has {', '.join(self.splits)}")
        return self.opener(split)


def open_data_set(name: str | os.PathLike[str], data_folder: Path | None = None) -> DataSet:
    """A data set by its name or path:

    - a described name (`available_data_sets`), found in `data_folder` (by default the current folder) under that name,
      or else fetched from Hugging Face, where CLIP_benchmark keeps copies of most;
    - the name of any folder in `data_folder`;
    - `hf:owner/name`, or `hf:owner/name:configuration`, a data set of Hugging Face (extra `[datasets]`);
    - a path: a folder with a sub-folder or a file (Parquet, CSV, JSONL, tar) for each split, a folder of classes, a
      folder as CLIP_benchmark's, or a file, which is one split, "test".

    A path is taken as it is, with the labels that it has; a described name brings class names and prompts.

    Raises:
        DataError: naming what is missing or damaged, and how to get it.
        DownloadError: if it is not here, and cannot be fetched.
        MissingExtraError: for Parquet without pyarrow, or `hf:` without `datasets`.
    """
    description, layout = _found(os.fsdecode(name), data_folder)
    if layout.captions:
        raise UnlabelledError(layout.name, "has captions and no classes: it is for retrieval")
    return _data_set(layout, description)


def open_measurable(name: str | os.PathLike[str], data_folder: Path | None = None) -> DataSet:
    """A data set with classes, as `open_data_set` opens it; or one with captions, which then has no class names.

    Raises:
        DataError: if it is neither, saying why it has no classes.
        DownloadError, MissingExtraError: as `open_data_set`.
    """
    try:
        return open_data_set(name, data_folder)
    except UnlabelledError as error:
        try:
            return _captioned_set(_found(os.fsdecode(name), data_folder)[1])
        except DataError:
            raise error from None


def open_captioned(name: str | os.PathLike[str], data_folder: Path | None = None) -> CaptionedImages:
    """The images that are to be measured of a data set with captions, found as `open_data_set` finds one.

    Raises:
        DataError: naming what is missing or damaged, and how to get it.
        DownloadError: if it is not here, and cannot be fetched.
        MissingExtraError: for Parquet without pyarrow.
    """
    data = _captioned_set(_found(os.fsdecode(name), data_folder)[1])
    return data.open(data.measured)  # type: ignore[return-value]


def open_split(
    name: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
) -> tuple[LabelledImages, str | None]:
    """The labelled images of a path: of a folder with splits, those of the one that is wanted; else all that it has.

    And what that split is called, if there are any.

    Args:
        split: "train", "val" or "test".
        class_names: of other images, which these are to be told by; a folder's own `classnames.txt` goes before them.

    Raises:
        DataError: as `open_labelled`; or if there are splits and not the one that is wanted.
        MissingExtraError: for Parquet without pyarrow.
    """
    place = Path(os.path.expanduser(os.fsdecode(name)))
    layout = layout_of(place, printable_name(_short(place))) if place.is_dir() else None
    if layout is None or not layout.named:
        return open_labelled(name, class_names), None
    wanted = _VALIDATION if split == "val" else (split,)
    found = next((each for each in wanted if each in layout.splits), None)
    if found is None:
        raise DataError(
            printable_name(place), f"has no split {split!r}; it has {', '.join(layout.splits)}: name the one you mean"
        )
    return LabelledImages(layout.pairs(found, False), _title(layout, found), layout.classes or class_names), found


def _found(name: str, data_folder: Path | None) -> tuple[Description | None, Layout]:
    """What is known of a data set, and where its files are."""
    if name.startswith(_HUGGING_FACE):
        from sightline.evaluate.hugging_face import hugging_face_layout

        return None, hugging_face_layout(name.removeprefix(_HUGGING_FACE))
    folder = Path(os.path.expanduser(data_folder or "."))
    description = describe(name)
    if description is not None:
        if (place := _place(folder, description.names)) is not None:
            return description, layout_of(place, description.name)
        if description.repository is None:
            raise DataError(
                description.name, f"is not in {printable_name(folder)}; to get it: {description.how_to_get}"
            )
        return description, fetched(description.name, description.repository, description.how_to_get)
    path = Path(os.path.expanduser(name))
    for place in (path, folder / path):
        if name.strip() and os.path.lexists(place):
            return None, layout_of(place, printable_name(_short(place)))
    raise DataError(printable_name(name), f"is no path and no described data set{like(name)}")


def _place(folder: Path, names: Iterable[str]) -> Path | None:
    """The entry of a data folder that has one of these names: `cifar10`, `CIFAR-10`, `cifar10.tar`, `wds_cifar10`."""
    wanted = {same_name(name) for name in names}
    try:
        entries = sorted(os.listdir(folder), key=lambda entry: (entry not in wanted, entry))
    except (OSError, ValueError):
        return None
    return next((folder / entry for entry in entries if same_name(_SUFFIX.sub("", entry)) in wanted), None)


def _data_set(layout: Layout, description: Description | None) -> DataSet:
    classes = layout.classes or (description.classes if description else None)
    known: dict[str, Pairs] = {}
    notes = _notes(layout)
    if classes is None:  # then what the splits say together
        known = {split: layout.pairs(split, False) for split in layout.splits}
        classes = ClassList(tuple(sorted({label for pairs in known.values() for label in pairs.labels()})))
    elif description and description.optional:
        known = {split: layout.pairs(split, False) for split in layout.splits}
        classes, absent = _shown(classes, description, known)
        notes += absent
    templates = layout.templates or (description.templates if description else "plain")

    def opened(split: str) -> LabelledImages:
        pairs = known.get(split) or layout.pairs(split, False)
        return LabelledImages(pairs, _title(layout, split), classes)

    if description is None:
        return DataSet(layout.name, layout.splits, classes.names, templates, notes=notes, opener=opened)
    return DataSet(
        description.name,
        layout.splits,
        classes.names,
        templates,
        description.licence,
        description.how_to_get,
        description.measure,
        _imagenet_numbers(classes, description),
        notes,
        opener=opened,
    )


def _captioned_set(layout: Layout) -> DataSet:
    """The images that are measured of a data set with captions."""
    split = DataSet(layout.name, layout.splits, ()).measured
    images = CaptionedImages(layout.pairs(split, True), _title(layout, split))
    return DataSet(layout.name, (split,), (), notes=_notes(layout), opener=lambda split: images)  # type: ignore[arg-type,return-value]


def _notes(layout: Layout) -> tuple[str, ...]:
    """What a reader should know of the splits that are there."""
    if layout.splits != ("train",):
        return layout.notes
    return (*layout.notes, "what is measured is its training split, as there is no other: nothing is learned from it")


def _shown(classes: ClassList, description: Description, known: dict[str, Pairs]) -> tuple[ClassList, tuple[str, ...]]:
    """The classes without those that common copies lack and this one does, and what there is to say of it."""
    seen = {int(i) for pairs in known.values() for i in classes.numbers(pairs.labels(), pairs, description.name)}
    optional = {folded(name) for name in description.optional}
    absent = [name for i, name in enumerate(classes.names) if i not in seen and folded(name) in optional]
    if not absent:
        return classes, ()
    names = ", ".join(map(repr, absent))
    many = f"{len(absent)} of {len(classes.names):,} classes {'is' if len(absent) == 1 else 'are'}"
    return classes.without(absent), (f"{many} left off the list, as this copy has no image of it: {names}",)


def _imagenet_numbers(classes: ClassList, description: Description) -> tuple[tuple[int, ...], ...]:
    """Those of the published classes, in the order of a copy's own list; none if that has other names."""
    if description.classes is None or classes.names == description.classes.names:
        return description.imagenet_numbers
    known = dict(zip(map(folded, description.classes.names), description.imagenet_numbers, strict=False))
    numbers = [known.get(folded(name), ()) for name in classes.names]
    return tuple(numbers) if all(numbers) and len(known) == len(numbers) else ()


def _title(layout: Layout, split: str) -> str:
    return f"{layout.name}/{split}"


def _short(path: Path) -> str:
    """What to call a path: its last part without a suffix; of a file with the name of a split, its folder's."""
    whole = Path(os.path.abspath(path))
    if whole.is_dir():
        return whole.name
    return whole.parent.name if whole.stem in SPLITS else whole.stem
