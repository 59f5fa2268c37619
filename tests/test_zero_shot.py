"""A classifier made of words is the linear classifier that the paper describes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import sightline
from sightline import zero_shot
from sightline.errors import CheckpointError, InvalidArgumentError
from sightline.zero_shot import BACKGROUND, ZeroShotClassifier
from tiny import tiny_encoder

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "photos").glob("*.jpg"))[:4]
LABELS = ["cat", "dog", "space rocket"]


@pytest.fixture
def clip() -> sightline.Encoder:
    return tiny_encoder()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_class_is_its_label_put_into_the_template(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    features = clip.encode_texts([f"a photo of a {label}." for label in LABELS])
    np.testing.assert_allclose(classifier.coef_, clip.scale * features, rtol=1e-5)
    assert classifier.classes_.tolist() == LABELS
    assert classifier.intercept_.tolist() == [0, 0, 0]


def test_several_templates_are_averaged_as_unit_features_and_normalised_again(clip) -> None:
    templates = ["a {}.", "itap of my {}.", "the {} in a video game"]
    classifier = ZeroShotClassifier(clip, LABELS, templates)
    by_template = [clip.encode_texts([t.replace("{}", label) for label in LABELS]) for t in templates]
    np.testing.assert_allclose(classifier.coef_, clip.scale * unit(np.mean(by_template, axis=0)), atol=1e-5)


def test_a_named_template_set_is_the_published_one(clip) -> None:
    classifier = ZeroShotClassifier(clip, ["cat"], "imagenet")
    prompts = [t.replace("{}", "cat") for t in sightline.template_set("imagenet").templates]
    expected = unit(clip.encode_texts(prompts).mean(axis=0, keepdims=True))
    np.testing.assert_allclose(classifier.coef_, clip.scale * expected, atol=1e-5)


def test_probabilities_are_those_of_the_original_formula(clip) -> None:
    """softmax(exp(logit_scale) · image_features @ text_features.T), as in the original's README."""
    probabilities = ZeroShotClassifier(clip, LABELS).predict_proba(clip.encode_images(PHOTOS, exact=True))
    pixels = torch.stack([clip.preprocess(sightline.read_image(photo)) for photo in PHOTOS])
    ids = clip.tokenizer([f"a photo of a {label}." for label in LABELS])
    with torch.no_grad():
        logits_per_image, _ = clip.model(pixels, ids)
    np.testing.assert_allclose(probabilities, logits_per_image.softmax(-1).numpy(), atol=1e-5)


