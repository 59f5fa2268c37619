"""Labelled sets say what they hold or why not, and accuracy is what plain counting makes it."""

import json
from pathlib import Path

import numpy as np
import pytest

import sightline
from data_files import picture, write_csv, write_parquet, write_shard
from sightline.data import open_pairs
from sightline.errors import DataError
from sightline.evaluate import named, open_labelled, zero_shot_accuracy
from sightline.evaluate.accuracy import mean_per_class
from sightline.evaluate.zero_shot import better_classes
from tiny import tiny_encoder

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def write_classes(root: Path, names: tuple[str, ...] = NAMES, each: int = 3) -> Path:
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(each):
            (root / name / f"{j}.png").write_bytes(picture(i * each + j))
    return root


def write_labels(path: Path, labels: list[str | None], images: list[bytes] | None = None, **columns: list) -> Path:
    given = images or [picture(i) for i in range(len(labels))]
    return write_parquet(path, {"image": given, "label": labels, **columns})


# ── the sets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_of_classes_is_a_labelled_set(tmp_path: Path) -> None:
    data = open_labelled(write_classes(tmp_path / "birds" / "val", ("great_tit", "blue_tit"), each=2))
    assert data.name == "birds/val"
    assert data.class_names == ("blue tit", "great tit")
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.image(0) == tmp_path / "birds" / "val" / "blue_tit" / "0.png"


def test_parquet_with_labels_is_a_labelled_set(tmp_path: Path) -> None:
    labels = ["dog", "cat", "dog", "ant", "cat"]
    data = open_labelled(write_labels(tmp_path / "test.parquet", labels, synonyms=[["hound"]] * 5))
    assert data.name == f"{tmp_path.name}/test"
    assert [data.class_names[label] for label in data.labels] == labels
    assert [data.image(i) for i in range(len(data))] == [picture(i) for i in range(5)]


def test_numbers_are_named_by_the_class_names_that_hugging_face_leaves(tmp_path: Path) -> None:
    named = json.dumps({"info": {"features": {"label": {"names": ["zebra", "ant"]}}}})
    columns = {"image": [picture(i) for i in range(3)], "label": [1, 0, 1]}
    data = open_labelled(write_parquet(tmp_path / "a.parquet", columns, metadata={"huggingface": named}))
    assert data.class_names == ("ant", "zebra")
    assert data.labels.tolist() == [0, 1, 0]


def test_a_table_and_several_files_together_are_labelled_sets(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "a.csv").write_text("path,label\n0.png,dog\n1.png,cat\n")
    (tmp_path / "b.csv").write_text("path,label\n2.png,cat\n3.png,eel\n")
    assert open_labelled(tmp_path / "a.csv").labels.tolist() == [1, 0]
    both = open_labelled(f"{tmp_path}/[ab].csv")
    assert [both.class_names[label] for label in both.labels] == ["dog", "cat", "cat", "eel"]


def test_of_captions_and_labels_training_takes_the_first_and_evaluation_the_second(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "a.parquet", ["dog", "cat"], caption=["one of a dog", "one of a cat"])
    assert open_pairs(path)[0].captions == ("one of a dog",)
    assert open_labelled(path).class_names == ("cat", "dog")


def test_labels_are_read_without_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.data.parquet import Parquet

    read: list[list[str]] = []
    as_it_is = Parquet._read

    def noted(self: Parquet, group: int, columns: list[str]) -> object:
        read.append(columns)
        return as_it_is(self, group, columns)

    monkeypatch.setattr(Parquet, "_read", noted)
    open_labelled(write_labels(tmp_path / "a.parquet", ["dog", "cat"] * 4))
    assert read == [["label"], ["label"]]


def test_what_has_no_labels_is_refused(tmp_path: Path) -> None:
    captioned = write_csv(tmp_path, 2)
    shard = write_shard(tmp_path / "a.tar", range(2))
    for source in (captioned, shard):
        with pytest.raises(DataError, match=f"{source.name}: has no labels: needed is a folder"):
            open_labelled(source)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has one class alone \\('dog'\\)"):
        open_labelled(write_labels(tmp_path / "a.parquet", ["dog", "dog"]))


