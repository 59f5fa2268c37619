"""Zero-shot classification: a linear classifier whose weights come from words (paper section 3.1)."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.classifier_file import check_model, read_classifier, write_classifier
from sightline.errors import CheckpointError, InvalidArgumentError
from sightline.estimator import Estimator, classifier_tags, share_of_right
from sightline.feature_arrays import check_features, check_labels
from sightline.files import write_whole
from sightline.hub import cache_dir
from sightline.templates import TemplateSet, fill, template_set

if TYPE_CHECKING:
    from torch import nn

    from sightline.encoder import Encoder

# What a label is weighed against when labels do not exclude each other: pictures of nothing in particular.
BACKGROUND = ("a photo.", "a picture.", "an image of something.", "a photo of a thing.", "a photo of a place.")
_PROMPTS_AT_ONCE = 512
_REMEMBERED = 64
_memory: dict[str, np.ndarray] = {}


class ZeroShotClassifier(Estimator):
    """Which label fits an image best, in words of your choosing.

    Ready as soon as it is made: there is nothing to fit. It is a scikit-learn estimator all the same, without needing
    scikit-learn, for `cross_val_score`, for the end of a `Pipeline`, and for a `GridSearchCV` over `templates`. A clone
    shares the model, and words are encoded when they are needed, once for each set of them.

    What it classifies are images (as `Encoder.encode_images` takes them; paths may come in an array too), or their
    features (n, embed_dim).

    Its classes, and with them the columns of `logits` and `predict_proba`, are in the order of `labels`. After
    `fit(X, y)`, which scikit-learn's tools call, they are sorted, as these take for granted. A scorer of theirs that is
    called by hand needs that too.

    Args:
        clip: the `Encoder` that encodes both sides.
        labels: the class names; each is put into every template.
        templates: the name of a template set ("plain", "imagenet", "pets", …), one template, or several. With several,
            a class is the mean of their unit features, normalised again (paper section 3.1.4).
        independent: for labels that do not exclude each other. Each is weighed against `background` alone, and
            probabilities no longer sum to one.
        background: prompts of nothing in particular.
        progress: called with (prompts encoded, prompts in all) as the labels are encoded.

    Attributes, in scikit-learn's words:
        classes_: the labels, (n_classes,), in their order; sorted after `fit(X, y)`.
        coef_: exp(logit_scale) times the unit class features, (n_classes, embed_dim), float32.
        intercept_: zeros, (n_classes,), float32.
        projected: False where `from_file` read a probe for the features before the projection.

    Raises:
        InvalidArgumentError, TextTooLongError: for labels, templates or a background that make no prompts.
    """

    projected = True

    def __init__(
        self,
        clip: "Encoder",
        labels: Iterable[str],
        templates: str | Sequence[str] | TemplateSet | None = "plain",
        *,
        independent: bool = False,
        background: Sequence[str] = BACKGROUND,
        progress: Callable[[int, int], object] | None = None,
    ):
        self.clip = clip
        self.labels = list(labels) if isinstance(labels, Iterator) else labels  # which gives them only once
        self.templates = templates
        self.independent = independent
        self.background = background
        self.progress = progress
        self.fit()

    @cached_property
    def classes_(self) -> np.ndarray:
        return np.array(_check_labels(self.labels))

    @cached_property
    def coef_(self) -> np.ndarray:
        prompts = self._prompts()
        if self.independent:
            features = class_features(self.clip, [*prompts, self.background], progress=self.progress)
            return self._weights(features[:-1], features[-1])
        return self._weights(class_features(self.clip, prompts, progress=self.progress))

    @cached_property
    def intercept_(self) -> np.ndarray:
        return np.zeros(len(self.classes_), np.float32)

    def _weights(self, classes: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
        """`coef_` of unit class features (n_classes, embed_dim), with `independent` against that of the background."""
        if self.independent:
            # sigmoid(a − b) is the softmax of the pair (a, b): against one background, two classes are one direction.
            classes = classes - background
        return np.ascontiguousarray(np.float32(self.clip.scale) * classes)

    def _prompts(self) -> list[Sequence[str]]:
        labels = _check_labels(self.labels)
        if self.templates is None:
            raise InvalidArgumentError("a classifier that was read from a file has no templates: set them with labels")
        filled, background = template_set(self.templates), self.background
        if isinstance(background, str) or not background or not all(isinstance(prompt, str) for prompt in background):
            raise InvalidArgumentError(f"background must be a list of prompts, as ['a photo.'], not {background!r}")
        return [fill(filled, label) for label in labels]

    def fit(self, X: Any = None, y: Any = None) -> "ZeroShotClassifier":
        """Make the classifier of its words, anew where `clip` or a setting has changed. Images teach it nothing.

        Args:
            X: images, which are not looked at, or features, which are checked as `logits` does.
            y: their labels, (n,): they are checked to be among `labels`, as no other is ever predicted. With them, the
                classes are sorted, in which order scikit-learn's scorers take the columns of `predict_proba` to be.

        Raises:
            InvalidArgumentError: for features that do not fit, or a label in `y` that is not among `labels`.
        """
        if self.templates is not None:
            self._forget()
        assert len(self.coef_) == len(self.classes_) == len(self.intercept_)
        features = self._given_features(X)
        if y is not None:
            given, _ = check_labels(y, len(np.asarray(y) if features is None else features), "X")
            known = set(self.classes_.tolist())
            if strange := [label for label in given.tolist() if label not in known]:
                raise InvalidArgumentError(
                    f"y has {strange[0]!r:.80}, which is not among the labels: y must name classes as the labels do"
                )
            self._sort()
        return self

    def _sort(self) -> None:
        order = np.argsort(self.classes_, kind="stable")
        self.coef_, self.intercept_ = np.ascontiguousarray(self.coef_[order]), self.intercept_[order]
        self.classes_ = self.classes_[order]

    def _forget(self) -> None:
        for name in ("classes_", "coef_", "intercept_"):
            self.__dict__.pop(name, None)

    def set_params(self, **params: Any) -> "ZeroShotClassifier":
        """Change settings; the words are encoded again when they are next needed.

        Raises:
            InvalidArgumentError: for a name that is none.
        """
        super().set_params(**params)
        if params.keys() - {"progress"}:
            self._forget()
        return self

    def logits(self, images: Any) -> np.ndarray:
        """Logits (n, n_classes) of images, or of features (n, embed_dim) of `Encoder.encode_images`.

        This is no `decision_function`, of which scikit-learn wants one column where there are two classes.

        Raises:
            InvalidArgumentError: for features of the wrong shape, or that are not finite.
            ImageError: for an image that cannot be read.
        """
        features = self._given_features(images)
        if features is None:
            sources = images.tolist() if isinstance(images, np.ndarray) else images
            how = {} if self.projected else {"projected": False}
            features = self.clip.encode_images(sources, **how)
        return features @ self.coef_.T + self.intercept_

    def _given_features(self, X: Any) -> np.ndarray | None:
        """Features (n, embed_dim), checked; None for images, of which an array holds paths or objects, (n,)."""
        is_array = isinstance(X, np.ndarray) or hasattr(X, "toarray")  # check_features has a word for sparse ones
        if not is_array or (X.ndim == 1 and X.dtype.kind in "OU"):
            return None
        features = check_features(X)
        if features.shape[1] != self.coef_.shape[1]:
            raise InvalidArgumentError(f"features must have shape (n, {self.coef_.shape[1]}), not {features.shape}")
        return features

    def predict_proba(self, images: Any) -> np.ndarray:
        """Probabilities (n, n_classes): a softmax over the labels, or with `independent` each label for itself."""
        logits = self.logits(images).astype(np.float64)
        if self.independent:
            return sigmoid(logits)
        return softmax(logits)

    def predict(self, images: Any) -> np.ndarray:
        """The best label of each image, (n,)."""
        return self.classes_[self.logits(images).argmax(axis=1)]

    def score(self, X: Any, y: Any) -> float:
        """The share of images, or of features, whose label is predicted."""
        return share_of_right(self.predict(X), y)

    def top_k(self, images: Any, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k best labels of each image with their probabilities, best first.

        Raises:
            InvalidArgumentError: if k is not a whole number above zero.
        """
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise InvalidArgumentError(f"k is {k!r}; it must be a whole number above zero")
        return [rank(self.classes_, row, k) for row in self.predict_proba(images)]

    def to_linear(self) -> "nn.Linear":
        """The classifier as a plain linear layer over unit image features."""
        import torch
        from torch import nn

        linear = nn.Linear(self.coef_.shape[1], self.coef_.shape[0])
        linear.weight.data = torch.from_numpy(self.coef_.copy())
        linear.bias.data = torch.from_numpy(self.intercept_.copy())
        return linear

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write labels and weights to one `.safetensors` file, which `from_file` reads back."""
        labels = [str(label) for label in self.classes_]
        write_classifier(Path(path), labels, self.coef_, self.intercept_, independent=self.independent)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], clip: "Encoder") -> "ZeroShotClassifier":
        """Read what `save` wrote, or a `LinearProbe`. No text tower is needed: `load(..., towers="image")` will do.

        Its `templates` are None, as its weights are not made here. A probe that was saved with its model is refused
        with another; other files do not say which it was: `clip` must have the same image tower.

        Raises:
            CheckpointError: if the file is not one, or was made with another model or one of other dimensions.
        """
        saved = read_classifier(Path(path))
        classifier = cls.__new__(cls)
        classifier.projected = check_model(Path(path), saved, clip)
        classifier.clip, classifier.labels, classifier.templates = clip, saved.labels, None
        classifier.independent, classifier.background, classifier.progress = saved.independent, BACKGROUND, None
        classifier.coef_, classifier.intercept_ = np.ascontiguousarray(saved.coef), saved.intercept
        return classifier

    @classmethod
    def from_features(
        cls, clip: "Encoder", labels: Sequence[str], classes: np.ndarray, background: np.ndarray, *, independent: bool
    ) -> "ZeroShotClassifier":
        """Of unit class features (n_classes, embed_dim), and the background's (embed_dim,), that are known already.

        Its `templates` are None, as its weights are not made here.
        """
        classifier = cls.__new__(cls)
        classifier.clip, classifier.labels, classifier.templates = clip, labels, None
        classifier.independent, classifier.background, classifier.progress = independent, BACKGROUND, None
        classifier.coef_ = classifier._weights(classes, background)
        return classifier

    # ── what else scikit-learn asks of an estimator ──────────────────────────────────────────────────────────────────

    def __sklearn_clone__(self) -> "ZeroShotClassifier":
        """With the model itself, and no copy of its weights."""
        twin = copy(self)
        twin.__dict__.update({name: kept.copy() for name, kept in vars(self).items() if name.endswith("_")})
        return twin

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        return classifier_tags(learns=False, takes_text=True)

    def __repr__(self) -> str:
        return f"ZeroShotClassifier({self.clip!r}, {len(self.classes_)} labels, templates={self.templates!r:.60})"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, m) of logits (n, m): each row sums to one."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, each for itself; no logit is too large."""
    return np.exp(-np.logaddexp(0, -logits))


