"""Where the files of a data set lie: which splits there are, and what each is read from.

    cifar10/train.parquet, test.parquet             a file for each split: Parquet, CSV, TSV, JSONL or tar
    cifar10/data/test-00000-of-00002.parquet, …     several, as Hugging Face writes them
    birds/train/wren/1.jpg, birds/val/wren/2.jpg    a folder of classes for each split
    birds/wren/1.jpg                                a folder of classes, which is one split, "test"
    wds_cifar10/test/0.tar, 1.tar, nshards.txt      CLIP_benchmark's, with classnames.txt and others beside

Folders with the names of splits are splits, unless they are classes among others: each with images in it and none in
folders in it, and beside them a folder of another name that has images in the same way.

In the folder may also lie `classnames.txt`, a class a line in the order of the numbers; `dataset_type.txt`, which says
"retrieval" of a set with captions; and `zeroshot_classification_templates.txt`, with `{c}` for the class.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sightline.data.pairs import Pairs, captions_of
from sightline.data.reading import read_file
from sightline.errors import DataError, InvalidArgumentError
from sightline.evaluate.labelled import ClassList
from sightline.evaluate.sources import captioned_pairs, labelled_pairs
from sightline.images import SUFFIXES, find_images, printable_name
from sightline.templates import template_set

SPLITS = ("train", "val", "valid", "validation", "dev", "test")
CLASS_NAMES, TEMPLATES, KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"

_SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".tar")
_SHARDED = (".parquet", ".tar")
_MOST_BYTES = 2**22  # of a text file beside the data


@dataclass(frozen=True)
class Layout:
    """A data set's files.

    Attributes:
        splits: those that are there.
        pairs: opens a split: (split, whether its captions are wanted and not its labels) to pairs.
        classes, templates: what the folder says of them, if anything.
        captions: whether it is said to be for retrieval.
        named: whether folders or files have the names of splits; otherwise it is one split that has none.
        notes: what lies beside the splits and is not read.
    """

    name: str
    splits: tuple[str, ...]
    pairs: Callable[[str, bool], Pairs]
    classes: ClassList | None = None
    templates: tuple[str, ...] | None = None
    captions: bool = False
    named: bool = True
    notes: tuple[str, ...] = ()


def layout_of(place: Path, name: str) -> Layout:
    """The layout of a folder, or of a file, which is one split.

    Raises:
        DataError: if it cannot be read, or says something that is damaged.
    """
    if not place.is_dir():
        return Layout(name, ("test",), lambda split, captions: _opened([os.fspath(place)], captions), named=False)
    try:
        entries = sorted(os.listdir(place))
        named = [split for split in SPLITS if split in entries and (place / split).is_dir()]
        folders = [] if _are_classes(place, named, entries) else named
        found = {split: _sources(place, entries, folders, split) for split in SPLITS}
        parts = {split: sources[0] for split, sources in found.items() if sources}
        notes = _second_sources(place, found) + _not_read(place, entries, parts)
    except OSError as error:
        raise DataError(printable_name(place), f"cannot be listed ({error.strerror})") from error
    files = parts or {"test": _shards(place) or [os.fspath(place)]}

    def pairs(split: str, captions: bool) -> Pairs:
        return _opened(files[split], captions)

    return Layout(name, tuple(files), pairs, *said(place), named=bool(parts), notes=notes)


def _opened(sources: list[str], captions: bool) -> Pairs:
    return captioned_pairs(sources) if captions else labelled_pairs(sources)


def said(folder: Path) -> tuple[ClassList | None, tuple[str, ...] | None, bool]:
    """The classes and templates that a folder's own files list, and whether it is for retrieval.

    Raises:
        DataError: if one of these files is damaged.
    """
    kind = _lines(folder / KIND)
    if kind not in (None, ["retrieval"], ["classification"]):
        stated = " ".join(kind)  # such as "multilabel"
        raise DataError(printable_name(folder / KIND), f"says {stated!r:.40}; read are classification and retrieval")
    names, templates = _lines(folder / CLASS_NAMES), _lines(folder / TEMPLATES)
    if names is not None and len(names) < 2:
        raise DataError(
            printable_name(folder / CLASS_NAMES), f"names {len(names)} class: there is nothing to tell apart"
        )
    classes = None if names is None else ClassList.numbered(names, f"correct it, or {CLASS_NAMES}")
    return classes, None if templates is None else _templates(templates, folder), kind == ["retrieval"]


def _sources(place: Path, entries: list[str], folders: list[str], split: str) -> list[list[str]]:
    """All that a split can be read from, each a list of paths: the first is read. None if it is not there."""
    folder = place / split
    found = [_shards(folder) or [os.fspath(folder)]] if split in folders else []
    found += [[os.fspath(place / (split + suffix))] for suffix in _SUFFIXES if split + suffix in entries]
    data = place / "data"
    numbered = re.compile(rf"{split}-\d+(-of-\d+)?({'|'.join(map(re.escape, _SHARDED))})")
    for where, names in ((place, entries), (data, sorted(os.listdir(data)) if data.is_dir() else [])):
        if shards := [os.fspath(where / name) for name in names if numbered.fullmatch(name)]:
            found.append(shards)
    return found


def _second_sources(place: Path, found: dict[str, list[list[str]]]) -> tuple[str, ...]:
    """What there is to say of splits that lie there twice, as a folder and as a file, say."""

    def shown(source: list[str]) -> str:
        return f"{printable_name(os.path.relpath(source[0], place))!r:.60}"

    return tuple(
        f"not read: {shown(other)}, as the split {split!r} is read from {shown(sources[0])}"
        for split, sources in found.items()
        for other in sources[1:]
    )


def _are_classes(place: Path, named: list[str], entries: list[str]) -> bool:
    """Whether the folders that have the names of splits are classes among others, one of trains beside one of buses."""
    others = (place / name for name in entries if name not in SPLITS and not name.startswith("."))
    return (
        bool(named)
        and all(_holds_images_alone(place / name) for name in named)
        and any(map(_holds_images_alone, others))
    )


def _holds_images_alone(folder: Path) -> bool:
    """Whether it is a folder with images in it, without captions beside them, and with none in folders in it."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    images = [name for name, inside in is_folder.items() if not inside and _is_image(name)]
    captioned = any(os.path.splitext(name)[0] + ".txt" in is_folder for name in images)
    within = (folder / name for name, inside in is_folder.items() if inside)
    return bool(images) and not captioned and not any(map(_has_images, within))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _has_images(folder: Path) -> bool:
    """Whether there is an image in a folder, or in one in it."""
    return next(find_images(folder, on_error=lambda error: None), None) is not None


