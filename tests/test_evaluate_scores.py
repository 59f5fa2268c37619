"""Accuracy, calibration, abstaining and intervals are what scikit-learn, or counting by hand, makes them."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from sightline.errors import InvalidArgumentError
from sightline.evaluate import (
    Result,
    abstention,
    accuracy_of_scores,
    auroc,
    calibration_error,
    coverage_curve,
    named,
    paired_difference,
    reliability,
    threshold_at_error,
)
from sightline.evaluate.intervals import interval, mcnemar, of_mean, resampled


def draw(n: int = 500, classes: int = 7, seed: int = 0, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill
    exponentials = np.exp(2 * logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True), labels


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_interval_of_a_share_is_the_binomial_s() -> None:
    """A resampled share is binomial; of 4,000 the ends are known to about an image."""
    right = np.arange(400) < 300
    result = of_mean("top-1", right, resamples=4000)
    assert result[:2] == ("top-1", 0.75)
    assert result[2:] == pytest.approx(binom.ppf([0.025, 0.975], 400, 0.75) / 400, abs=1.5 / 400)


def test_an_interval_covers_the_truth_about_95_times_in_100() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        result = of_mean("x", random.random(100) < 0.7, resamples=300)
        covered += result.low <= 0.7 <= result.high
    assert 0.90 <= covered / 200 <= 0.99


def test_resamples_come_from_the_seed_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)

    def mean(rows: np.ndarray) -> np.ndarray:
        return values[rows].mean(axis=1)

    assert interval(mean, 50, seed=3) == interval(mean, 50, seed=3) != interval(mean, 50, seed=4)


def test_groups_are_drawn_each_for_itself_and_whole() -> None:
    sizes = resampled(lambda a, b: a.shape[1] + 1000 * (b.shape[1] + (b.max(axis=1) < 20)), 30, 20, resamples=5)
    assert sizes.tolist() == [30 + 1000 * 21] * 5
    with pytest.raises(InvalidArgumentError, match="no images to measure on"):
        interval(lambda rows: rows[:, 0], 0)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    random = np.random.default_rng(0)
    hard = random.random(1000) < 0.5
    first = ~hard | (random.random(1000) < 0.05)
    better = paired_difference(first, ~hard)
    assert better.value == pytest.approx(first.mean() - (~hard).mean())
    assert 0 < better.low < better.value < better.high < of_mean("", first).high - of_mean("", first).low
    assert better.p_value < 0.01
    worse = paired_difference(~hard, first)
    assert worse.value == -better.value
    assert worse.low == pytest.approx(-better.high, abs=2e-3)


@pytest.mark.parametrize("alone", [(0, 0), (0, 1), (3, 3), (0, 6), (5, 14), (700, 812), (0, 900), (4000, 3000)])
def test_the_p_value_of_right_and_wrong_is_the_exact_one_of_the_binomial(alone: tuple[int, int]) -> None:
    expected = binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0
    assert mcnemar(*alone) == mcnemar(*reversed(alone)) == pytest.approx(expected, rel=1e-9)
    first = np.arange(10_000) < alone[0]
    second = np.arange(10_000) >= 10_000 - alone[1]
    assert paired_difference(first, second, resamples=2).p_value == mcnemar(*alone)


def test_a_p_value_too_small_for_a_number_is_none_at_all() -> None:
    assert mcnemar(0, 2000) == 0.0


def test_the_p_value_of_other_values_is_twice_the_share_of_resamples_on_the_other_side() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.05, 1, 400)
    rows = np.random.default_rng(3).integers(0, 400, (200, 400), dtype=np.int32)
    against = (values[rows].mean(axis=1) <= 0).sum()
    assert 0 < against < 100
    found = paired_difference(values, np.zeros(400), resamples=200, seed=3)
    assert found.p_value == pytest.approx(2 * (against + 1) / 201)


def test_two_models_that_err_alike_do_not_differ() -> None:
    right = np.arange(100) < 60
    assert paired_difference(right, right) == (0, 0, 0, 1)
    assert paired_difference(right, np.roll(right, 1)).p_value > 0.5
    with pytest.raises(InvalidArgumentError, match="not of the same images"):
        paired_difference(right, right[:99])


# ── accuracy ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_is_scikit_learn_s() -> None:
    scores, labels = draw()
    found = {result.name: result for result in accuracy_of_scores(scores, labels)}
    assert list(found) == ["top-1", "top-5", "mean per class"]
    assert found["top-1"].value == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert found["top-5"].value == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert found["mean per class"].value == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
    assert all(result.low < result.value < result.high for result in found.values())


def test_the_interval_of_the_mean_per_class_is_that_of_resampling_one_by_one() -> None:
    scores, labels = draw(n=60, classes=5)
    results = {result.name: result for result in accuracy_of_scores(scores, labels, seed=5)}
    random, means = np.random.default_rng(5), []
    for start in range(0, 1000, 256):
        for rows in random.integers(0, 60, (min(256, 1000 - start), 60), dtype=np.int32):
            right, own = scores[rows].argmax(axis=1) == labels[rows], labels[rows]
            means.append(np.mean([right[own == c].mean() for c in range(5) if (own == c).any()]))
    expected = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    assert results["mean per class"][2:] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        (np.eye(3), [0, 1], r"labels of shape \(2,\) for the scores of 3 images"),
        (np.eye(3), [0, 1, 3], "numbers of classes, 0 to 2"),
        (np.eye(3), ["a", "b", "c"], "numbers of classes, 0 to 2"),
        (np.zeros((0, 3)), [], "must be decimal numbers of shape"),
        ([[1, 2]], [0], "must be decimal numbers of shape"),
    ],
)
def test_scores_and_labels_that_do_not_match_are_refused(scores, labels, says) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        list(accuracy_of_scores(scores, labels))


# ── calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_calibration_error_by_hand() -> None:
    """Two bins: (9/15, 10/15] is sure by 0.65 and right half the time, (14/15, 1] sure by 0.98 and always right."""
    probabilities = np.array([[0.65, 0.35], [0.65, 0.35], [0.98, 0.02], [0.98, 0.02]])
    result = next(calibration_error(probabilities, [0, 1, 0, 0]))
    assert result.name == "calibration error"
    assert result.value == pytest.approx((2 * 0.15 + 2 * 0.02) / 4)
    table = reliability(probabilities, [0, 1, 0, 0])
    assert [row.images for row in table] == [0] * 9 + [2] + [0] * 4 + [2]
    assert table[9] == pytest.approx((9 / 15, 10 / 15, 2, 0.65, 0.5))
    assert math.isnan(table[0].accuracy)


def test_a_probability_on_a_bin_s_upper_edge_is_in_it() -> None:
    table = reliability(np.array([[0.6, 0.4], [1.0, 0.0]]), [0, 0])
    assert [i for i, row in enumerate(table) if row.images] == [8, 14]


def test_the_calibration_error_is_that_of_a_plain_loop_over_bins() -> None:
    probabilities, labels = draw()
    result = next(calibration_error(probabilities, labels))
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for i in range(15):
        inside = (sure > i / 15) & (sure <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert result.value == pytest.approx(expected)
    assert result.low < result.value < result.high
    assert result == next(calibration_error(probabilities, labels))


def test_the_interval_of_the_calibration_error_holds_the_true_one_about_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(50):
        right = draw.random(200) < 0.7  # of answers that are 80% sure: the true error is 0.1
        result = next(calibration_error(np.tile([0.8, 0.2], (200, 1)), np.where(right, 0, 1)))
        held += result.low <= 0.1 <= result.high
    assert 44 <= held <= 50


def test_the_error_by_chance_alone_is_what_models_that_are_right_as_often_as_sure_have() -> None:
    """Beside it, such a model's error is seen to be nothing; one that is surer than right is seen to be so."""
    draw, told = np.random.default_rng(0), 0
    for seed in range(60):
        probabilities = draw.dirichlet(np.full(10, 0.15), 300)
        labels = (draw.random((300, 1)) < probabilities.cumsum(axis=1)).argmax(axis=1)
        found = {each.name: each for each in calibration_error(probabilities, labels, seed=seed)}
        error, chance = found["calibration error"], found["error by chance alone"]
        told += not chance.low <= error.value <= chance.high
        assert error.low > 0, "whose own interval does not hold the true error, which is 0"
    assert told <= 8  # 3 of 60 are expected
    sharper = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    error, chance = calibration_error(sharper, labels)
    assert error.low > chance.high


