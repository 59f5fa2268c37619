"""Prompt templates and class names, as data.

A template is a sentence with one `{}`, where the label goes: "a photo of a {}." A template set is some of
them, whose text features are averaged for each label (paper section 3.1.4). The published sets are JSON files
in `templates_data/`; each names its source and licence.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from sightline.errors import InvalidArgumentError


@dataclass(frozen=True)
class TemplateSet:
    """Templates under a name. Each template holds exactly one `{}` and no other brace."""

    name: str
    templates: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.templates:
            raise InvalidArgumentError("an empty list of templates: give at least one, such as 'a photo of a {}.'")
        for position, template in enumerate(self.templates, start=1):
            _check_template(template, position)


def available_template_sets() -> tuple[str, ...]:
    """The names of the published template sets, in alphabetical order, without their aliases."""
    return tuple(sorted(_published()))


def template_set(templates: str | Sequence[str] | TemplateSet) -> TemplateSet:
    """The template set that `templates` means: a name or an alias ("imagenet", "pets"), one template
    ("a photo of a {}."), or a sequence of templates, where the name of a set stands for all of its templates.

    Case, hyphens and spaces in a name do not matter. InvalidArgumentError for anything else.
    """
    if isinstance(templates, TemplateSet):
        return templates
    if isinstance(templates, str):
        # A brace says that a template was meant, so that "a {name}" is told about braces, not about names.
        return _given((templates,)) if "{" in templates or "}" in templates else _named(_canonical(templates))
    if isinstance(templates, Sequence) and not isinstance(templates, bytes | bytearray):
        return _given(tuple(template for given in templates for template in _each(given)))
    raise InvalidArgumentError(
        f"templates must be a name, a template or a list of templates, not {type(templates).__name__}"
    )


def fill(templates: str | Sequence[str] | TemplateSet, label: str) -> list[str]:
    """`label` put into each template. The label is plain text: braces in it stay as they are."""
    if not isinstance(label, str):
        raise InvalidArgumentError(f"a label must be a string, not {type(label).__name__}")
    return [template.replace("{}", label) for template in template_set(templates).templates]


def class_names(name: str) -> tuple[str, ...]:
    """The published class names of a data set ("imagenet", "pets"), in the published order.

    That is the data set's own label order for most sets, ImageNet among them, but not for all: `oxford_pets`,
    `eurosat`, `voc2007` and `clevr_counts` differ, so match those by name. ImageNet's list has "missile" and
    "sunglasses" twice, as published. A class published with several names (`fer2013`) gives its first;
    `class_synonyms` gives all. InvalidArgumentError where no class names are published.
    """
    return tuple(names[0] for names in class_synonyms(name))


@cache
def class_synonyms(name: str) -> tuple[tuple[str, ...], ...]:
    """All published names of each class of a data set: one for most, more for some classes of `fer2013`."""
    sets = _published()
    known = _canonical(name)
    if known not in sets or "class_names" not in sets[known]:
        have = ", ".join(sorted(key for key, entry in sets.items() if "class_names" in entry))
        raise InvalidArgumentError(f"no class names for {name!r}: there are some for {have}")
    return tuple((names,) if isinstance(names, str) else tuple(names) for names in sets[known]["class_names"])


@cache
def _named(name: str) -> TemplateSet:
    entry = _published().get(name)
    if entry is None:
        known = ", ".join(available_template_sets())
        raise InvalidArgumentError(
            f"no template set {name!r}: use one of {known}, or a template of your own with exactly one {{}}"
        )
    return TemplateSet(name, tuple(entry["templates"]), entry["source"])


def _each(given: str) -> tuple[str, ...]:
    name = _canonical(given) if isinstance(given, str) else None
    return _named(name).templates if name in _published() else (given,)


def _given(templates: tuple[str, ...]) -> TemplateSet:
    return TemplateSet("custom", templates, "given by the caller")


def _check_template(template: str, position: int) -> None:
    if not isinstance(template, str):
        raise InvalidArgumentError(f"template {position} must be a string, not {type(template).__name__}")
    before, slot, after = template.partition("{}")
    if not slot or any(brace in before + after for brace in "{}"):
        raise InvalidArgumentError(
            f"template {template!r} needs exactly one {{}}, where the label goes, and no other brace"
        )


def _canonical(name: str) -> str:
    """The name of the set that a name or an alias means; an unknown name comes back as it was written."""
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    return _aliases().get(key, name)


@cache
def _aliases() -> dict[str, str]:
    """Every name and alias, and the name that it stands for."""
    return {alias: name for name, entry in _published().items() for alias in (name, *entry["aliases"])}


@cache
def _published() -> dict[str, dict[str, Any]]:
    """All data files as one: a set's name to its source, aliases, templates and, if any, class names."""
    sets: dict[str, dict[str, Any]] = {}
    for file in files("sightline").joinpath("templates_data").iterdir():
        if file.name.endswith(".json"):
            sets.update(json.loads(file.read_text(encoding="utf-8"))["sets"])
    return sets