def _not_read(place: Path, entries: list[str], parts: dict[str, list[str]]) -> tuple[str, ...]:
    """What there is to say of images beside splits that are all folders of images, if there are any.

    Beside tables lie the images that these name.
    """
    if not parts or any(found != [os.fspath(place / split)] for split, found in parts.items()):
        return ()
    others = [name for name in entries if name not in SPLITS and not name.startswith(".")]
    beside = [name for name in others if (_has_images(place / name) if (place / name).is_dir() else _is_image(name))]
    names = ", ".join(f"{printable_name(name)!r:.60}" for name in beside[:3]) + (", …" if len(beside) > 3 else "")
    return (f"not read, as it has the name of no split ({', '.join(SPLITS)}): {names}",) if beside else ()


def _shards(folder: Path) -> list[str]:
    """The tar or Parquet files in the folder of a split, by their numbers.

    Raises:
        DataError: if there are not as many as the folder says.
    """
    files = [name for name in os.listdir(folder) if name.lower().endswith(_SHARDED)]
    files.sort(
        key=lambda name: [(len(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    )
    if (count := _lines(folder / "nshards.txt")) is not None and files and count != [str(len(files))]:
        raise DataError(
            printable_name(folder), f"has {len(files):,} shards, and nshards.txt says {' '.join(count):.20}"
        )
    return [os.fspath(folder / name) for name in files]


def _templates(lines: list[str], folder: Path) -> tuple[str, ...]:
    try:
        return template_set([line.replace("{c}", "{}") for line in lines]).templates
    except InvalidArgumentError as error:
        raise DataError(printable_name(folder / TEMPLATES), str(error).replace("{}", "{c}")) from error


def _lines(path: Path) -> list[str] | None:
    """The lines of a text file that say something; None if there is no such file."""
    if not os.path.lexists(path):
        return None
    where = printable_name(path)
    text = read_file(path, _MOST_BYTES).decode("utf-8-sig", "surrogateescape")
    return [captions_of(line, where)[0] for line in text.splitlines() if line.strip()]
