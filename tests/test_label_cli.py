"""`sightline label`: what it writes, lists and refuses."""

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from sightline.cli import app

LABELS = "cat, dog, rocket"
pytest_plugins = ["command_fixtures"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `photos` with three images and a file that is none, seen from the folder it is in."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}-{colour}.png")
    (folder / "3-empty.png").touch()
    monkeypatch.chdir(tmp_path)
    return folder


def run(*arguments: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["label", *arguments], input=input, catch_exceptions=False)


def test_a_folder_is_labelled_and_failures_are_listed(photos: Path, model: str) -> None:
    Path("classes.txt").write_text("cat\n# not this\ndog\nrocket\n")
    result = run("photos", "--labels-file", "classes.txt", "-o", "out.csv", "--model", model, "--abstain-below", "0")
    lines = list(csv.DictReader(Path("out.csv").read_text("utf-8").splitlines()))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "3 labelled, 0 abstained\nfailed: 1 of 4\n  photos/3-empty.png: is empty\n"
    assert [line["path"] for line in lines] == [f"photos/{name}" for name in sorted(os.listdir("photos"))]
    assert [line["error"] for line in lines] == ["", "", "", "is empty"]
    assert {*lines[0]} >= {"label_2", "label_3"}
    assert "label_4" not in lines[0]


def test_it_says_what_classify_says(photos: Path, model: str) -> None:
    options = ("photos", "--labels", LABELS, "--templates", "a drawing of a {}.", "--model", model, "-o")
    run(*options, "label.jsonl")
    CliRunner().invoke(app, ["classify", *options, "classify.jsonl"])
    ours, theirs = (
        [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()] for name in ("label", "classify")
    )
    for one, other in zip(ours, theirs, strict=True):
        if "error" in one:
            assert one == other
        else:
            assert [{key: one[key] for key in ("label", "probability")}, *one["next"]] == other["labels"]


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "coco", "label-studio", "folder"])
def test_every_format_abstains_from_what_is_not_certain(photos: Path, model: str, format: str) -> None:
    arguments = ("photos", "--labels", LABELS, "--model", model, "-o", "out", "--format", format)
    result = run(*arguments, "--abstain-below", "1")
    assert result.exit_code == 3
    assert result.stderr.startswith("0 labelled, 3 abstained\n")
    assert list(Path("out").iterdir()) == [] if format == "folder" else Path("out").stat().st_size > 0


def test_paths_come_from_stdin_too(photos: Path, model: str) -> None:
    result = run("-0", "--labels", LABELS, "--model", model, "-o", "o.jsonl", input=b"photos/1-green.png\0")
    assert result.exit_code == 0
    assert json.loads(Path("o.jsonl").read_text())["path"] == "photos/1-green.png"


def test_the_review_page_is_written(photos: Path, model: str) -> None:
    result = run("photos", "--labels", LABELS, "--model", model, "-o", "out.csv", "--review", "review.html")
    assert result.exit_code == 3
    assert Path("review.html").read_text("utf-8").count('<li class="card"') == 3
    assert sorted(os.listdir()) == ["out.csv", "photos", "review.html"]


def test_where_every_image_failed_all_is_as_it_was(photos: Path, model: str) -> None:
    Path("out.csv").write_text("before")
    arguments = ("--labels", LABELS, "--model", model, "-o", "out.csv", "--review", "review.html")
    result = run("photos/3-empty.png", *arguments)
    assert (result.exit_code, Path("out.csv").read_text()) == (1, "before")
    assert sorted(os.listdir()) == ["out.csv", "photos"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["photos", "--labels", LABELS], 2, "no file to write"),
        (["photos", "-o", "x.csv"], 2, "no labels"),
        (["photos", "--labels", LABELS, "-o", "x.json"], 2, "may be COCO or Label Studio"),
        (["photos", "--labels", LABELS, "-o", "x.txt"], 2, "must end in .csv, .jsonl or .parquet"),
        (["photos", "--labels", LABELS, "-o", "x.csv", "--format", "xml"], 2, "--format"),
        (["photos", "--labels", LABELS, "-o", "x.csv", "--abstain-below", "2"], 2, "--abstain-below"),
        (["photos", "--labels", LABELS, "-o", "photos", "--format", "folder"], 1, "photos is there already"),
        (["photos", "--labels", LABELS, "-o", "no/x.csv"], 1, "there is no such folder"),
        (["photos", "--labels", LABELS, "-o", "x.csv", "--review", "no/x.html"], 1, "there is no such folder"),
        (["photos", "--labels", LABELS, "-o", "x.csv", "--review", "./x.csv"], 2, "name the same file"),
        (["nowhere", "--labels", LABELS, "-o", "x.csv"], 1, "nowhere does not exist"),
        (["--labels", LABELS, "-o", "x.csv"], 2, "no PATHS"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(
    photos: Path, arguments: list[str], code: int, complaint: str
) -> None:
    result = run(*arguments, "--model", "is not looked at")
    assert (result.exit_code, result.stdout) == (code, "")
    assert complaint in result.stderr
    assert os.listdir() == ["photos"]


def test_a_missing_extra_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = run("photos", "--labels", LABELS, "-o", "x.parquet", "--model", "is not looked at")
    assert (result.exit_code, os.listdir()) == (1, ["photos"])
    assert "pip install 'sightline[parquet]'" in result.stderr


def test_a_full_disk_is_one_line(photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sightline.label.tables.CsvWriter.write", full)
    result = run("photos", "--labels", LABELS, "--model", model, "-o", "out.csv")
    assert (result.exit_code, os.listdir()) == (1, ["photos"])
    assert result.stderr.endswith("out.csv: No space left on device\n")


def test_help_teaches_by_example() -> None:
    help = run("--help").stdout
    assert "  sightline label photos/ --labels-file classes.txt -o labels.parquet" in help
    assert "no proof" in help
