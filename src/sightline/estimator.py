"""scikit-learn's protocol for settings, for estimators that need no scikit-learn."""

import inspect
from typing import Any, Self

import numpy as np

from sightline.errors import InvalidArgumentError


class Estimator:
    """The settings of an estimator are the arguments of its constructor, kept as they were given."""

    @classmethod
    def _settings(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings, by name."""
        return {name: getattr(self, name) for name in self._settings()}

    def set_params(self, **params: Any) -> Self:
        """Change settings.

        Raises:
            InvalidArgumentError: for a name that is none.
        """
        known = self._settings()
        for name in params:
            if name not in known:
                raise InvalidArgumentError(f"{type(self).__name__} has no setting {name!r}; it has {', '.join(known)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self


def share_of_right(predicted: np.ndarray, y: Any) -> float:
    """The share of predictions (n,) that are the labels `y`.

    Raises:
        InvalidArgumentError: if there is not one label for each.
    """
    labels = np.asarray(y)
    if labels.shape != predicted.shape:
        raise InvalidArgumentError(f"there are labels of shape {labels.shape} for {len(predicted):,} features")
    return float((predicted == labels).mean())


def classifier_tags(*, learns: bool, takes_text: bool = False) -> Any:
    """What scikit-learn's tools ask about a classifier.

    Args:
        learns: whether `fit` has to be called first, and with labels.
        takes_text: whether X may be strings, as paths are.
    """
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # type: ignore[import-untyped]

    return Tags(
        estimator_type="classifier",
        target_tags=TargetTags(required=learns),
        classifier_tags=ClassifierTags(),
        input_tags=InputTags(string=takes_text),
        requires_fit=learns,
    )