def test_the_prediction_is_the_most_probable_label_and_top_k_is_sorted(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    probabilities = classifier.predict_proba(PHOTOS)
    assert classifier.predict(PHOTOS).tolist() == [LABELS[i] for i in probabilities.argmax(axis=1)]
    for row, best in zip(probabilities, classifier.top_k(PHOTOS, k=2), strict=True):
        assert [p for _, p in best] == sorted(row, reverse=True)[:2]
    assert len(classifier.top_k(PHOTOS, k=99)[0]) == 3


def test_features_stand_in_for_images(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    features = clip.encode_images(PHOTOS)
    np.testing.assert_array_equal(classifier.predict_proba(features), classifier.predict_proba(PHOTOS))
    with pytest.raises(InvalidArgumentError, match=r"features must have shape \(n, 48\), not \(4, 7\)"):
        classifier.predict(np.zeros((4, 7)))


def test_independent_labels_are_each_weighed_against_the_background_alone(clip) -> None:
    together = ZeroShotClassifier(clip, LABELS, independent=True).predict_proba(PHOTOS)
    features = clip.encode_images(PHOTOS)
    background = unit(clip.encode_texts(BACKGROUND).mean(axis=0))
    for column, label in enumerate(LABELS):
        pair = np.stack([clip.encode_texts([f"a photo of a {label}."])[0], background])
        logits = clip.scale * features @ pair.T
        softmax = np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)
        np.testing.assert_allclose(together[:, column], softmax, atol=1e-4)
        alone = ZeroShotClassifier(clip, [label], independent=True).predict_proba(PHOTOS)
        np.testing.assert_allclose(together[:, [column]], alone, atol=1e-6)


def test_the_linear_layer_gives_the_same_logits(clip) -> None:
    classifier = ZeroShotClassifier(clip, LABELS)
    features = clip.encode_images(PHOTOS)
    with torch.no_grad():
        logits = classifier.to_linear()(torch.from_numpy(features))
    np.testing.assert_allclose(logits.numpy(), classifier.logits(features), atol=1e-4)


def test_a_label_may_hold_braces_and_may_come_twice(clip) -> None:
    classifier = ZeroShotClassifier(clip, ["{}", "{0.__class__}", "missile", "missile"])
    np.testing.assert_array_equal(classifier.coef_[2], classifier.coef_[3])


def test_progress_counts_the_prompts(clip) -> None:
    calls: list[tuple[int, int]] = []
    ZeroShotClassifier(clip, LABELS, ["a {}.", "the {}."], progress=lambda *call: calls.append(call))
    assert calls == [(6, 6)]


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ("cat", "plain", "labels must be a list of strings; put brackets around the one"),
        ([], "plain", "there are no labels: name at least one"),
        (["cat", " "], "plain", "label 1 is ' '; each label must be a string with text in it"),
        ([3], "plain", "label 0 is 3; each label must be a string"),
        (["cat"], "a cat", "no template set 'a cat'"),
        (["cat"], ["a {} and a {}"], "needs exactly one {}"),
        (["cat " * 99], "plain", "where 77 fit"),
    ],
)
def test_what_makes_no_classifier_is_refused(clip, labels, templates, message: str) -> None:
    with pytest.raises(sightline.SightlineError, match=message):
        ZeroShotClassifier(clip, labels, templates)


@pytest.mark.parametrize("background", [[], "a photo.", [3]])
def test_a_background_that_is_no_list_of_prompts_is_refused(clip, background) -> None:
    with pytest.raises(InvalidArgumentError, match="background must be a list of prompts"):
        ZeroShotClassifier(clip, LABELS, independent=True, background=background)


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_the_best_labels_are_at_least_one(clip, k) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a whole number above zero"):
        ZeroShotClassifier(clip, LABELS).top_k(PHOTOS, k)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_text_is_encoded(monkeypatch: pytest.MonkeyPatch):
    def forbid() -> None:
        def encode(*_args: object, **_options: object) -> None:
            raise AssertionError("a text was encoded")

        monkeypatch.setattr(sightline.Encoder, "encode_texts", encode)

    return forbid


@pytest.mark.parametrize("kept_in", ["memory", "disk"])
def test_the_second_run_encodes_no_text(clip, no_text_is_encoded, monkeypatch, kept_in: str) -> None:
    first = ZeroShotClassifier(clip, LABELS, "imagenet7")
    no_text_is_encoded()
    if kept_in == "disk":
        monkeypatch.setattr(zero_shot, "_memory", {})
        clip = tiny_encoder()  # the same weights, in a new process as it were
    np.testing.assert_array_equal(ZeroShotClassifier(clip, LABELS, "imagenet7").coef_, first.coef_)


@pytest.mark.parametrize("change", ["labels", "order", "templates", "weights"])
def test_what_is_kept_is_for_the_same_question_only(clip, no_text_is_encoded, change: str) -> None:
    ZeroShotClassifier(clip, LABELS)
    labels, templates = LABELS, "plain"
    if change == "labels":
        labels = ["cat", "dog", "space rockets"]
    elif change == "order":
        labels = LABELS[::-1]
    elif change == "templates":
        templates = "a {}."
    else:
        with torch.no_grad():
            clip.model.text_projection.add_(1e-3)
    no_text_is_encoded()
    with pytest.raises(AssertionError, match="a text was encoded"):
        ZeroShotClassifier(clip, labels, templates)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, "truncate", "zero", "bfloat16", "int32"])
