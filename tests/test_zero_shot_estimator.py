"""A classifier made of words is a scikit-learn estimator too: one that needs no fitting."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer
from sklearn.utils.estimator_checks import estimator_checks_generator

import sightline
from sightline.errors import InvalidArgumentError
from sightline.zero_shot import ZeroShotClassifier
from tiny import tiny_encoder

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "photos").glob("*.jpg"))[:6]
LABELS = ["cat", "dog", "space rocket"]


@pytest.fixture
def clip() -> sightline.Encoder:
    return tiny_encoder()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are encoded, as they are."""
    texts: list[str] = []
    encode = sightline.Encoder.encode_texts

    def note(clip: sightline.Encoder, given: list[str], **options: object) -> np.ndarray:
        texts.extend(given)
        return encode(clip, given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sightline.Encoder, "encode_texts", note)
    return texts


def draw(clip: sightline.Encoder, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Features that are near the texts of their classes, one in five of which is another's."""
    random = np.random.default_rng(0)
    names = np.resize(LABELS, n)
    features = clip.encode_texts([f"a drawing of a {name}" for name in names]) + 0.02 * random.normal(size=(n, 48))
    names[::5] = np.roll(names, 1)[::5]
    return features.astype(np.float32), names


# ── settings and clones ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_settings_are_the_objects_that_were_given(clip) -> None:
    given = {"clip": clip, "labels": LABELS, "templates": ["a {}.", "the {}."], "independent": True}
    given |= {"background": ["a photo."], "progress": lambda done, of: None}
    classifier = ZeroShotClassifier(**given)
    assert classifier.get_params().keys() == given.keys()
    assert all(classifier.get_params()[name] is value for name, value in given.items())


def test_a_clone_shares_the_model_and_encodes_nothing(clip, encoded: list[str]) -> None:
    classifier = ZeroShotClassifier(clip, LABELS, "imagenet7")
    encoded.clear()
    twin = clone(classifier)
    assert twin.clip is clip
    np.testing.assert_array_equal(twin.coef_, classifier.coef_)
    twin.coef_ += 1
    assert not np.array_equal(twin.coef_, classifier.coef_)
    assert encoded == []


def test_changed_settings_are_encoded_when_they_are_needed(clip, encoded: list[str]) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    encoded.clear()
    assert classifier.set_params(templates="a {}!", labels=["ant", "bee"]) is classifier
    assert encoded == []
    assert classifier.predict(np.ones((1, 48), np.float32))[0] in ("ant", "bee")
    assert encoded == ["a ant!", "a bee!"]
    np.testing.assert_array_equal(classifier.coef_, ZeroShotClassifier(clip, ["ant", "bee"], "a {}!").coef_)
    with pytest.raises(InvalidArgumentError, match="ZeroShotClassifier has no setting 'C'; it has clip, labels, temp"):
        classifier.set_params(C=1, labels=["wasp"])
    assert classifier.labels == ["ant", "bee"]


def test_fitting_makes_it_anew_where_something_has_changed(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    classifier.templates = "a {}!"
    np.testing.assert_array_equal(classifier.fit().coef_, ZeroShotClassifier(clip, LABELS, "a {}!").coef_)


def test_what_was_read_from_a_file_keeps_its_weights(clip, tmp_path) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    classifier.coef_ *= 2
    classifier.save(tmp_path / "a.safetensors")
    again = ZeroShotClassifier.from_file(tmp_path / "a.safetensors", clip)
    for one in (again, clone(again), clone(again).fit(), again.set_params(progress=None)):
        np.testing.assert_array_equal(one.coef_, classifier.coef_)
        assert one.templates is None
    with pytest.raises(InvalidArgumentError, match="has no templates: set them with labels"):
        again.set_params(labels=["ant"]).predict(np.ones((1, 48)))
    assert again.set_params(templates="plain").predict(np.ones((1, 48))).tolist() == ["ant"]


def test_labels_may_be_an_iterator(clip) -> None:
    classifier = ZeroShotClassifier(clip, iter(LABELS)).set_params(templates="a {}.")
    assert classifier.fit().classes_.tolist() == LABELS


# ── in scikit-learn's tools ──────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_scored_by_cross_validation_on_features_and_on_paths(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    features, names = draw(clip)
    assert is_classifier(classifier)
    right = classifier.predict(features) == names
    assert classifier.score(features, names) == right.mean() == 0.8
    np.testing.assert_allclose(cross_val_score(classifier, features, names, cv=3).mean(), 0.8)
    answers = classifier.predict(PHOTOS)
    for paths in (PHOTOS, [str(path) for path in PHOTOS], np.array([str(path) for path in PHOTOS])):
        assert cross_val_score(classifier, paths, answers, cv=[([0, 1], [2, 3, 4, 5])]).tolist() == [1.0]


def test_it_ends_a_pipeline(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    features, names = draw(clip)
    fitted = make_pipeline(Normalizer(), classifier).fit(3 * features, names)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_proba(3 * features), classifier.predict_proba(unit), atol=1e-5)
    from_paths = make_pipeline(FunctionTransformer(clip.encode_images), classifier)
    assert from_paths.predict(PHOTOS).tolist() == classifier.predict(PHOTOS).tolist()


def test_a_search_over_templates_encodes_each_of_them_once(clip, encoded: list[str]) -> None:
    features, names = draw(clip)
    classifier = ZeroShotClassifier(clip, LABELS)
    encoded.clear()
    grid = {"templates": ["nothing of {}", ["a drawing of a {}", "a drawing of the {}"]]}
    search = GridSearchCV(classifier, grid, cv=3, error_score="raise").fit(features, names)
    assert len(encoded) == len(set(encoded)) == 9
    assert search.best_estimator_.clip is clip
    for place, templates in enumerate(grid["templates"]):
        expected = ZeroShotClassifier(clip, LABELS, templates).score(features, names)
        assert search.cv_results_["mean_test_score"][place] == pytest.approx(expected)


def test_probabilities_are_in_the_order_of_the_labels_and_sorted_once_it_is_fitted_to_named_images(clip) -> None:
    features, names = draw(clip)
    labels = ["dog", "space rocket", "cat"]
    by_hand, fitted = ZeroShotClassifier(clip, labels), ZeroShotClassifier(clip, labels).fit(features, names)
    assert by_hand.fit().fit(features).classes_.tolist() == labels
    assert fitted.classes_.tolist() == sorted(labels)
    sure = by_hand.predict_proba(features)[:, [2, 0, 1]]
    np.testing.assert_allclose(fitted.predict_proba(features), sure, atol=1e-12)
    np.testing.assert_array_equal(fitted.predict(features), by_hand.predict(features))
    assert fitted.top_k(features[:1])[0][0] == (by_hand.predict(features)[0], pytest.approx(sure[0].max()))
    np.testing.assert_array_equal(fitted.to_linear().weight.detach(), by_hand.coef_[[2, 0, 1]])
    assert fitted.labels == labels
    assert fitted.fit().classes_.tolist() == labels
    fitted.fit(features, names).templates = "a {}!"
    assert fitted.fit(features, names).classes_.tolist() == sorted(labels)
    np.testing.assert_array_equal(fitted.coef_, ZeroShotClassifier(clip, sorted(labels), "a {}!").coef_)


def test_what_was_read_from_a_file_is_sorted_too(clip, tmp_path) -> None:
    features, names = draw(clip)
    ZeroShotClassifier(clip, LABELS[::-1]).save(tmp_path / "a.safetensors")
    read = ZeroShotClassifier.from_file(tmp_path / "a.safetensors", clip)
    assert read.classes_.tolist() == LABELS[::-1]
    expected = ZeroShotClassifier(clip, LABELS).predict_proba(features)
    np.testing.assert_allclose(read.fit(features, names).predict_proba(features), expected, atol=1e-6)
    read.save(tmp_path / "b.safetensors")
    again = ZeroShotClassifier.from_file(tmp_path / "b.safetensors", clip)
    assert again.classes_.tolist() == LABELS
    np.testing.assert_array_equal(again.predict_proba(features), read.predict_proba(features))


@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1], ["dog", "space rocket", "cat"]])
def test_scores_by_probability_are_scikit_learn_s_own_whatever_the_order_of_the_labels(clip, labels) -> None:
    features, names = draw(clip)
    sure = ZeroShotClassifier(clip, sorted(LABELS)).predict_proba(features)
    whole = {"estimator": ZeroShotClassifier(clip, labels), "X": features, "y": names, "cv": [(range(30), range(30))]}
    (loss,) = cross_val_score(**whole, scoring="neg_log_loss", error_score="raise")
    assert loss == pytest.approx(-log_loss(names, sure, labels=sorted(LABELS)))
    (area,) = cross_val_score(**whole, scoring="roc_auc_ovr", error_score="raise")
    assert area == pytest.approx(roc_auc_score(names, sure, multi_class="ovr", labels=sorted(LABELS)))


