"""`sightline classify`: its labels, what it prints, and its exit codes."""

import csv
import io
import math
import os
import re
import sys
from pathlib import Path

import pytest

import sightline
from command_fixtures import LABELS, draw, records, run
from sightline.cli.labels import read_labels
from sightline.cli.loading import load_model
from sightline.errors import InvalidArgumentError

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("home")


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat", ["cat"]),
        ("cat, dog, rocket", ["cat", "dog", "rocket"]),
        ("  cat ,dog  ", ["cat", "dog"]),
        ("cat,,dog,", ["cat", "dog"]),
        ('cat, "dog, wet"', ["cat", "dog, wet"]),
        ('"a ""good"" dog", cat', ['a "good" dog', "cat"]),
        ('5" disk, cat', ['5" disk', "cat"]),
        ("猫, Straße, chien d'arrêt", ["猫", "Straße", "chien d'arrêt"]),
        ("=cat, {}", ["=cat", "{}"]),
    ],
)
def test_labels_are_separated_by_commas(text: str, labels: list[str]) -> None:
    assert read_labels(text, None) == labels


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no labels"),
        (" , ,", "has no labels"),
        ("cat, dog, cat", "the label 'cat' is there twice"),
        ("Cat, dog, cat", r"'cat' \(as 'Cat'\) is there twice"),
        ('cat, "dog', "cannot be read"),
        ("cat\ndog", "cannot be read"),
        ("caf\udce9", "is not UTF-8"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=complaint):
        read_labels(text, None)


def test_a_labels_file_has_one_label_a_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\r\n\n  # not this one\n dog, wet \n猫\n".encode())
    assert read_labels(None, file) == ["cat", "dog, wet", "猫"]


def test_what_a_labels_file_has_twice_is_left_out_and_named(tmp_path: Path, capsys) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(sightline.class_names("imagenet")))
    assert len(read_labels(None, file)) == 998
    assert capsys.readouterr().err == f"note: {file}: left out what is there twice: 'missile', 'sunglasses'\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"# no\n\n", "no labels"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_labels_file_without_usable_labels_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=complaint):
        read_labels(None, tmp_path / "labels.txt")