@pytest.mark.parametrize(("missing", "reason"), [(None, "has no label"), (" ", "has no label")])
def test_a_missing_label_is_refused_by_its_row(tmp_path: Path, missing: str | None, reason: str) -> None:
    with pytest.raises(DataError, match=f"a.parquet, row 2: .*{reason}"):
        open_labelled(write_labels(tmp_path / "a.parquet", ["dog", missing, "cat"]))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_labelled(tmp_path / "none.parquet")


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_equals_the_classifiers_predictions_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set")
    for extra in range(3, 9):  # classes of unequal size: the mean per class is another number than top-1
        (root / "cat" / f"{extra}.png").write_bytes(picture(100 + extra))
    data, clip = open_labelled(root), tiny_encoder()
    found = named(zero_shot_accuracy(clip, data, templates="imagenet", batch_size=4))

    classifier = sightline.ZeroShotClassifier(clip, NAMES, "imagenet")
    logits = classifier.logits([data.image(i) for i in range(len(data))])
    assert list(found) == ["top-1", "top-5", "mean per class"]
    assert found["top-1"] == pytest.approx((logits.argmax(axis=1) == data.labels).mean())
    best = [sorted(range(7), key=lambda c: -row[c])[:5] for row in logits]
    assert found["top-5"] == pytest.approx(np.mean([own in five for own, five in zip(data.labels, best, strict=True)]))
    recalls = [(logits[data.labels == c].argmax(axis=1) == c).mean() for c in range(7)]
    assert found["mean per class"] == pytest.approx(np.mean(recalls))
    assert found["mean per class"] != pytest.approx(found["top-1"])


def test_how_many_classes_are_nearer_is_what_sorting_says() -> None:
    draw = np.random.default_rng(0)
    features, classes = draw.normal(size=(5000, 8)).astype(np.float32), draw.normal(size=(30, 8)).astype(np.float32)
    labels = draw.integers(0, 30, 5000)
    order = np.argsort(-(features @ classes.T), axis=1, kind="stable")
    assert better_classes(features, classes, labels).tolist() == (order == labels[:, None]).argmax(axis=1).tolist()


def test_of_equal_classes_the_first_is_predicted() -> None:
    classes = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert better_classes(np.array([[1, 0], [1, 0]], np.float32), classes, np.array([0, 1])).tolist() == [0, 1]


def test_a_feature_that_is_not_finite_is_wrong_and_not_right() -> None:
    features = np.full((2, 4), np.nan, np.float32)
    assert better_classes(features, np.eye(4, dtype=np.float32), np.array([0, 3])).tolist() == [3, 3]


def test_every_class_with_an_image_counts_the_same() -> None:
    right, labels = np.array([True, True, False, True]), np.array([0, 0, 0, 3])
    assert mean_per_class(right, labels) == pytest.approx((2 / 3 + 1) / 2)


def test_there_is_no_top_5_of_five_classes(tmp_path: Path) -> None:
    data = open_labelled(write_classes(tmp_path / "set", NAMES[:5], each=1))
    assert [result.name for result in zero_shot_accuracy(tiny_encoder(), data)] == ["top-1", "mean per class"]


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [picture(i) for i in range(6)]
    labels = ["ant", "bee", "cat"] * 2
    whole = named(zero_shot_accuracy(tiny_encoder(), open_labelled(write_labels(tmp_path / "a.parquet", labels, good))))
    mixed_images = [*good[:2], b"no image", *good[2:], None]
    mixed_labels = [*labels[:2], "bee", *labels[2:], "cat"]
    mixed = write_labels(tmp_path / "b.parquet", mixed_labels, mixed_images)  # type: ignore[arg-type]
    assert named(zero_shot_accuracy(tiny_encoder(), open_labelled(mixed))) == {**whole, "unreadable": 2.0}


def test_a_set_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    data = open_labelled(write_labels(tmp_path / "a.parquet", ["ant", "bee"], [b"x", b"y"]))
    with pytest.raises(DataError, match="has no image that can be read, of 2"):
        named(zero_shot_accuracy(tiny_encoder(), data))


def test_weights_that_change_between_two_evaluations_are_seen(tmp_path: Path) -> None:
    """Nothing is remembered of the model, in memory or on disk."""
    from sightline import zero_shot
    from sightline.hub import cache_dir

    data, clip = open_labelled(write_classes(tmp_path / "set")), tiny_encoder()
    first = named(zero_shot_accuracy(clip, data))
    clip.model.load_state_dict(tiny_encoder(seed=3).model.state_dict())
    assert named(zero_shot_accuracy(clip, data)) == named(zero_shot_accuracy(tiny_encoder(seed=3), data)) != first
    assert not zero_shot._memory
    assert not (cache_dir() / "class-features").exists()
