"""Data sets by path and by name: splits, class names, prompts, captions; and what is wrong with one, in one line."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_files import picture, write_parquet
from data_set_files import classes, clip_benchmark, found, labelled, shard
from sightline.errors import DataError
from sightline.evaluate.data_sets import DataSet, open_captioned, open_data_set
from sightline.evaluate.labelled import ClassList, open_labelled

# ── layouts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_for_each_split_is_a_data_set(tmp_path: Path) -> None:
    labelled(tmp_path / "pets" / "train.parquet", ["dog", "cat", "eel"])
    labelled(tmp_path / "pets" / "test.parquet", ["cat", "dog"])
    data = open_data_set(tmp_path / "pets")
    assert (data.name, data.splits, data.measured, data.training) == ("pets", ("train", "test"), "test", "train")
    assert data.class_names == ("cat", "dog", "eel")
    assert data.templates == "plain"
    assert found(data, "test") == ["cat", "dog"]
    assert data.open("test").class_names == data.class_names, "a split need not show all"
    assert data.open("test").name == "pets/test"
    assert data.open("train").image(0) == picture(0)


def test_a_folder_of_classes_for_each_split_and_a_table_are_data_sets(tmp_path: Path) -> None:
    classes(tmp_path / "birds" / "train", "wren", "great_tit")
    classes(tmp_path / "birds" / "val", "great_tit", "owl")
    data = open_data_set(tmp_path / "birds")
    assert (data.splits, data.measured, data.class_names) == (("train", "val"), "val", ("great tit", "owl", "wren"))
    (tmp_path / "birds" / "test.csv").write_text("path,label\nval/owl/0.png,owl\n")
    data = open_data_set(tmp_path / "birds")
    assert (data.splits, data.measured) == (("train", "val", "test"), "test")
    assert found(data, "test") == ["owl"]


def test_one_folder_of_classes_or_one_file_is_one_split(tmp_path: Path) -> None:
    data = open_data_set(classes(tmp_path / "birds", "wren", "owl"))
    assert (data.name, data.splits, data.measured, data.training) == ("birds", ("test",), "test", None)
    file = open_data_set(labelled(tmp_path / "pets" / "val.parquet", ["dog", "cat"]))
    assert (file.name, file.splits, found(file, "test")) == ("pets", ("test",), ["dog", "cat"])
    assert open_data_set(labelled(tmp_path / "farm.parquet", ["cow", "pig"])).name == "farm"


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    data = open_data_set(classes(tmp_path / "vehicles", "bus", "train"))
    assert (data.splits, data.class_names) == (("test",), ("bus", "train"))


def test_several_files_as_hugging_face_writes_them_are_one_split(tmp_path: Path) -> None:
    for i, labels in enumerate((["dog", "cat"], ["eel"])):
        labelled(tmp_path / "pets" / "data" / f"test-{i:05}-of-00002.parquet", labels)
    assert found(open_data_set(tmp_path / "pets"), "test") == ["dog", "cat", "eel"]


def test_clip_benchmarks_layout_is_read_with_its_class_names_and_templates(tmp_path: Path) -> None:
    data = open_data_set(clip_benchmark(tmp_path / "wds_beasts"))
    assert (data.name, data.splits, data.class_names) == ("wds_beasts", ("train", "test"), ("zebra", "ant", "red fox"))
    assert data.templates == ("a photo of a {}.", "art of the {}.")
    assert found(data, "train") == ["zebra", "ant", "red fox", "zebra"]
    assert data.open("test").labels.tolist() == [2, 1, 1]
    assert data.open("test").image(2) == picture(2)


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(11):
        shard(tmp_path / "s" / "test" / f"{number}.tar", [f"{number:02}"])
    images = open_data_set(tmp_path / "s").open("test")
    assert images.labels.tolist() == list(range(11))


def test_a_folder_of_shards_is_one_split(tmp_path: Path) -> None:
    shard(tmp_path / "part" / "0.tar", ["wren", "owl"])
    shard(tmp_path / "part" / "1.tar", ["owl"])
    assert found(open_data_set(tmp_path / "part"), "test") == ["wren", "owl", "owl"]


def test_shards_alone_say_their_classes_themselves(tmp_path: Path) -> None:
    images = open_labelled(shard(tmp_path / "a.tar", ["wren", "owl"]))
    assert (images.class_names, images.labels.tolist()) == (("owl", "wren"), [1, 0])


def test_class_names_beside_any_layout_give_the_order(tmp_path: Path) -> None:
    classes(tmp_path / "birds" / "test", "wren", "Great_Tit")
    (tmp_path / "birds" / "classnames.txt").write_text("wren\n\ngreat tit\nowl\n")
    data = open_data_set(tmp_path / "birds")
    assert data.class_names == ("wren", "great tit", "owl")
    assert sorted(found(data, "test")) == ["great tit", "wren"]


# ── captions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_beside_images_are_captions(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("a wren\na small bird\n\n a wren \n")
    images = open_captioned(tmp_path)
    assert (len(images), images.captions(0), images.labels.tolist()) == (1, ("a wren", "a small bird"), [0])


def test_rows_of_one_image_are_its_captions(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "test.csv").write_text("path,caption\n0.png,one\n1.png,other\n0.png,two\n,nothing\n")
    images = open_captioned(tmp_path / "test.csv")
    assert [images.captions(i) for i in range(len(images))] == [("one", "two"), ("other",)]
    assert images.image(1) == tmp_path / "1.png"
    assert len(images.bad) == 1


def test_a_retrieval_set_of_clip_benchmark_has_captions(tmp_path: Path) -> None:
    root = tmp_path / "wds_flickr8k"
    shard(root / "test" / "0.tar", ["a dog\na hound", "a cat"], "txt")
    (root / "dataset_type.txt").write_text("retrieval\n")
    images = open_captioned("flickr8k", tmp_path)
    assert (images.name, images.captions(0), images.captions(1)) == ("flickr8k/test", ("a dog", "a hound"), ("a cat",))
    with pytest.raises(DataError, match="has captions and no classes: it is for retrieval"):
        open_data_set("flickr8k", tmp_path)


# ── what is wrong with a set ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_split_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    labelled(tmp_path / "pets" / "test.parquet", ["dog", "cat"])
    with pytest.raises(DataError) as caught:
        open_data_set(tmp_path / "pets").open("train")
    assert str(caught.value) == "pets: has no split 'train'; it has test"


def test_a_set_of_training_images_alone_is_measured_on_them_and_one_without_a_test_is_not() -> None:
    alone = DataSet("a", ("train",), ("b", "c"))
    assert (alone.measured, alone.training) == ("train", None)
    assert DataSet("a", ("train", "dev"), ("b", "c")).training == "train"
    with pytest.raises(DataError, match="a: has no split to measure on: it has train, extra, needed is a 'test'"):
        _ = DataSet("a", ("train", "extra"), ("b", "c")).measured


def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path: Path) -> None:
    path = labelled(tmp_path / "cifar10" / "test.parquet", ["dog", "hound"])
    with pytest.raises(DataError) as caught:
        open_data_set("cifar10", tmp_path).open("test")
    assert str(caught.value) == (
        f"{path}, row 2: has the label 'hound', which is none of the 10 classes of cifar10/test "
        "('airplane', 'automobile', 'bird', …): correct it, or name the data by its path to take its labels as they are"
    )


def test_of_data_that_is_named_by_its_path_nobody_is_told_to_do_so(tmp_path: Path) -> None:
    folder = classes(tmp_path / "birds", "wren", "owl")
    (folder / "classnames.txt").write_text("wren\ntit\n")
    with pytest.raises(DataError, match=r"has the label 'owl', .*\('wren', 'tit'\): correct it, or classnames\.txt$"):
        open_data_set(folder).open("test")
    (folder / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"has the label 'owl', .*\('wren', 'tit'\): correct it$"):
        open_labelled(folder, ("wren", "tit"))


def test_labels_that_are_in_one_split_alone_are_classes_of_both(tmp_path: Path) -> None:
    labelled(tmp_path / "pets" / "train.parquet", ["ant", "bee"])
    labelled(tmp_path / "pets" / "test.parquet", ["cow", "dog"])
    data = open_data_set(tmp_path / "pets")
    assert data.class_names == ("ant", "bee", "cow", "dog")
    assert (data.open("train").labels.tolist(), data.open("test").labels.tolist()) == ([0, 1], [2, 3])


def test_labels_that_differ_in_case_alone_are_two_classes_where_no_list_says_otherwise(tmp_path: Path) -> None:
    data = open_data_set(labelled(tmp_path / "a.parquet", ["Great_Tit", "great tit"]))
    assert found(data, "test") == ["Great_Tit", "great tit"]


def test_one_class_alone_is_refused_unless_others_are_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has one class alone \\('dog'\\): there is nothing to tell apart"):
        open_data_set(labelled(tmp_path / "a.parquet", ["dog", "dog"])).open("test")
    labelled(tmp_path / "cifar10" / "test.parquet", ["dog", "dog"])
    assert open_data_set("cifar10", tmp_path).open("test").labels.tolist() == [5, 5]


def test_an_unreadable_image_is_left_to_be_counted(tmp_path: Path) -> None:
    """The set opens; `image_features` leaves the image out and says how many there were."""
    images = [picture(0), b"no image", picture(1)]
    write_parquet(tmp_path / "test.parquet", {"image": images, "label": ["a", "b", "a"]})
    data = open_data_set(tmp_path / "test.parquet").open("test")
    assert (len(data), data.image(1)) == (3, b"no image")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("classnames.txt", "zebra\n", "names 1 class: there is nothing to tell apart"),
        ("classnames.txt", "zebra\nant\n", "has the label '2', which is none of the 2 classes"),
        ("classnames.txt", "zebra\n\udcffnt\nfox\n", "has a caption that is not UTF-8"),
        ("zeroshot_classification_templates.txt", "a photo\n", "template 'a photo' needs exactly one {c}"),
        ("zeroshot_classification_templates.txt", "{c} {0.__class__}\n", "needs exactly one {c}"),
        ("dataset_type.txt", "multilabel\n", "says 'multilabel'; read are classification and retrieval"),
        ("train/nshards.txt", "3\n", "has 2 shards, and nshards.txt says 3"),
    ],
)
def test_a_damaged_text_beside_the_shards_is_named(tmp_path: Path, file: str, text: str, reason: str) -> None:
    root = clip_benchmark(tmp_path / "set")
    (root / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        open_data_set(root).open("test")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["-1", "3", "99999999999999999999", "²", "0x1", "../../etc/passwd", "x" * 2000])
def test_a_number_beyond_the_classes_is_refused(tmp_path: Path, label: str) -> None:
    root = clip_benchmark(tmp_path / "set")
    shard(root / "test" / "0.tar", ["0", label])
    with pytest.raises(DataError, match="is none of the 3 classes of set/test") as caught:
        open_data_set(root).open("test")
    assert len(str(caught.value)) < 400 + len(str(root))


def test_an_endless_text_is_not_read(tmp_path: Path) -> None:
    root = clip_benchmark(tmp_path / "set")
    (root / "classnames.txt").unlink()
    os.mkfifo(root / "classnames.txt")
    with pytest.raises(DataError, match=r"classnames\.txt: is not a regular file"):
        open_data_set(root)
    (root / "classnames.txt").unlink()
    (root / "classnames.txt").write_bytes(b"a\n" * 2**22)
    with pytest.raises(DataError, match="has more than 4,194,304 bytes"):
        open_data_set(root)


@pytest.mark.parametrize("name", ["nowhere", "", " ", "a\0b", "x" * 5000, "../none", "hf", "\ud800"])
def test_a_name_of_nothing_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data_set(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert "is no path and no described data set" in str(caught.value)


def test_a_name_with_a_slip_is_corrected_and_a_missing_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"flower102: is no path .*; did you mean 'flowers102'\?"):
        open_data_set("flower102", tmp_path)
    with pytest.raises(DataError, match=r"food101: is not in .*; to get it: hf:ethz/food101, or https"):
        open_data_set("food-101", tmp_path)


# ── identity ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_identity_changes_with_images_labels_and_class_names_and_with_nothing_else(tmp_path: Path) -> None:
    folder = classes(tmp_path / "birds", "wren", "owl")
    first = open_labelled(folder).identity()
    assert open_labelled(folder).identity() == open_data_set(folder).open("test").identity() == first
    assert open_labelled(folder, ["owl", "wren", "tit"]).identity() != first
    os.utime(folder / "owl" / "0.png", ns=(1, 1))
    touched = open_labelled(folder).identity()
    assert touched != first
    (folder / "owl" / "1.png").write_bytes(picture(5))
    assert open_labelled(folder).identity() not in (first, touched)

    file = labelled(tmp_path / "a.parquet", ["dog", "cat"])
    whole = open_labelled(file).identity()
    labelled(file, ["cat", "dog"])
    assert open_labelled(file).identity() != whole


def test_identity_is_of_the_file_whatever_its_name_holds(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\udcff.tar"
    whole = open_labelled(shard(path, ["wren", "owl"])).identity()
    shard(path, ["wren", "owl"])
    assert open_labelled(path).identity() != whole


def test_identity_sees_the_images_that_a_table_names(tmp_path: Path) -> None:
    folder = classes(tmp_path, "wren", "owl")
    (tmp_path / "a.csv").write_text("path,label\nwren/0.png,wren\nowl/0.png,owl\ngone.png,owl\n")
    before = open_labelled(tmp_path / "a.csv").identity()
    (folder / "owl" / "0.png").write_bytes(picture(9))
    assert open_labelled(tmp_path / "a.csv").identity() != before


def test_labels_are_matched_without_case_and_separators_and_given_spellings_go_first() -> None:
    classes = ClassList(("Great Tit", "owl", "1"), {"0": 2})
    numbers = classes.numbers(["great_tit", "GREAT-TIT", "owl", "0", "00", "1"], None, "birds")  # type: ignore[arg-type]
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [0, 0, 1, 2, 2, 2]
