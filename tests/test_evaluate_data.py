"""What `sightline evaluate` says of data that is not as it should be, and what it then leaves out."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from data_files import picture
from data_set_files import labelled
from sightline.cli import app
from tiny import small_vocabulary

NAMES = ("ant", "bee", "cat")
LEARN = "probe,k-nearest,few-shot,prompts"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    small_vocabulary().save(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def split(folder: Path, start: int = 0) -> Path:
    """Three classes of four images."""
    for i, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for j in range(4):
            (folder / name / f"{j}.png").write_bytes(picture(start + 4 * i + j))
    return folder


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def rows(out: str) -> set[tuple[str, str]]:
    found = json.loads((Path(out) / "results.json").read_text())
    return {(row["task"], row["name"]) for row in found["results"]}


def test_a_training_split_alone_is_measured_and_nothing_is_learned_from_it(model: str, tmp_path: Path) -> None:
    split(tmp_path / "bugs" / "train")
    said = run("--model", model, "--data", "bugs", "--tasks", f"zero-shot,{LEARN}", "--out", "out")
    assert f"left out: {LEARN.replace(',', ', ')} on bugs: it has no training split" in said.stderr
    note = "bugs: what is measured is its training split, as there is no other: nothing is learned from it"
    assert f"note: {note}" in said.stderr
    assert note in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert rows("out") == {("zero-shot", "top-1"), ("zero-shot", "mean per class")}


def test_two_splits_of_the_same_files_are_not_learned_from(model: str, tmp_path: Path) -> None:
    split(tmp_path / "bugs" / "test")
    os.symlink("test", tmp_path / "bugs" / "train")
    said = run("--model", model, "--data", "bugs", "--tasks", "zero-shot,probe", "--out", "out", code=3)
    reason = "bugs: has the same files for 'train' and 'test': what was learned from is not measured"
    assert f"left out: probe on bugs: {reason}" in said.stderr
    assert {task for task, _ in rows("out")} == {"zero-shot"}


def test_what_was_left_out_of_either_split_is_said(model: str, tmp_path: Path) -> None:
    for i, name in enumerate(("train", "test")):
        split(tmp_path / "bugs" / name, 100 * i)
        (tmp_path / "bugs" / name / "stray.png").write_bytes(picture(50))
    said = run("--model", model, "--data", "bugs", "--tasks", "zero-shot,k-nearest", "--out", "out")
    for name in ("train", "test"):
        assert f"note: bugs: 1 image is left out, in no folder of a class: bugs/{name}/stray.png" in said.stderr
    assert ("k-nearest", "top-1") in rows("out")


def test_a_label_that_is_missing_stops_it_before_anything_is_measured(model: str, tmp_path: Path) -> None:
    labelled(tmp_path / "bugs" / "test.parquet", ["ant", "bee", None])
    said = run("--model", model, "--data", "bugs", "--out", "out", code=1)
    assert said.stderr.splitlines()[-1] == "error: bugs/test.parquet, row 3: has no label"
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_limit_that_leaves_one_image_of_each_class_is_named_and_no_table_is_printed(
    model: str, tmp_path: Path
) -> None:
    split(tmp_path / "bugs" / "train")
    split(tmp_path / "bugs" / "test", 100)
    said = run("--model", model, "--data", "bugs", "--tasks", "probe", "--limit", 3, "--out", "out", code=1)
    assert (
        "left out: probe on bugs: bugs: has one training image of each class, and none to choose a probe's strength "
        "on: raise --limit 3 well above the 3 classes\n"
    ) in said.stderr
    assert said.stdout == ""
    assert said.stderr.endswith("error: nothing was measured\n")


def test_a_data_folder_that_is_not_there_is_wrong_usage(model: str) -> None:
    said = run("--model", model, "--data", "cifar10", "--data-folder", "nowhere", "--out", "out", code=2)
    assert said.stderr == "error: --data-folder 'nowhere' is no folder\n"


def test_that_a_hub_is_asked_is_said_and_of_a_folder_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.get_dataset_split_names", refused)
    said = run("--data", "hf:owner/name", "--out", "out", code=1)
    assert said.stderr == ("hf:owner/name: asking Hugging Face\nerror: hf:owner/name: cannot be loaded (no network)\n")
    said = run("--data", "hf:./gone", "--out", "out", code=1)
    assert said.stderr == "error: hf:./gone: there is no such folder, and it is no owner/name of Hugging Face\n"