@pytest.mark.parametrize("labels", [["cat", "dog"], ["dog", "cat"]])
def test_two_labels_have_an_area_under_the_curve(clip, labels) -> None:
    features, names = draw(clip)
    features, names = features[names != "space rocket"], names[names != "space rocket"]
    whole = range(len(names))
    words = ZeroShotClassifier(clip, labels)
    (area,) = cross_val_score(words, features, names, cv=[(whole, whole)], scoring="roc_auc", error_score="raise")
    dog = words.logits(features)[:, labels.index("dog")] - words.logits(features)[:, labels.index("cat")]
    assert 0.6 < area == pytest.approx(roc_auc_score(names == "dog", dog))


def test_numbers_in_the_place_of_names_are_refused_and_not_guessed(clip) -> None:
    features, names = draw(clip)
    with pytest.raises(InvalidArgumentError, match="y has 0, which is not among the labels"):
        cross_val_predict(ZeroShotClassifier(clip, LABELS), features, names, cv=3, method="predict_proba")


# ── its own checks ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Widened(ZeroShotClassifier):
    """Takes the arrays of scikit-learn's checks: columns are repeated up to embed_dim, and classes are numbers.

    No number of theirs is a label, so that `fit` is not given them.
    """

    def fit(self, X=None, y=None):  # type: ignore[no-untyped-def]
        return super().fit(X)

    def predict(self, X):  # type: ignore[no-untyped-def]
        return super().predict(X).astype(float)

    def _given_features(self, X):  # type: ignore[no-untyped-def]
        if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "fiu" and X.size:
            X = np.resize(X.T, (48, len(X))).T
        return super()._given_features(X)