def test_a_labels_file_that_is_not_there_is_wrong_usage(photos: Path) -> None:
    result = run("classify", "photos", "--labels-file", "nowhere.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nowhere.txt: cannot be read (No such file or directory)" in result.stderr


# ── classify ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_lines_hold_each_image_with_its_labels(photos: Path, model: str) -> None:
    result = run("classify", "photos", "--labels", LABELS, "--model", model, "--format", "jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    found = records(result.stdout)
    assert [record["path"] for record in found] == [f"photos/{n}" for n in sorted(os.listdir(photos))]
    for record in found:
        assert {entry["label"] for entry in record["labels"]} == {"cat", "dog", "rocket"}
        probabilities = [entry["probability"] for entry in record["labels"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=2e-6)


def test_the_command_says_what_the_library_says(photos: Path, model: str) -> None:
    arguments = ("--labels", LABELS, "--templates", "pets", "--model", model, "--format", "jsonl", "--top", "1")
    result = run("classify", "photos", *arguments)
    classifier = sightline.ZeroShotClassifier(sightline.load(model), ["cat", "dog", "rocket"], "pets")
    expected = classifier.top_k(sorted(photos.iterdir()), k=1)
    said = [[(entry["label"], entry["probability"]) for entry in record["labels"]] for record in records(result.stdout)]
    assert said == [[(label, pytest.approx(probability, rel=1e-5))] for [(label, probability)] in expected]


def test_csv_reads_back(photos: Path, model: str) -> None:
    result = run("classify", "photos", "--labels", "cat, =1+1", "--model", model, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["path", "path_encoded", "rank", "label", "probability"]
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert {row["label"] for row in rows} == {"cat", "'=1+1"}
    assert float(rows[0]["probability"]) + float(rows[1]["probability"]) == pytest.approx(1, abs=2e-6)


def test_parquet_reads_back(photos: Path, model: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = run("classify", "photos", "--labels", LABELS, "--model", model, "--format", "parquet", "-o", "out")
    assert (result.exit_code, result.stdout) == (0, "")
    table = parquet.read_table("out")
    assert [str(column.type) for column in table.schema] == ["string", "binary", "int32", "string", "double"]
    rows = table.to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 3] * 3
    assert math.fsum(row["probability"] for row in rows) == pytest.approx(3)


def test_parquet_needs_a_file_and_its_extra(photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("classify", "photos", "--labels", LABELS, "--model", "is not looked at", "--format", "parquet")
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --format parquet needs a file to write: add -o results.parquet\n",
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run(*arguments, "-o", "out.parquet")
    assert result.exit_code == 1
    assert "pip install 'sightline[parquet]'" in result.stderr
    assert not Path("out.parquet").exists()


def test_the_table_is_a_plain_line_for_each_image_where_there_is_no_terminal(photos: Path, model: str) -> None:
    draw(photos / f"{'long' * 50}.png")
    result = run("classify", "photos", "--labels", LABELS, "--model", model)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [f"photos/{name}" for name in sorted(os.listdir(photos))]
    assert all(line.count("%") == 3 for line in lines)
    assert len({line.index("%") for line in lines[:3]}) == 1
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout


def test_top_limits_the_labels_and_independent_ones_need_not_sum_to_one(photos: Path, model: str) -> None:
    arguments = ("classify", "photos", "--labels", LABELS, "--model", model, "--format", "jsonl")
    assert all(len(record["labels"]) == 2 for record in records(run(*arguments, "--top", "2").stdout))
    labels = records(run(*arguments, "--independent").stdout)[0]["labels"]
    assert sum(entry["probability"] for entry in labels) != pytest.approx(1, abs=1e-3)


def test_templates_are_a_name_or_one_s_own(photos: Path, model: str) -> None:
    def said(*templates: str) -> str:
        options = [word for template in templates for word in ("--templates", template)]
        result = run("classify", "photos", "--labels", LABELS, "--model", model, "--format", "jsonl", *options)
        assert result.exit_code == 0
        return result.stdout

    assert said() == said("plain") == said("a photo of a {}.")
    assert len({said(), said("imagenet"), said("a drawing of a {}."), said("a drawing of a {}.", "a {}.")}) == 4
    assert said("plain", "a {}.") == said("a photo of a {}.", "a {}.")


def test_a_bad_file_does_not_stop_the_rest(photos: Path, model: str) -> None:
    (photos / "1-bad.png").write_bytes(b"not an image")
    (photos / "2-empty.png").touch()
    result = run("classify", "photos", "missing.jpg", "--labels", LABELS, "--model", model, "--format", "jsonl")
    assert result.exit_code == 3
    found = records(result.stdout)
    assert [record["path"] for record in found if "labels" in record] == [
        "photos/0-red.png",
        "photos/1-green.png",
        "photos/2-blue.png",
    ]
    errors = {record["path"]: record["error"] for record in found if "error" in record}
    assert errors["photos/2-empty.png"] == "is empty"
    first, *lines = result.stderr.splitlines()
    assert first == "failed: 3 of 6"
    assert lines == [f"  {path}: {reason}" for path, reason in errors.items()]
    assert [line.split(":")[0].strip() for line in lines] == ["photos/1-bad.png", "photos/2-empty.png", "missing.jpg"]


def test_where_every_input_failed_the_command_failed(photos: Path, model: str) -> None:
    (photos / "bad.png").write_bytes(b"not an image")
    result = run("classify", "photos/bad.png", "--labels", LABELS, "--model", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "photos/bad.png: is not an image" in result.stderr


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.txt", "out.parquet"])
def test_where_every_input_failed_the_output_is_as_it_was(photos: Path, model: str, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    Path("bad.png").write_bytes(b"not an image")
    Path(name).write_text("precious")
    assert run("classify", "bad.png", "--labels", LABELS, "--model", model, "-o", name).exit_code == 1
    assert Path(name).read_text() == "precious"
    assert sorted(os.listdir()) == sorted(["bad.png", name, "photos"])


def test_without_any_image_there_is_no_header(photos: Path) -> None:
    assert run("classify", "nowhere.jpg", "--labels", LABELS, "--format", "csv").stdout == ""


@pytest.mark.parametrize("paths", [["empty"], ["nowhere.jpg"], ["*.jpg", "nowhere"], ["-"], ["-0"]])
def test_without_any_image_the_model_is_not_even_looked_for(photos: Path, paths: list[str]) -> None:
    Path("empty").mkdir()
    result = run("classify", *paths, "--labels", LABELS, "--model", "no such model", "-o", "out", input=b"")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no images found")
    assert sorted(os.listdir()) == ["empty", "photos"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["photos"], 'no labels: say what to look for, for example --labels "cat, dog, rocket"'),
        (["photos", "--labels", "a", "--labels-file", "b"], "--labels and --labels-file are both given"),
        (["photos", "--labels", "a, b, a"], "the label 'a' is there twice"),
        (["photos", "--labels", LABELS, "--templates", "imagnet"], "no template set 'imagnet'"),
        (["photos", "--labels", LABELS, "--templates", "a {name}"], "needs exactly one {}"),
        (["photos", "--labels", LABELS, "--templates", "a {}", "--templates", "imagnet"], "needs exactly one {}"),
        (["photos", "--labels", LABELS, "--templates", "\udcff {}"], "is not UTF-8"),
        (["photos", "--labels", LABELS, "--top", "0"], "--top"),
        (["photos", "--labels", LABELS, "--batch-size", "0"], "--batch-size"),
        (["photos", "--labels", LABELS, "--format", "xml"], "'xml' is not one of"),
        (["photos", "--labels", LABELS, "--nonsense"], "No such option"),
        (["--labels", LABELS], "no PATHS"),
        (["", "--labels", LABELS], "one of the PATHS is empty"),
    ],
)
def test_wrong_usage_is_told_before_any_work(photos: Path, arguments: list[str], complaint: str) -> None:
    result = run("classify", *arguments, "--model", "is not looked at")
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "xpu"])
def test_a_device_that_does_not_exist_is_wrong_usage(photos: Path, model: str, device: str) -> None:
    result = run("classify", "photos", "--labels", LABELS, "--model", model, "--device", device)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(rf"error: .*'{device}'.*\n", result.stderr)


def test_a_label_that_is_too_long_is_wrong_usage(photos: Path, model: str) -> None:
    result = run("classify", "photos", "--labels", f"cat, {'dog ' * 99}", "--model", model)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"error: the label 'dog .*…' is too long .*: shorten it, or the template\n", result.stderr)


def test_an_unknown_model_is_one_line(photos: Path) -> None:
    result = run("classify", "photos", "--labels", LABELS, "--model", "ViT-B/33")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"error: .*'ViT-B/33'.*\n", result.stderr)


def test_a_single_label_is_worth_a_note(photos: Path, model: str) -> None:
    arguments = ("classify", "photos", "--labels", "cat", "--model", model)
    assert "every image is 100%" in run(*arguments).stderr
    assert run(*arguments, "--independent").stderr == ""


def test_the_starter_model_is_named_where_no_model_was(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("sightline.encoder.load", lambda name, device, precision: asked.append(name))
    load_model(None)
    assert "starter model" in (said := capsys.readouterr().err)
    assert "--model ViT-B/32" in said
    load_model("RN50")
    assert capsys.readouterr() == ("", "")
    assert asked == ["starter", "RN50"]


def test_the_environment_names_the_model(photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_MODEL", model)
    result = run("classify", "photos", "--labels", LABELS)
    assert (result.exit_code, result.stderr) == (0, "")