def test_the_error_by_chance_alone_of_one_bin_is_that_of_the_binomial() -> None:
    """Of 400 images that are 80% sure, the mean of |right / 400 - 0.8| by the binomial's own formula."""
    _, chance = calibration_error(np.tile([0.8, 0.2], (400, 1)), np.zeros(400, int))
    right = np.arange(401)
    away, of_each = np.abs(right / 400 - 0.8), binom.pmf(right, 400, 0.8)
    assert chance.name == "error by chance alone"
    assert chance.value == pytest.approx((away * of_each).sum(), rel=0.1)
    assert chance.high == pytest.approx(2.2414 * np.sqrt(0.16 / 400), rel=0.15)  # both sides count as one
    assert chance == [*calibration_error(np.tile([0.8, 0.2], (400, 1)), np.zeros(400, int))][1]


def test_probabilities_that_are_none_are_refused() -> None:
    for bad in (np.array([[0.5, 0.5], [1.5, -0.5]]), np.array([[0.5, 0.5], [np.nan, 0.5]])):
        with pytest.raises(InvalidArgumentError, match="row 1 of the probabilities goes beyond 0 to 1, or is NaN"):
            list(calibration_error(bad, [0, 1]))


# ── abstaining ───────────────────────────────────────────────────────────────────────────────────────────────────────

