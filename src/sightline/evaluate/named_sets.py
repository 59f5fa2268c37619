"""What is known of published data sets: class names, prompts, the usual figure, licence, where they are to be had.

The facts are in `named_sets.json` and `imagenet_classes.json`, with their sources. No images come with Sightline.
"""

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from sightline.evaluate.labelled import ClassList
from sightline.templates import class_names, class_synonyms

_IMAGENET = "imagenet"
_REMEDY = "correct it, or name the data by its path to take its labels as they are"


@dataclass(frozen=True)
class Description:
    """A published data set.

    Attributes:
        names: all that it is called, `name` first.
        classes: None where no list is published; the labels of the data are then the class names.
        templates: the name of a template set.
        measure: the figure that is usually given of it.
        how_to_get: one line; what is asked for is to be put into the data folder under `name`.
        repository: of Hugging Face, in CLIP_benchmark's layout, if there is one.
        imagenet_numbers: for each class those of ImageNet's 1,000 that it stands for, if it is a part of these.
        optional: classes that common copies lack.
    """

    name: str
    title: str
    names: tuple[str, ...]
    classes: ClassList | None
    templates: str
    measure: str
    licence: str | None
    how_to_get: str
    repository: str | None
    captions: bool
    imagenet_numbers: tuple[tuple[int, ...], ...]
    optional: tuple[str, ...]


def available_data_sets() -> tuple[str, ...]:
    """The names of the data sets that are described, in alphabetical order, without their aliases."""
    return tuple(sorted(_described()))


def describe(name: str) -> Description | None:
    """What is known of the data set of this name or alias; case, `-`, `_` and a `wds_` before it do not matter."""
    known = _names().get(same_name(name))
    return None if known is None else _description(known)


def same_name(name: str) -> str:
    """A name without what its spellings differ in: CIFAR-10, cifar_10 and wds_vtab-cifar10 are one."""
    plain = re.sub(r"^(wds[-_])?(vtab[-_])?", "", name.strip().lower())
    return re.sub(r"[-_ ]", "", plain) or name


def like(name: str) -> str:
    """The end of an error: which names are like this one."""
    close = get_close_matches(same_name(name), _names(), n=1, cutoff=0.75)
    return f"; did you mean {_names()[close[0]]!r}?" if close else f"; described are {', '.join(available_data_sets())}"


@cache
def _description(name: str) -> Description:
    entry = _described()[name]
    numbers = _imagenet_numbers(name, entry)
    return Description(
        name=name,
        title=entry["title"],
        names=(name, *entry.get("aliases", ())),
        classes=_classes(name, entry, numbers),
        templates=entry["templates"],
        measure=entry.get("measure", "top-1"),
        licence=entry.get("licence"),
        how_to_get=entry["how_to_get"],
        repository=entry.get("repository"),
        captions=entry.get("captions", False),
        imagenet_numbers=numbers,
        optional=tuple(entry.get("optional", ())),
    )


def _classes(name: str, entry: dict[str, Any], numbers: tuple[tuple[int, ...], ...]) -> ClassList | None:
    if name == "objectnet":
        return _objectnet()
    if numbers:
        every, wordnet = class_names(_IMAGENET), _imagenet()["wordnet_ids"]
        whole = len(numbers) == len(every)
        spellings = {wordnet[number]: place for place, (number,) in enumerate(numbers)}
        # Where there are all, a number is one of ImageNet's, as in V2; where there are some it could be either.
        spellings |= {str(number): number for number in range(len(every))} if whole else {}
        return ClassList(tuple(every[number] for (number,) in numbers), spellings, remedy=_REMEDY)
    if entry.get("classes") is None:
        return None
    known = class_synonyms(entry["classes"])
    names = tuple(each[0] for each in known)
    spellings = {other: i for i, each in enumerate(known) for other in each[1:]}
    spellings |= {label: names.index(meant) for label, meant in entry.get("labels", {}).items()}
    spellings |= {str(i): i for i in range(len(names))} if entry.get("numbered", True) else {}
    return ClassList(names, spellings, remedy=_REMEDY)


def _objectnet() -> ClassList:
    """The classes that ImageNet has too, which are measured; images of the other 200 are left out."""
    names = tuple(_imagenet()["objectnet"])
    folders = {re.sub(r"[^a-z0-9]+", " ", name.replace("'", "")).strip(): i for i, name in enumerate(names)}
    folders |= {folder: names.index(name) for folder, name in _imagenet()["objectnet_folders"].items()}
    return ClassList(names, folders, others_left_out=True)


def _imagenet_numbers(name: str, entry: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    if name == "objectnet":
        return tuple(map(tuple, _imagenet()["objectnet"].values()))
    if entry.get("classes") != _IMAGENET:
        return ()
    return tuple((number,) for number in _imagenet()["subsets"].get(name, range(len(_imagenet()["wordnet_ids"]))))


@cache
def _names() -> dict[str, str]:
    """Every name and alias, in the form of `same_name`, and the name that it stands for."""
    return {
        same_name(alias): name
        for name, entry in _described().items()
        for alias in (name, *entry.get("aliases", ()), (entry.get("repository") or name).rpartition("/")[2])
    }


@cache
def _described() -> dict[str, dict[str, Any]]:
    return _read("named_sets.json")["sets"]


@cache
def _imagenet() -> dict[str, Any]:
    return _read("imagenet_classes.json")


def _read(name: str) -> dict[str, Any]:
    return json.loads(files("sightline.evaluate").joinpath(name).read_text("utf-8"))
