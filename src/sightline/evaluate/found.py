"""What a task finds of a model on a data set, and the figures that all classifiers have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sightline.errors import InvalidArgumentError
from sightline.evaluate.accuracy import accuracy_of_scores
from sightline.evaluate.confusion import confusion_matrix
from sightline.evaluate.features import ImageFeatures
from sightline.evaluate.intervals import Result, of_mean, wilson
from sightline.evaluate.subject import Part, Subject

_CONFUSED = 10  # classes, and pairs of them
_TIMES = 3  # that one is taken for the other, at least: of fewer there is no habit to speak of
_NAMED = 3


class Found(NamedTuple):
    """What a task found.

    Attributes:
        results: the figures.
        table: what else a report draws, as JSON has it. Its "notes", if any, are what a reader should know beside.
        right: of each measured image whether it was right, (n,), NaN where it could not be read: what models are
            compared by. None of a task that has no such thing.
    """

    results: tuple[Result, ...]
    table: dict[str, Any]
    right: np.ndarray | None = None


def classified(subject: Subject, found: ImageFeatures, scores: np.ndarray, table: dict[str, Any]) -> Found:
    """Accuracy, and what each class is and is taken for."""
    right = np.full(len(subject.measured), np.nan)
    right[found.rows] = scores.argmax(axis=1) == found.labels
    results = tuple(accuracy_of_scores(scores, found.labels, seed=subject.settings.seed))
    classes = subject.data.class_names
    return Found(results, {**table, **_by_class(classes, scores, found.labels)}, right)


def untaught(subject: Subject) -> list[str]:
    """What there is to say of the classes without a training image, if there are any."""
    names, training = subject.data.class_names, subject.training
    assert training is not None
    images = np.bincount(subject.training_features.labels, minlength=len(names))
    if images.all():
        return []
    missing = np.flatnonzero(images == 0)
    measured = int(np.isin(subject.features.labels, missing).sum())
    cause = ""
    if isinstance(training, Part) and np.isin(missing, training.whole.labels).any():
        cause = f" with --limit {subject.settings.limit}"
    rest = f"their {measured:,} measured images count as wrong" if measured else "no measured image is of them either"
    many = f"{len(missing):,} of {len(names):,} classes {'has' if len(missing) == 1 else 'have'}"
    return [f"{many} no training image{cause} ({some([names[i] for i in missing])}): {rest}"]


def check_taught(subject: Subject, *, measured: bool = False) -> None:
    """That there is something to learn from the training images.

    Args:
        measured: whether a class of the measured images has to be among them.

    Raises:
        InvalidArgumentError: if not, with the names of the classes.
    """
    names, taught = subject.data.class_names, np.unique(subject.training_features.labels)
    if len(taught) < 2:
        raise InvalidArgumentError(
            f"all labels are one class ({names[taught[0]]!r:.40}): there is nothing to tell apart"
        )
    present = np.unique(subject.features.labels)
    if measured and not np.isin(present, taught).any():
        theirs = some([names[i] for i in present])
        raise InvalidArgumentError(f"no class of the measured images ({theirs}) is among those to learn")


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(f"{name!r:.40}" for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None


def share(right: np.ndarray, seed: int) -> list[float | None]:
    """Value, low and high."""
    return list(of_mean("", right, seed=seed)[1:])


def _by_class(classes: tuple[str, ...], scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How many images each class has and how many are right, and which classes are taken for which most often."""
    matrix, n = confusion_matrix(scores, labels), len(classes)
    pairs = np.argwhere((matrix >= _TIMES) & ~np.eye(n, dtype=bool))
    images, of_class = matrix[tuple(pairs.T)], matrix.sum(axis=1)[pairs[:, 0]]
    low, high = wilson(images / of_class, of_class)
    surest = np.argsort(-low, kind="stable")[:_CONFUSED]
    confused = [
        [*pairs[i].tolist(), int(images[i]), *map(float, (images[i] / of_class[i], low[i], high[i]))] for i in surest
    ]
    worst = dict.fromkeys(pairs[surest].ravel().tolist())
    shown = sorted([*worst][:_CONFUSED] if n > _CONFUSED else range(n))
    return {
        "classes": list(classes),
        "images": matrix.sum(axis=1).tolist(),
        "right": matrix.diagonal().tolist(),
        "confused": confused,
        "matrix": {"classes": shown, "images": matrix[np.ix_(shown, shown)].tolist()},
    }
