"""Which folder is a split and which a class, what lies beside them, and that labels are never taken for captions."""

import os
from pathlib import Path

import pytest

from data_files import picture, write_parquet
from data_set_files import classes, found, labelled, shard
from sightline.errors import DataError
from sightline.evaluate.data_sets import open_captioned, open_data_set, open_measurable, open_split
from sightline.evaluate.sources import UnlabelledError


def stray(path: Path) -> Path:
    path.write_bytes(picture(77))
    return path


def birds(root: Path, *splits: str) -> Path:
    """Two classes in each split."""
    for split in splits:
        classes(root / split, "wren", "owl")
    return root


# ── a split that is measured is not learned from ─────────────────────────────────────────────────────────────────────

ALONE = "what is measured is its training split, as there is no other: nothing is learned from it"


def test_of_a_training_split_alone_nothing_is_learned_and_a_note_says_so(tmp_path: Path) -> None:
    data = open_measurable(birds(tmp_path / "birds", "train"))
    assert (data.measured, data.training, data.notes) == ("train", None, (ALONE,))
    assert open_measurable(birds(tmp_path / "more", "train", "val")).notes == ()


def test_so_is_it_of_a_described_set_and_of_captions(tmp_path: Path) -> None:
    labelled(tmp_path / "cifar10" / "train.parquet", ["dog", "cat"])
    data = open_measurable("cifar10", tmp_path)
    assert (data.measured, data.training, data.notes) == ("train", None, (ALONE,))
    shard(tmp_path / "flickr8k" / "train" / "0.tar", ["a dog", "a cat"], "txt")
    data = open_measurable("flickr8k", tmp_path)
    assert (data.measured, data.training, data.notes) == ("train", None, (ALONE,))


# ── a stray image decides nothing ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_stray_image_in_a_split_is_left_out_and_said(tmp_path: Path, split: str) -> None:
    path = stray(birds(tmp_path / "birds", "train", "test") / split / "sheet.png")
    data = open_data_set(tmp_path / "birds")
    assert (data.splits, data.measured, data.training) == (("train", "test"), "test", "train")
    assert data.class_names == ("owl", "wren")
    for name in ("train", "test"):
        images = data.open(name)
        assert found(data, name) == ["owl", "wren"]
        expected = (f"1 image is left out, in no folder of a class: {path}",) if name == split else ()
        assert images.notes == expected


def test_a_stray_image_in_a_folder_of_classes_is_left_out_and_said(tmp_path: Path) -> None:
    folder = classes(tmp_path / "birds", "wren", "owl")
    first, _ = stray(folder / "a.png"), stray(folder / "b.png")
    data = open_data_set(folder)
    assert found(data, "test") == ["owl", "wren"]
    assert data.open("test").image(1) == folder / "wren" / "0.png"
    assert data.open("test").notes == (f"2 images are left out, in no folder of a class: {first}, …",)


def test_what_lies_beside_the_splits_is_said(tmp_path: Path) -> None:
    folder = birds(tmp_path / "birds", "train", "test", "holdout")
    stray(folder / "overview.png")
    (folder / "notes").mkdir()
    data = open_data_set(folder)
    assert (data.splits, data.class_names) == (("train", "test"), ("owl", "wren"))
    assert data.notes == (
        "not read, as it has the name of no split (train, val, valid, validation, dev, test): "
        "'holdout', 'overview.png'",
    )


def test_of_a_split_that_lies_there_twice_the_folder_is_read_and_the_file_is_said(tmp_path: Path) -> None:
    folder = birds(tmp_path / "birds", "train", "test")
    labelled(folder / "test.parquet", ["crow", "owl"])
    labelled(folder / "data" / "test-00000-of-00001.parquet", ["crow", "owl"])
    data = open_data_set(folder)
    assert found(data, "test") == ["owl", "wren"]
    assert data.notes == (
        "not read: 'test.parquet', as the split 'test' is read from 'test'",
        f"not read: {str(Path('data', 'test-00000-of-00001.parquet'))!r}, as the split 'test' is read from 'test'",
    )


def test_images_that_a_table_names_may_lie_beside_it(tmp_path: Path) -> None:
    classes(tmp_path / "images", "wren", "owl")
    (tmp_path / "test.csv").write_text("path,label\nimages/wren/0.png,wren\nimages/owl/0.png,owl\n")
    assert open_data_set(tmp_path).notes == ()


def test_texts_and_hidden_files_decide_nothing(tmp_path: Path) -> None:
    folder = birds(tmp_path / "birds", "train", "test")
    for place in (folder, folder / "test", folder / "test" / "wren"):
        (place / "readme.txt").write_text("birds")
        (place / ".DS_Store").write_bytes(b"\0")
        stray(place / "._0.png")
    data = open_data_set(folder)
    assert (data.splits, data.notes, data.open("test").notes) == (("train", "test"), (), ())
    assert found(data, "test") == ["owl", "wren"]