def rank(classes: Sequence[str] | np.ndarray, probabilities: np.ndarray, k: int) -> list[tuple[str, float]]:
    """The k most probable of the classes with their probabilities, best first."""
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [(str(classes[i]), float(probabilities[i])) for i in best]


def class_features(
    clip: "Encoder", prompts: Sequence[Sequence[str]], *, progress: Callable[[int, int], object] | None = None
) -> np.ndarray:
    """The unit feature of each class, (n_classes, embed_dim) float32: the mean over its prompts, normalised.

    Kept in memory and on disk (in `hub.cache_dir()`) by weights, precision and prompts: no text is encoded twice.
    """
    request = json.dumps([clip.fingerprint(), clip.engine.precision_of("text"), [list(group) for group in prompts]])
    key = hashlib.sha256(request.encode()).hexdigest()
    features = _memory.get(key)  # another thread may empty the memory at any moment
    if features is None:
        path = cache_dir() / "class-features" / f"{key}.safetensors"
        features = _read_cached(path, (len(prompts), clip.embed_dim))
        if features is None:
            features = encode_classes(clip, prompts, progress)
            _write_cached(path, features)
        if len(_memory) >= _REMEMBERED:
            _memory.clear()
        _memory[key] = features
    return features


def encode_classes(
    clip: "Encoder", prompts: Sequence[Sequence[str]], progress: Callable[[int, int], object] | None = None
) -> np.ndarray:
    """What `class_features` gives, computed anew and kept nowhere: for a model whose weights are changing."""
    features = np.empty((len(prompts), clip.embed_dim), np.float32)
    total, done = sum(map(len, prompts)), 0
    step = max(1, _PROMPTS_AT_ONCE // max(map(len, prompts)))
    for start in range(0, len(prompts), step):
        groups = prompts[start : start + step]
        encoded = clip.encode_texts([prompt for group in groups for prompt in group])
        ends = np.cumsum([len(group) for group in groups])
        mean = np.stack([part.mean(axis=0) for part in np.split(encoded, ends[:-1])])
        features[start : start + step] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        done += len(encoded)
        if progress is not None:
            progress(done, total)
    return features


def _read_cached(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        features = _read(path)[0]["features"]
    except (CheckpointError, KeyError):
        return None  # absent or damaged: what a cache holds can be made again
    return features if features.shape == shape and _is_usable(features) else None


def _is_usable(tensor: np.ndarray) -> bool:
    return tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())


def _write_cached(path: Path, features: np.ndarray) -> None:
    with contextlib.suppress(OSError):  # a full or read-only disk costs the next run some time, and this one nothing
        _write(path, {"features": features}, {})


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # not only SafetensorError and OSError: numpy raises TypeError for a bfloat16
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, metadata=metadata))


def _check_labels(labels: Iterable[str]) -> list[str]:
    if isinstance(labels, str):
        raise InvalidArgumentError('labels must be a list of strings; put brackets around the one: ["…"]')
    if not isinstance(labels, Iterable):
        raise InvalidArgumentError(f"labels must be a list of strings, not {type(labels).__name__}")
    names = list(labels)
    for position, label in enumerate(names):
        if not isinstance(label, str) or not label.strip():
            raise InvalidArgumentError(f"label {position} is {label!r}; each label must be a string with text in it")
    if not names:
        raise InvalidArgumentError("there are no labels: name at least one")
    return names