REFUSED = {
    "check_no_attributes_set_in_init": "it is ready when it is made, as there is nothing to fit",
    "check_do_not_raise_errors_in_init_or_set_params": "so it says at once what is wrong with its words",
    "check_estimators_overwrite_params": "its model prepares its weights when it is first used, and is the same model",
    "check_n_features_in": "images are no rows of a width",
    "check_n_features_in_after_fitting": "the same; features of another width are refused",
    "check_dtype_object": "an array of objects with two axes is neither images nor features",
    "check_classifier_data_not_an_array": "what is no array is taken for a list of images",
    "check_classifiers_one_label": "it learns nothing from labels, so that one of them is not always right",
    "check_classifiers_train": "the same; labels that do not match are refused, which `_Widened` hides",
    "check_classifiers_classes": "the same: its classes are its labels, whatever y has",
    "check_classifiers_regression_target": "the same",
    "check_supervised_y_no_nan": "the same",
    "check_supervised_y_2d": "the same",
}


@pytest.mark.filterwarnings("ignore:Estimator _Widened does not inherit:UserWarning")  # and need not
def test_scikit_learn_s_own_checks_hold_where_they_can(clip) -> None:
    failed, held = {}, set()
    for classifier, check in estimator_checks_generator(_Widened(clip, ["0", "1", "2"])):
        try:
            check(classifier)
            held.add(check.func.__name__)
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                failed[check.func.__name__] = error
    assert set(failed) == set(REFUSED)
    assert {"check_estimators_pickle", "check_methods_subset_invariance", "check_fit_idempotent"} <= held


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("X", "y", "says"),
    [
        (np.ones((2, 48)), ["cat", "cow"], "y has 'cow', which is not among the labels"),
        (np.ones((2, 48)), [0, 1], "y has 0, which is not among the labels"),
        (np.ones((2, 48)), ["cat"], r"labels of shape \(1,\) for 2 rows of X"),
        (np.ones((2, 7)), ["cat", "dog"], r"features must have shape \(n, 48\), not \(2, 7\)"),
        (np.full((1, 48), np.nan), ["cat"], "row 0 of the features contains NaN"),
    ],
)
def test_what_it_cannot_be_fitted_to_is_refused(clip, X, y, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        ZeroShotClassifier(clip, LABELS).fit(X, y)


def test_labels_that_are_no_list_are_refused(clip) -> None:
    with pytest.raises(InvalidArgumentError, match="labels must be a list of strings, not int"):
        ZeroShotClassifier(clip, 3)  # type: ignore[arg-type]