def test_a_class_with_the_name_of_a_split_is_a_class_beside_another_whatever_texts_are_in_it(tmp_path: Path) -> None:
    folder = classes(tmp_path / "vehicles", "bus", "train")
    (folder / "train" / "readme.txt").write_text("trains")
    assert found(open_data_set(folder), "test") == ["bus", "train"]


def test_folders_of_images_that_are_all_named_as_splits_are_splits_without_classes(tmp_path: Path) -> None:
    classes(tmp_path / "photos", "train", "test")
    with pytest.raises(DataError, match=r"photos/train: has images, but no \.txt beside them, and no folder for each"):
        open_measurable(tmp_path / "photos")


def test_a_split_without_classes_beside_one_that_has_some_is_no_class_and_does_not_vanish(tmp_path: Path) -> None:
    folder = birds(tmp_path / "birds", "train")
    classes(folder, "test", "drawings")
    with pytest.raises(DataError, match=r"birds/test: has images, but no \.txt beside them, and no folder for each"):
        open_measurable(folder)


def test_images_of_a_class_may_lie_in_folders_in_it(tmp_path: Path) -> None:
    folder = classes(tmp_path / "birds", "wren", "owl")
    classes(folder / "owl", "barn", "snow")
    assert found(open_data_set(folder), "test") == ["owl", "owl", "owl", "wren"]


# ── labels are never taken for captions ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("missing", [None, "", "  "])
@pytest.mark.parametrize("captions", [False, True])
def test_a_label_that_is_missing_is_named_and_the_set_is_not_of_captions(
    tmp_path: Path, missing: str | None, captions: bool
) -> None:
    labels = ["wren", "owl", "wren", "owl", "wren", missing]
    columns = {"image": [picture(i) for i in range(6)], "label": labels}
    path = write_parquet(tmp_path / "test.parquet", columns | ({"caption": ["a bird"] * 6} if captions else {}))
    with pytest.raises(DataError) as caught:
        open_measurable(tmp_path)
    assert str(caught.value) == f"{path}, row 6: has no label"


@pytest.mark.parametrize("row", ["0.png", "0.png,", '0.png,"  "'])
def test_so_is_a_cell_that_is_missing_in_a_table(tmp_path: Path, row: str) -> None:
    (tmp_path / "test.csv").write_text(f"path,label\n0.png,wren\n1.png,owl\n{row}\n")
    with pytest.raises(DataError) as caught:
        open_measurable(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'test.csv'}, row 3: has no label"


def test_labels_are_no_captions(tmp_path: Path) -> None:
    for source in (labelled(tmp_path / "a.parquet", ["wren", "owl"]), classes(tmp_path / "birds", "wren", "owl")):
        with pytest.raises(DataError, match=r"has labels and no captions$"):
            open_captioned(source)


def test_what_has_no_place_for_labels_is_measured_by_its_captions(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [picture(0)], "caption": ["a wren"]})
    shard(tmp_path / "b.tar", ["a wren"], "txt")
    (tmp_path / "c").mkdir()
    stray(tmp_path / "c" / "0.png")
    (tmp_path / "c" / "0.txt").write_text("a wren")
    for name in ("a.parquet", "b.tar", "c"):
        with pytest.raises(UnlabelledError, match="no labels: "):
            open_data_set(tmp_path / name)
        data = open_measurable(tmp_path / name)
        assert (data.class_names, data.open("test").captions(0)) == ((), ("a wren",))  # type: ignore[attr-defined]


def test_a_note_beside_one_image_makes_no_set_of_captions(tmp_path: Path) -> None:
    folder = classes(tmp_path / "birds", "wren", "owl", "tit")
    (folder / "owl" / "0.txt").write_text("seen in May")
    with pytest.raises(
        DataError, match=r"birds: has \.txt files beside images, which are captions, and so no labels: to"
    ):
        open_measurable(folder)
    with pytest.raises(
        DataError, match=r"has captions of 1 of 3 images alone, and the rest none, as here: .*tit/0\.txt"
    ):
        open_captioned(folder)


def test_rows_without_a_caption_are_said(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("path,caption\n0.png,a\n1.png,b\n2.png,\n")
    assert open_captioned(tmp_path).notes == (
        f"1 row of {tmp_path.name}/test is left out, for want of an image or a caption: 2.png: has no caption",
    )


# ── one split of several ─────────────────────────────────────────────────────────────────────────────────────────────


def test_of_a_folder_with_splits_the_one_that_is_meant_is_opened(tmp_path: Path) -> None:
    folder = birds(tmp_path / "birds", "train", "validation")
    images, split = open_split(folder, "train")
    assert (split, images.name, images.class_names) == ("train", "birds/train", ("owl", "wren"))
    assert open_split(folder, "val", ("wren", "owl"))[0].labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"birds: has no split 'test'; it has train, validation: name the one you mean"):
        open_split(folder, "test")


def test_what_has_no_splits_is_opened_whole(tmp_path: Path) -> None:
    folder = classes(tmp_path / "birds", "wren", "owl")
    for name in (folder, os.path.relpath(folder), labelled(tmp_path / "a.parquet", ["wren", "owl"])):
        images, split = open_split(name, "train")
        assert (split, len(images)) == (None, 2)
