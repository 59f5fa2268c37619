"""A linear probe: logistic regression on frozen features (paper section 3.2 and appendix A.3)."""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sightline.classifier_file import model_of, read_classifier, write_classifier
from sightline.errors import CheckpointError, InvalidArgumentError
from sightline.estimator import Estimator, classifier_tags, share_of_right
from sightline.feature_arrays import check_features, check_labels, check_same_classes, rows_by_class

if TYPE_CHECKING:
    import torch

    from sightline.encoder import Encoder
    from sightline.logistic_regression import LogisticRegression

_VALIDATION = 5  # one image of each class in so many, where the caller names no validation part
_PER_DECADE = 8
_FIRST = range(-6 * _PER_DECADE, 6 * _PER_DECADE + 1, 2 * _PER_DECADE)  # C = 1e-6, 1e-4 … 1e6, in eighths of decades


class _Tried(NamedTuple):
    """A strength and how it did on the validation part; the loss decides between equal accuracies."""

    accuracy: float
    negative_loss: float
    C: float
    coef: "torch.Tensor"
    bias: "torch.Tensor"


class LinearProbe(Estimator):
    """Multinomial logistic regression by L-BFGS, a scikit-learn estimator without needing scikit-learn.

    At a given `C` it is scikit-learn's `LogisticRegression(C=C)`; C = 1 / λ, where λ is the paper's strength of the L2
    penalty. What it computes in is float64 for features in float64, and else float32, with sums in float64.

    Args:
        C: one value; or several, of which the best on a validation part is taken; or None, for the paper's sweep: 1e-6
            to 1e6 in eighths of a decade, by halving the interval around the best of 1e-6, 1e-4 … 1e6.
        max_iter: at most so many iterations for each value.
        tol: a fit ends when it could gain less than this share of its loss.
        random_state: the seed by which the validation part is drawn.
        device: where it is fitted; a CUDA device if there is one, else the CPU.

    Attributes, in scikit-learn's words:
        classes_: the distinct labels, sorted, (n_classes,).
        coef_: (n_classes, embed_dim), or for two classes (1, embed_dim), for the second of them.
        intercept_: (n_classes,), or (1,).
        C_: the strength that was taken.
        sweep_: every (C, accuracy on the validation part) that was tried, by C; empty if one C was given.
        n_iter_: iterations of the last fit.
        n_features_in_: embed_dim.
    """

    def __init__(
        self,
        C: float | Sequence[float] | None = None,
        *,
        max_iter: int = 1000,
        tol: float = 1e-6,
        random_state: int | None = 0,
        device: "str | torch.device | None" = None,
    ):
        self.C = C
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> "LinearProbe":
        """Fit to features (n, embed_dim) and labels (n,).

        A sweep fits to all but the validation part, chooses, and fits to both together, as the paper does.

        Args:
            validation: features and labels to choose C on; else one image in five of each class is set aside.

        Raises:
            InvalidArgumentError: for features that are no finite numbers, labels that do not match them, one class
                alone, or too few images of each class to set any aside.
        """
        values = self.values_to_try(has_validation=validation is not None)
        features = check_features(X)
        classes, numbers = check_labels(y, len(features))
        if len(classes) < 2:
            raise InvalidArgumentError(
                f"all labels are one class ({classes.tolist()[0]!r}): there is nothing to tell apart"
            )
        self.classes_, self.n_features_in_ = classes, features.shape[1]
        self.sweep_: tuple[tuple[float, float], ...] = ()
        if values is not None and len(values) == 1:
            self.C_, start = values[0], None
        else:
            if validation is not None:
                held_out = self._check_validation(validation)
                training = features, numbers
                features = np.concatenate([features, held_out[0].astype(features.dtype)])
                numbers = np.concatenate([numbers, held_out[1]])
            else:
                kept, aside = _split(numbers, self.random_state)
                training, held_out = (features[kept], numbers[kept]), (features[aside], numbers[aside])
            best = self._sweep(*training, *held_out, values)
            self.C_, start = best.C, (best.coef, best.bias)
        self._fit_all(features, numbers, start)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (n, n_classes); with two classes (n,), above zero for the second."""
        logits = self._features(X) @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, n_classes), float64."""
        logits = self.decision_function(X).astype(np.float64)
        if logits.ndim == 1:
            logits = np.stack([-logits / 2, logits / 2], axis=1)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, (n,)."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]

    def score(self, X: Any, y: Any) -> float:
        """The share of rows whose label is predicted."""
        return share_of_right(self.predict(X), y)

    def save(self, path: str | os.PathLike[str], *, clip: "Encoder | None" = None, projected: bool = True) -> None:
        """Write a `.safetensors` file that `from_file` and `ZeroShotClassifier.from_file` read; labels are its words.

        Args:
            clip: the model whose features it was fitted to; a file that knows it is refused with any other.
            projected: False if they are those before the projection (`encode_images(projected=False)`).

        Raises:
            InvalidArgumentError: if nothing is fitted, a label is empty, or `clip` is missing though not `projected`.
        """
        self._check_fitted()
        if clip is None and not projected:
            raise InvalidArgumentError("features before the projection are one model's own: say which with clip=…")
        coef, intercept = self.coef_, self.intercept_
        if len(self.classes_) == 2:  # a softmax over these two rows is the sigmoid of the one
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        more = {"classes": json.dumps(self.classes_.tolist()), "C": repr(float(self.C_))}
        more |= {} if clip is None else model_of(clip, projected)
        write_classifier(Path(path), [str(label) for label in self.classes_], coef, intercept, more=more)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "LinearProbe":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is not one.
        """
        saved = read_classifier(Path(path))
        try:
            classes, strength = np.array(json.loads(saved.metadata["classes"])), float(saved.metadata["C"])
            if classes.shape != (len(saved.labels),) or classes.dtype.kind not in "biufU" or not 0 < strength < np.inf:
                raise ValueError("its classes or its C are not what a probe has")
            if saved.independent or [str(label) for label in classes] != saved.labels or len(classes) < 2:
                raise ValueError("its labels are not those of its classes")
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path}: is not a linear probe that Sightline saved ({error})") from None
        probe = cls(C=strength)
        probe.classes_, probe.C_, probe.sweep_ = classes, strength, ()
        probe.coef_, probe.intercept_ = saved.coef, saved.intercept
        if len(classes) == 2:
            probe.coef_, probe.intercept_ = saved.coef[1:] - saved.coef[:1], saved.intercept[1:] - saved.intercept[:1]
        probe.n_features_in_ = saved.coef.shape[1]
        return probe

    # ── what scikit-learn asks of an estimator ───────────────────────────────────────────────────────────────────────

    def __repr__(self) -> str:
        return f"LinearProbe({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def __sklearn_tags__(self) -> Any:
        return classifier_tags(learns=True)

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sweep(
        self, X: np.ndarray, y: np.ndarray, X_aside: np.ndarray, y_aside: np.ndarray, values: list[float] | None
    ) -> _Tried:
        """The best of the values on the part set aside, or of the paper's sweep."""
        problem, tried = self._problem(X, y), dict[float, _Tried]()

        def best() -> _Tried:
            return max(tried.values(), key=lambda one: one[:2])

        def attempt(C: float) -> None:
            near = min(tried.values(), key=lambda one: abs(np.log(one.C / C)), default=None)
            start = None if near is None else problem.in_axes(near.coef, near.bias)
            coef, bias, _ = self._minimise(problem, C, start)
            tried[C] = _Tried(*_judge(X_aside, y_aside, coef, bias), C, coef, bias)

        for C in values if values is not None else [_strength(eighths) for eighths in _FIRST]:
            attempt(C)
        step = _FIRST.step // 2 if values is None else 0
        while step:
            middle = round(np.log10(best().C) * _PER_DECADE)
            for eighths in (middle - step, middle + step):
                if _FIRST[0] <= eighths <= _FIRST[-1]:
                    attempt(_strength(eighths))
            step //= 2
        self.sweep_ = tuple((C, tried[C].accuracy) for C in sorted(tried))
        return best()

    def _fit_all(self, X: np.ndarray, y: np.ndarray, start: "tuple[torch.Tensor, torch.Tensor] | None") -> None:
        problem = self._problem(X, y)
        coef, bias, self.n_iter_ = self._minimise(problem, self.C_, problem.in_axes(*start) if start else None)
        if len(self.classes_) == 2:
            coef, bias = coef[1:] - coef[:1], bias[1:] - bias[:1]
        self.coef_, self.intercept_ = coef.cpu().numpy().astype(X.dtype), bias.cpu().numpy().astype(X.dtype)

    def _problem(self, X: np.ndarray, y: np.ndarray) -> "LogisticRegression":
        import torch

        from sightline.logistic_regression import LogisticRegression

        device = self.device if self.device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        with warnings.catch_warnings():  # of features that may only be read, such as mapped ones: they are only read
            warnings.filterwarnings("ignore", message=".*not writable")
            features = torch.from_numpy(X)
        return LogisticRegression(features.to(device), torch.from_numpy(y).to(device), len(self.classes_))

    def _minimise(
        self, problem: "LogisticRegression", C: float, start: "torch.Tensor | None"
    ) -> "tuple[torch.Tensor, torch.Tensor, int]":
        # Of two classes scikit-learn penalises the difference of their weights, which is half of what both rows cost.
        rows = 2 if len(self.classes_) == 2 else 1
        found = problem.fit(rows / (C * len(problem.features)), start=start, max_iter=self.max_iter, tol=self.tol)
        return *problem.in_features(found.weights), found.iterations

    # ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def values_to_try(self, *, has_validation: bool = False) -> list[float] | None:
        """The values of C that a fit tries, rising; None for the paper's sweep.

        Raises:
            InvalidArgumentError: for settings that cannot be fitted with.
        """
        if not isinstance(self.max_iter, (int, np.integer)) or self.max_iter < 1:
            raise InvalidArgumentError(f"max_iter is {self.max_iter!r}; it must be a whole number above zero")
        if not isinstance(self.tol, (int, float)) or not self.tol >= 0:
            raise InvalidArgumentError(f"tol is {self.tol!r}; it must be a number, zero or above")
        if self.C is None:
            return None
        values = [self.C] if np.ndim(self.C) == 0 else list(self.C)  # type: ignore[arg-type]
        try:
            strengths = sorted({float(value) for value in values})  # type: ignore[arg-type]
        except (TypeError, ValueError):
            strengths = []
        if not strengths or not all(0 < value < np.inf for value in strengths):
            raise InvalidArgumentError(f"C is {self.C!r}; it must be a number above zero, several, or None for a sweep")
        if has_validation and len(strengths) == 1:
            raise InvalidArgumentError("a validation part is for choosing C, and C is given: leave out one of the two")
        return strengths

    def _check_validation(self, validation: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Features and class numbers of the validation part."""
        what = "the validation features"
        features = check_features(validation[0], what)
        if features.shape[1] != self.n_features_in_:
            raise InvalidArgumentError(f"{what} have {features.shape[1]} numbers a row, not {self.n_features_in_}")
        return features, check_same_classes(self.classes_, validation[1], len(features), what)

    def _check_fitted(self) -> None:
        if hasattr(self, "coef_"):
            return
        message = "this LinearProbe is not fitted yet: call fit first"
        if "sklearn" in sys.modules:  # whose tools wait for an error of their own
            from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped]

            raise type("NotFittedError", (InvalidArgumentError, NotFittedError), {})(message)
        raise InvalidArgumentError(message)

    def _features(self, X: Any) -> np.ndarray:
        self._check_fitted()
        features = check_features(X)
        if features.shape[1] != self.n_features_in_:
            expected = f"LinearProbe is expecting {self.n_features_in_} features as input"
            raise InvalidArgumentError(f"X has {features.shape[1]} features, but {expected}")
        return features


def _strength(eighths: int) -> float:
    return float(10.0 ** (eighths / _PER_DECADE))


def _judge(X: np.ndarray, y: np.ndarray, coef: "torch.Tensor", bias: "torch.Tensor") -> tuple[float, float]:
    """Accuracy, and the mean logarithm of the right label's probability."""
    logits = X @ coef.cpu().numpy().astype(X.dtype).T + bias.cpu().numpy().astype(X.dtype)
    logits -= logits.max(axis=1, keepdims=True)
    right = logits.argmax(axis=1) == y
    logs = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(axis=1))
    return float(right.mean()), float(logs.mean(dtype=np.float64))


def _split(y: np.ndarray, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit to and rows to choose on, both sorted: of each class one in five, and never its last."""
    draw = np.random.default_rng(seed)
    aside = np.zeros(len(y), bool)
    for rows in rows_by_class(y):
        count = max(1, len(rows) // _VALIDATION) if len(rows) > 1 else 0
        aside[draw.permutation(rows)[:count]] = True
    if not aside.any():
        raise InvalidArgumentError("every class has one image: none can be set aside to choose C on; give C, or more")
    return np.flatnonzero(~aside), np.flatnonzero(aside)