FOUR = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])  # the surest is right, then one of two, then not
ANSWERS = [0, 0, 1, 1]


def test_coverage_against_accuracy_by_hand() -> None:
    curve = coverage_curve(FOUR, ANSWERS)
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]  # equal ones are answered together
    assert curve.accuracy == pytest.approx([1, 2 / 3, 1 / 2])


@pytest.mark.parametrize(("error", "threshold"), [(0, 0.9), (0.3, 0.9), (0.34, 0.8), (0.5, 0.6), (1, 0.6)])
def test_the_threshold_at_an_error_rate_is_the_lowest_that_keeps_it(error: float, threshold: float) -> None:
    assert threshold_at_error(FOUR, ANSWERS, error) == threshold


def test_where_no_threshold_keeps_the_rate_nothing_is_answered() -> None:
    assert threshold_at_error(FOUR, [1, 0, 0, 0], 0.1) == math.inf
    assert named(abstention(FOUR, ANSWERS, math.inf)) == {"coverage": 0.0}
    with pytest.raises(InvalidArgumentError, match="the error rate is 5; it goes from 0 to 1"):
        threshold_at_error(FOUR, ANSWERS, 5)


def test_abstention_at_a_threshold_and_strangers_by_hand() -> None:
    strangers = np.array([[0.8, 0.2], [0.5, 0.5]])
    found = named(abstention(FOUR, ANSWERS, 0.8, strangers=strangers))
    assert found == pytest.approx(
        {"coverage": 0.75, "accuracy when answered": 2 / 3, "strangers answered": 0.5, "strangers AUROC": 6 / 8}
    )


def test_auroc_is_scikit_learn_s_with_equal_scores_too() -> None:
    random = np.random.default_rng(0)
    positive, negative = random.normal(0.5, 1, 200).round(1), random.normal(0, 1, 90).round(1)
    result = auroc("AUROC", positive, negative)
    truth = np.repeat([1, 0], [200, 90])
    assert result.value == pytest.approx(roc_auc_score(truth, np.concatenate([positive, negative])))
    assert result.low < result.value < result.high
    areas = []
    for _ in range(300):
        scores = np.concatenate([random.choice(positive, 200), random.choice(negative, 90)])
        areas.append(roc_auc_score(truth, scores))
    assert (result.low, result.high) == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.02)


def test_auroc_without_one_kind_or_with_nan_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no images to measure on"):
        auroc("a", np.ones(3), np.ones(0))
    with pytest.raises(InvalidArgumentError, match="a score is NaN"):
        auroc("a", np.ones(3), np.array([np.nan]))


def test_a_result_is_named_by_its_name() -> None:
    assert named(iter([Result("a", 1.0), Result("b", 2.0, 1.5, 2.5)])) == {"a": 1.0, "b": 2.0}
