"""Class names put into templates: the captions of images that only have a label."""

from collections.abc import Sequence
from functools import lru_cache

from sightline.data.pairs import captions_of
from sightline.errors import DataError
from sightline.templates import TemplateSet, fill


@lru_cache(maxsize=4096)
def label_captions(templates: TemplateSet, label: str, synonyms: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every template with the label, and with each synonym.

    The label stands there as often as all synonyms together, so that half of the captions drawn have it.
    """
    others = [name for name in synonyms if name.strip() and name != label]
    names = [label] * max(1, len(others)) + others
    return tuple(caption for name in names for caption in fill(templates, name))


def check_label(label: object, names: Sequence[str], where: str) -> str:
    """A label as text: itself, or of a number the name that it stands for.

    Raises:
        DataError: if it is missing, empty or no text, or a number without a name.
    """
    if isinstance(label, int) and 0 <= label < len(names):
        label = names[label]
    if label is None or (isinstance(label, str) and not label.strip()):
        raise DataError(where, "has no label")
    if not isinstance(label, str):
        raise DataError(where, f"has {label!r:.40} for a label, which is no name")
    return captions_of(label, where)[0]
