"""`sightline probe` fits a classifier to labelled images, and `sightline classify --classifier` uses it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import sightline
from command_fixtures import run
from sightline.evaluate import open_labelled
from sightline.linear_probe import LinearProbe
from sightline.zero_shot import ZeroShotClassifier
from tiny import small_vocabulary
from tiny_run import COLOURS

pytest_plugins = ["command_fixtures"]


@pytest.fixture
def here(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `train` (six images of each colour) and `test` (the other two)."""
    colours.rename(tmp_path / "train")
    for colour in COLOURS:
        (tmp_path / "test" / colour).mkdir(parents=True)
        for i in (6, 7):
            (tmp_path / "train" / colour / f"{i}.png").rename(tmp_path / "test" / colour / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels_of(result: Result) -> dict[str, str]:
    """The best label of each path, of what `classify --format jsonl` printed."""
    rows = map(json.loads, result.stdout.splitlines())
    return {row["path"]: row["labels"][0]["label"] for row in rows}


# ── fitting and using ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("features", [[], ["--before-projection"]])
def test_what_probe_fits_classify_uses(here: Path, model: str, features: list[str]) -> None:
    fitted = run("probe", "train", "-o", "colours.safetensors", "--model", model, *features)
    assert fitted.exit_code == 0, fitted.stderr
    lines = dict(line.split(None, 1) for line in fitted.stdout.splitlines())
    assert (lines["images"], lines["classes"]) == ("24", "4")
    assert lines["validation"].endswith("(one in five, set aside)")
    named = run("classify", "test", "--classifier", "colours.safetensors", "--model", model, "--format", "jsonl")
    assert labels_of(named) == {f"test/{c}/{i}.png": c for c in COLOURS for i in (6, 7)}, named.stderr
    clip, photo = sightline.load(model), f"test/{next(iter(COLOURS))}/6.png"
    classifier = ZeroShotClassifier.from_file("colours.safetensors", clip)
    assert classifier.projected == (not features)
    assert classifier.predict([photo]).tolist() == [Path(photo).parent.name]


def test_the_figures_are_those_of_the_library(here: Path, model: str) -> None:
    """The same features, fitted and measured by hand."""
    done = run("probe", "train", "-o", "c.safetensors", "--model", model, "--C", "0.1", "--C", "1", "--test", "test",
               "--validation", "test", "--templates", "a {} thing", "--format", "jsonl")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    record, clip = json.loads(done.stdout), sightline.load(model)
    features, names = {}, {}
    for split in ("train", "test"):
        data = open_labelled(split)
        features[split] = clip.encode_images([data.image(i) for i in range(len(data))])
        names[split] = np.array(data.class_names)[data.labels]
    held_out = features["test"], names["test"]
    probe = LinearProbe([0.1, 1]).fit(features["train"], names["train"], validation=held_out)
    assert record["C"] == probe.C_
    assert [(each["C"], each["top-1"]) for each in record["sweep"]] == list(probe.sweep_)
    assert record["test"]["probe"]["value"] == probe.score(*held_out)
    words = ZeroShotClassifier(clip, sorted(COLOURS), "a {} thing").score(*held_out)
    assert record["test"]["zero-shot"]["value"] == words
    assert record["test"]["difference"]["value"] == pytest.approx(probe.score(*held_out) - words)
    assert record["test"]["probe"]["low"] <= probe.score(*held_out) <= record["test"]["probe"]["high"]
    assert (record["images"], record["test"]["images"], record["unreadable"]) == (24, 8, 0)


def test_the_table_puts_zero_shot_beside_it(here: Path, model: str) -> None:
    done = run("probe", "train", "-o", "c.safetensors", "--model", model, "--C", "1", "--test", "test")
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["images", "classes", "C", "test", "this", "zero-shot", "difference", "written"]  # no validation
    assert "  this probe  top-1 100.0% (100.0% to 100.0%)" in done.stdout.splitlines()


def test_the_second_probe_encodes_nothing(here: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("probe", "train", "-o", "c.safetensors", "--model", model).exit_code == 0
    monkeypatch.setattr(sightline.Encoder, "stream_images", None)
    assert run("probe", "train", "-o", "c.safetensors", "--model", model, "--C", "3").exit_code == 0


def test_of_a_folder_with_splits_it_learns_from_train_and_measures_test(here: Path, model: str) -> None:
    (here / "train" / "stray.png").write_bytes((here / "train" / "red" / "1.png").read_bytes())
    done = run("probe", ".", "-o", "c.safetensors", "--model", model, "--C", "1", "--test", ".", "--format", "jsonl")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["images"], record["classes"], record["test"]["images"]) == (24, sorted(COLOURS), 8)
    assert done.stderr.splitlines()[:3] == [
        "note: . has splits: taken is its 'train'",
        "note: 1 image is left out, in no folder of a class: train/stray.png",
        "note: . has splits: taken is its 'test'",
    ]
    done = run("probe", "train", "-o", "c.safetensors", "--model", model, "--validation", ".")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "error: .: has no split 'val'; it has train, test: name the one you mean"


def test_an_image_that_cannot_be_read_is_left_out_and_listed(here: Path, model: str) -> None:
    broken = here / "train" / "red" / "2.png"
    broken.write_bytes(b"no image")
    done = run("probe", "train", "-o", "c.safetensors", "--model", model)
    assert done.exit_code == 3
    assert done.stdout.splitlines()[0].split() == ["images", "23"]
    assert "failed: 1 of 24" in done.stderr
    assert "train/red/2.png: " in done.stderr
    assert (here / "c.safetensors").exists()


# ── the model it is for ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_probe_on_another_model_s_features_is_refused_in_one_line(here: Path, model: str) -> None:
    assert run("probe", "train", "-o", "c.safetensors", "--model", model, "--C", "1").exit_code == 0
    small_vocabulary(model_seed=1).save(here / "another")
    done = run("classify", "test", "--classifier", "c.safetensors", "--model", "another")
    assert (done.exit_code, done.stdout) == (1, "")
    expected = f"c.safetensors: is not for features of another (it was fitted to those of {model}); name its model"
    assert done.stderr == f"error: {expected}, or fit it anew\n"


def test_without_the_text_tower_only_the_width_is_compared(here: Path, model: str) -> None:
    assert run("probe", "train", "-o", "c.safetensors", "--model", model, "--C", "1").exit_code == 0
    image_tower = sightline.load(model, towers="image")
    assert len(ZeroShotClassifier.from_file("c.safetensors", image_tower).classes_) == 4
    wide = LinearProbe(1.0).fit(np.eye(7), np.arange(7) % 2)
    wide.save("wide.safetensors")
    with pytest.raises(sightline.SightlineError, match="was made for features of 7 numbers, not 48"):
        ZeroShotClassifier.from_file("wide.safetensors", image_tower)
    with pytest.raises(sightline.SightlineError, match=r"say which with clip="):
        wide.save("wide.safetensors", projected=False)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("-o c.safetensors", 2, "no DATA: name a folder of images for each class"),
        ("train", 2, "no file to write: add -o pets.safetensors"),
        ("train -o none/c.safetensors", 1, "there is no such folder"),
        ("train -o test/red/6.png", 1, "something is there that is no classifier; name another file"),
        ("train -o train", 1, "something is there that is no classifier"),
        ("train -o c.safetensors --templates pets", 2, "--templates are for the zero-shot accuracy"),
        ("train -o c.safetensors --C 0", 2, "C is 0.0; it must be a number above zero"),
        ("train -o c.safetensors --C 1 --validation test", 2, "C is given: leave out one of the two"),
        ("none -o c.safetensors", 1, "none"),
        ("test/red -o c.safetensors", 1, "test/red"),
        ("train -o c.safetensors --test other", 1, "mauve"),
        ("train -o c.safetensors --test ./train", 2, "DATA and --test are the same images"),
        ("train -o c.safetensors --validation train", 2, "DATA and --validation are the same images"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, says: str
) -> None:
    (here / "test" / "red").rename(here / "red")
    (here / "other" / "mauve").mkdir(parents=True)
    (here / "other" / "red").mkdir()
    for colour in ("mauve", "red"):
        (here / "other" / colour / "1.png").write_bytes((here / "red" / "6.png").read_bytes())
    (here / "red").rename(here / "test" / "red")
    monkeypatch.setattr("sightline.cli.probe.load_model", None)
    done = run("probe", *arguments.split())
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (here / "c.safetensors").exists()


@pytest.mark.parametrize(
    "more", [["--labels", "cat"], ["--labels-file", "x"], ["--templates", "pets"], ["--independent"]]
)
def test_a_classifier_brings_its_own_labels(here: Path, more: list[str]) -> None:
    done = run("classify", "test", "--classifier", "c.safetensors", *more)
    assert done.exit_code == 2
    assert "--classifier has its own labels" in done.stderr


def test_a_file_that_is_no_classifier_is_refused_before_the_model_is_loaded(here: Path, monkeypatch) -> None:
    monkeypatch.setattr("sightline.cli.classify.load_model", None)
    done = run("classify", "test", "--classifier", "test/red/6.png")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "test/red/6.png: cannot be read" in done.stderr


def test_zero_shot_classifiers_are_classifiers_too(here: Path, model: str) -> None:
    clip = sightline.load(model)
    ZeroShotClassifier(clip, list(COLOURS)).save("words.safetensors")
    named = run("classify", "test", "--classifier", "words.safetensors", "--model", model, "--format", "jsonl")
    given = run("classify", "test", "--labels", ", ".join(COLOURS), "--model", model, "--format", "jsonl")
    assert named.stdout == given.stdout