def test_a_damaged_cache_is_made_anew(clip, monkeypatch, damage) -> None:
    first = ZeroShotClassifier(clip, LABELS)
    (file,) = (zero_shot.cache_dir() / "class-features").iterdir()
    data = file.read_bytes()
    damaged = {"truncate": data[:-10], "zero": data[:-4] + b"\x00\x00\xc0\x7f"}.get(damage, damage)  # 7fc00000 is NaN
    if damage in ("bfloat16", "int32"):
        damaged = save({"features": torch.from_numpy(first.coef_).to(getattr(torch, damage))})
    file.write_bytes(damaged)
    monkeypatch.setattr(zero_shot, "_memory", {})
    np.testing.assert_array_equal(ZeroShotClassifier(clip, LABELS).coef_, first.coef_)
    assert file.read_bytes() == data


def test_a_cache_that_cannot_be_written_is_no_error(clip, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file"))
    assert ZeroShotClassifier(clip, LABELS).coef_.shape == (3, 48)


def test_a_saved_classifier_needs_no_text_tower(clip, tmp_path) -> None:
    clip.save(tmp_path / "model")
    for independent in (False, True):
        classifier = ZeroShotClassifier(clip, LABELS, independent=independent)
        classifier.intercept_ = np.array([0.0, 1.5, -3.0])
        classifier.save(tmp_path / "pets.safetensors")
        image_tower = sightline.load(tmp_path / "model", towers="image")
        again = ZeroShotClassifier.from_file(tmp_path / "pets.safetensors", image_tower)
        assert again.classes_.tolist() == LABELS
        np.testing.assert_allclose(again.predict_proba(PHOTOS), classifier.predict_proba(PHOTOS), atol=1e-6)


def test_a_file_that_is_no_classifier_of_this_model_is_refused(clip, tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ZeroShotClassifier.from_file(tmp_path / "x.safetensors", clip)
    clip.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="is not a classifier that Sightline saved"):
        ZeroShotClassifier.from_file(tmp_path / "model" / "model.safetensors", clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"format": "another"}, "its format is not"),
        ({"labels": '"ab"'}, "its labels are no list"),
        ({"labels": "{}"}, "its labels are no list"),
        ({"labels": "[1, 2]"}, "label 0 is 1"),
        ({"labels": '["a"]'}, r"weights of shape \(2, 48\) and \(2,\) for 1 labels"),
        ({"labels": "[" * 99_999}, "is not a classifier"),
        ({"independent": "1"}, "neither true nor false"),
        # Which of the two, depends on whether somebody has taught numpy what bfloat16 is.
        ({"coef": torch.ones(2, 48, dtype=torch.bfloat16)}, "(cannot be read|.*finite float32)"),
        ({"coef": torch.ones(2, 48, dtype=torch.float64)}, "finite float32"),
        ({"coef": torch.full((2, 48), torch.nan)}, "finite float32"),
        ({"coef": torch.tensor(1.0)}, r"weights of shape \(\)"),
        ({"coef": torch.ones(2, 7)}, "was made for features of 7 numbers, not 48"),
        ({"intercept": torch.ones(2, 1)}, r"weights of shape \(2, 48\) and \(2, 1\)"),
        ({"intercept": torch.tensor([0.0, torch.inf])}, "finite float32"),
    ],
)
def test_a_file_made_to_deceive_is_refused(clip, tmp_path, change: dict, message: str | None) -> None:
    good = {"coef": torch.ones(2, 48), "intercept": torch.zeros(2)}
    said = {"format": "sightline-classifier-1", "labels": '["a", "b"]', "independent": "false"}
    tensors = {name: change.get(name, tensor) for name, tensor in good.items()}
    file = tmp_path / "x.safetensors"
    file.write_bytes(save(tensors, {name: change.get(name, text) for name, text in said.items()}))
    if message is None:
        assert ZeroShotClassifier.from_file(file, clip).classes_.tolist() == ["a", "b"]
        return
    with pytest.raises(CheckpointError, match=f"x.safetensors: .*{message}"):
        ZeroShotClassifier.from_file(file, clip)
