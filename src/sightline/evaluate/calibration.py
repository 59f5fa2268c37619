"""Whether a probability means what it says (Guo et al. 2017, On calibration of modern neural networks)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sightline.evaluate.accuracy import check_probabilities
from sightline.evaluate.intervals import Result, counts, percentiles, resampled

BINS = 15  # of equal width, as in the paper
_CHANCES = 500  # of a perfectly calibrated model


class Bin(NamedTuple):
    """Images whose best class has a probability in (above, to], how probable that is on average, and how often right.

    `confidence` and `accuracy` are NaN for a bin without images.
    """

    above: float
    to: float
    images: int
    confidence: float
    accuracy: float


def calibration_error(probabilities: Any, labels: Any, *, seed: int = 0) -> Iterator[Result]:
    """The expected calibration error (section 2): the mean over the images of |accuracy − confidence| of their bin.

    It is never below zero, so that chance only adds to it: a model whose probabilities are just what they say has an
    error too, the larger the fewer images there are. How large is the second figure, of such a model that is as sure of
    each image as this one: that each answer is right is drawn with its probability. An error within that interval is
    none that could be told from chance.

    To resample adds about as much as chance did, which is taken off the ends of the first interval, as the mean of the
    resamples shows it. What chance has added to the measured error is still in it: where that error is not far above
    what chance gives, the interval lies too high, and misses the zero of a perfectly calibrated model.

    Args:
        probabilities: (n, n_classes), of `predict_proba`.
        labels: (n,), for each image the number of its class.

    Yields:
        "calibration error"; and "error by chance alone", the mean and where 95% of 500 draws lie.

    Raises:
        InvalidArgumentError: if the two do not match.
    """
    confidence, right, bins = _binned(probabilities, labels)
    excess = right - confidence

    def error(rows: np.ndarray) -> np.ndarray:
        return np.abs(counts(rows, bins, BINS, excess)).sum(axis=1) / rows.shape[1]

    whole = _error(excess, bins)
    resamples = resampled(error, len(bins), seed=seed)
    low, high = percentiles(resamples - (resamples.mean() - whole))
    yield Result("calibration error", whole, max(0.0, low), high)
    draw = np.random.default_rng(seed)
    chances = np.array([_error((draw.random(len(bins)) < confidence) - confidence, bins) for _ in range(_CHANCES)])
    yield Result("error by chance alone", float(chances.mean()), *percentiles(chances))


def reliability(probabilities: Any, labels: Any) -> tuple[Bin, ...]:
    """The table behind a reliability diagram, a row for each bin.

    Raises:
        InvalidArgumentError: as `calibration_error` does.
    """
    confidence, right, bins = _binned(probabilities, labels)
    images = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(bins, confidence, BINS) / images
        hits = np.bincount(bins, right, BINS) / images
    return tuple(Bin(i / BINS, (i + 1) / BINS, int(images[i]), float(sure[i]), float(hits[i])) for i in range(BINS))


def _error(excess: np.ndarray, bins: np.ndarray) -> float:
    """Of how much more each image is right than sure, (n,)."""
    return float(np.abs(np.bincount(bins, excess, BINS)).sum() / len(bins))


def _binned(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image the probability of its best class, whether that is right (0 or 1), and its bin."""
    probabilities, labels = check_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.ceil(confidence * BINS).astype(np.int64) - 1
    return confidence, right, bins.clip(0, BINS - 1)
