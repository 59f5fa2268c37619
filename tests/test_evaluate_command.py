"""`sightline evaluate`: what it measures, what it says is left out, and that a run which was stopped goes on."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_files import picture
from sightline.cli import app
from sightline.evaluate.comparisons import Comparison, best, compare, holm
from sightline.evaluate.data_sets import open_measurable
from sightline.evaluate.run import read_results
from sightline.evaluate.subject import Settings, Subject
from sightline.evaluate.tasks import TASKS
from tiny import small_vocabulary

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
QUICK = "zero-shot,probe,k-nearest,calibration"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        small_vocabulary(seed).save(folder / f"tiny-{seed}")
    return [str(folder / f"tiny-{seed}") for seed in (0, 1)]


def shown(model: str) -> str:
    """What a report calls it."""
    return "/".join(Path(model).parts[-2:])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of four training images and three test images each."""
    root = tmp_path_factory.mktemp("data") / "animals"
    for split, each, start in (("train", 4, 0), ("test", 3, 1000)):
        for i, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for j in range(each):
                (root / split / name / f"{j}.png").write_bytes(picture(start + i * each + j))
    return root


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def rows(out: Path, task: str) -> dict[str, dict]:
    return {
        row["name"]: row for row in json.loads((out / "results.json").read_text())["results"] if row["task"] == task
    }


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_holm_is_what_it_is_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; none below one before it, and none above one."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_small_difference_on_the_same_images_is_seen_and_the_better_comes_first() -> None:
    worse = np.tile([1.0, 0.0], 500)
    better = worse.copy()
    better[1:60:2] = 1  # thirty images more, and none fewer
    (found,) = compare({("data", "zero-shot"): {"a": worse, "b": better}})
    assert (found.first, found.second, found.value) == ("b", "a", pytest.approx(0.03))
    assert found.low > 0
    assert found.adjusted == found.p_value < 0.001
    assert best([found], "data", "zero-shot") == "b"


def test_hundreds_of_comparisons_hide_no_plain_difference() -> None:
    """Five models on 27 of everything: 270 comparisons, each with an exact p-value."""
    random = np.random.default_rng(0)
    right = {
        (f"set {i}", "zero-shot"): {f"m{m}": (random.random(500) < 0.1 + 0.2 * m).astype(float) for m in range(5)}
        for i in range(27)
    }
    found = compare(right)
    assert len(found) == 270
    assert all(best(found, *of) == "m4" for of in right)


def test_what_one_could_not_read_is_left_out_of_both() -> None:
    first, second = np.array([1.0, np.nan, 1.0, 0.0]), np.array([0.0, 1.0, np.nan, 0.0])
    (found,) = compare({("data", "probe"): {"a": first, "b": second}})
    assert found.value == pytest.approx(0.5)


def test_the_best_must_be_better_than_each_other() -> None:
    def comparison(first: str, second: str, adjusted: float) -> Comparison:
        return Comparison("d", "t", first, second, 0.1, 0.0, 0.2, adjusted, adjusted)

    beats_both = [comparison("a", "b", 0.01), comparison("a", "c", 0.04), comparison("b", "c", 0.5)]
    assert best(beats_both, "d", "t") == "a"
    assert best([comparison("a", "b", 0.01), comparison("a", "c", 0.06), comparison("b", "c", 0.5)], "d", "t") is None
    assert best([], "d", "t") is None


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_models_are_measured_compared_and_reported(models: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("--model", models[0], "--model", models[1], "--data", photos, "--tasks", QUICK, "--out", out)
    found = json.loads((out / "results.json").read_text())
    assert list(found["models"]) == [shown(model) for model in models]
    assert found["data"]["animals"]["images"] == 18
    assert {row["task"] for row in found["results"]} == set(QUICK.split(","))
    assert len(found["comparisons"]) == 3  # of the three classifiers
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["results"])
    assert "animals   zero-shot    top-1" in said.stdout
    assert "p after Holm" in said.stdout
    assert (out / "report.html").read_text("utf-8").startswith("<!doctype html>")


def test_programs_get_a_line_of_json_for_each_figure(models: list[str], photos: Path, tmp_path: Path) -> None:
    said = run(
        "--model", models[0], "--data", photos, "--tasks", "zero-shot", "--out", tmp_path, "--format", "jsonl"
    )  # fmt: skip
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["top-1", "top-5", "mean per class"]
    assert {(line["model"], line["data"], line["task"]) for line in lines} == {
        (shown(models[0]), "animals", "zero-shot")
    }


def test_zero_shot_equals_the_classifier_itself(models: list[str], photos: Path, tmp_path: Path) -> None:
    import sightline

    run("--model", models[0], "--data", photos, "--tasks", "zero-shot", "--out", tmp_path)
    clip = sightline.load(models[0])
    classifier = sightline.ZeroShotClassifier(clip, NAMES)
    images = [photos / "test" / name / f"{j}.png" for name in NAMES for j in range(3)]
    truth = np.repeat(NAMES, 3)
    assert rows(tmp_path, "zero-shot")["top-1"]["value"] == pytest.approx((classifier.predict(images) == truth).mean())


def test_a_run_that_was_stopped_goes_on(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--model", models[0], "--data", photos, "--tasks", "zero-shot,probe", "--out", tmp_path)
    done: list[str] = []
    for name in ("zero-shot", "probe"):
        measure = TASKS[name].measure

        def counted(subject: Subject, name: str = name, measure=measure):
            if name == "probe" and not done.count("probe"):
                done.append(name)
                raise KeyboardInterrupt
            done.append(name)
            return measure(subject)

        monkeypatch.setitem(TASKS, name, TASKS[name]._replace(measure=counted))
    run(*arguments, code=130)
    assert set(rows(tmp_path, "zero-shot")) == {"top-1", "top-5", "mean per class"}
    run(*arguments)
    assert done == ["zero-shot", "probe", "probe"]
    first = (tmp_path / "results.json").read_text()
    run(*arguments)
    assert done == ["zero-shot", "probe", "probe"]
    assert json.loads((tmp_path / "results.json").read_text())["results"] == json.loads(first)["results"]
    run(*arguments, "--seed", "1")  # another seed is another measurement
    assert done[3:] == ["zero-shot", "probe"]


def test_a_stop_loses_nothing_that_was_measured_before(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(subject: Subject):
        raise KeyboardInterrupt

    arguments = ("--model", models[0], "--data", photos, "--out", tmp_path)
    run(*arguments, "--tasks", "zero-shot,probe")
    monkeypatch.setitem(TASKS, "k-nearest", TASKS["k-nearest"]._replace(measure=stopped))
    run(*arguments, "--tasks", "calibration,k-nearest,zero-shot,probe", code=130)
    found = read_results(tmp_path / "results.json")
    assert found is not None
    assert [row["task"] for row in found.tables] == ["calibration", "zero-shot", "probe"]
    run(*arguments, "--tasks", "zero-shot")  # what is not asked for any more is not in the report
    assert [row["task"] for row in read_results(tmp_path / "results.json").tables] == ["zero-shot"]  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"about": {}}', '{"about": {"format": 0}}', "[" * 100_000])
def test_results_that_are_damaged_are_none(tmp_path: Path, damage: str) -> None:
    (tmp_path / "results.json").write_text(damage)
    assert read_results(tmp_path / "results.json") is None


def test_results_that_are_damaged_are_made_again(models: list[str], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"about": {"format": 1}, "results": [{}]}')
    run("--model", models[0], "--data", photos, "--tasks", "zero-shot", "--out", tmp_path)
    assert rows(tmp_path, "zero-shot")


# ── what decides, and what cannot be measured ────────────────────────────────────────────────────────────────────────


def test_measured_images_decide_nothing(models: list[str], photos: Path, tmp_path: Path) -> None:
    """With other images to measure on, every choice is the same."""
    import shutil

    other = tmp_path / "other"
    shutil.copytree(photos, other)
    for i, path in enumerate(sorted((other / "test").rglob("*.png"))):
        path.write_bytes(picture(5000 + i))
    chosen = []
    for name, data in (("a", photos), ("b", other)):
        words = ("--templates", "a {}.", "--templates", "the {}.", "--templates", "{}")
        tasks = "zero-shot,probe,prompts,abstaining"
        run("--model", models[0], "--data", data, "--tasks", tasks, *words, "--out", tmp_path / name)
        tables = {
            row["task"]: row["table"] for row in json.loads((tmp_path / name / "results.json").read_text())["tables"]
        }
        thresholds = [threshold for _, threshold, *_ in tables["abstaining"]["thresholds"]]
        chosen.append((tables["probe"]["C"], tables["probe"]["sweep"], tables["prompts"]["steps"], thresholds))
    assert chosen[0] == chosen[1]


def test_without_a_training_split_what_needs_one_is_left_out_and_said(
    models: list[str], photos: Path, tmp_path: Path
) -> None:
    said = run(
        "--model", models[0], "--data", photos / "test", "--tasks", "zero-shot,probe,few-shot", "--out", tmp_path
    )
    assert "left out: probe, few-shot on test: it has no training split" in said.stderr
    assert [row["task"] for row in read_results(tmp_path / "results.json").left_out] == ["probe", "few-shot"]  # type: ignore[union-attr]
    assert set(rows(tmp_path, "zero-shot"))


def test_a_class_name_longer_than_the_text_tower_takes_leaves_out_what_needs_names(
    models: list[str], photos: Path, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(photos, data)
    for split in ("train", "test"):
        (data / split / "ant").rename(data / split / "ant of ants".ljust(200, "x"))
    said = run("--model", models[0], "--data", data, "--tasks", QUICK, "--out", tmp_path / "out", code=3)
    assert "zero-shot, left out: text 0, 'a photo of a ant of ants" in said.stderr
    assert [row["task"] for row in read_results(tmp_path / "out" / "results.json").left_out] == [
        "zero-shot",
        "calibration",
    ]  # type: ignore[union-attr]
    assert {task for task in QUICK.split(",") if rows(tmp_path / "out", task)} == {"probe", "k-nearest"}


def test_an_image_that_cannot_be_read_is_left_out_counted_and_said(
    models: list[str], photos: Path, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "test" / "bee" / "1.png").write_bytes(b"no picture")
    for i in range(4):
        (data / "train" / "cat" / f"{i}.png").write_bytes(b"none either")
    arguments = ("--model", models[0], "--model", models[1], "--data", data, "--tasks", "zero-shot,k-nearest")
    said = run(*arguments, "--out", tmp_path / "out", code=3)
    assert "failed: data: 1 image and 4 training images cannot be read, and left out: " in said.stderr
    assert f"{data}/test/bee/1.png: " in said.stderr
    assert said.stderr.count(f"{data}/train/cat/") == 3
    assert "note: k-nearest on data: 1 of 6 classes has no training image ('cat')" in said.stderr
    assert f"{data}/test/bee/1.png: " in (tmp_path / "out" / "report.html").read_text("utf-8")
    found = read_results(tmp_path / "out" / "results.json")
    assert found is not None
    assert found.data["data"]["unreadable"] == 1
    assert found.data["data"]["training_unreadable"] == 4
    assert [row["right"].count("-") for row in found.tables] == [1, 1, 1, 1]
    again = run(*arguments, "--out", tmp_path / "out", code=3)  # and from what is there
    assert f"{data}/test/bee/1.png: " in again.stderr


def write_split(folder: Path, **images: int) -> None:
    """A folder of so many images for each class."""
    for i, (name, count) in enumerate(images.items()):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            (folder / name / f"{j}.png").write_bytes(picture(10 * i + j + 500 * (folder.name == "test")))


def notes_of(out: Path, task: str) -> list[str]:
    (table,) = (row["table"] for row in json.loads((out / "results.json").read_text())["tables"] if row["task"] == task)
    return table["notes"]


def test_a_class_without_training_images_fails_nothing_and_is_named(models: list[str], tmp_path: Path) -> None:
    write_split(tmp_path / "data" / "train", ant=4, bee=1)
    write_split(tmp_path / "data" / "test", ant=2, bee=2, cat=3)
    tasks, out = "probe,k-nearest,few-shot", tmp_path / "out"
    said = run("--model", models[0], "--data", tmp_path / "data", "--tasks", tasks, "--out", out)
    untaught = "1 of 3 classes has no training image ('cat'): their 3 measured images count as wrong"
    for task in tasks.split(","):
        assert notes_of(out, task)[0] == untaught
    assert rows(out, "probe")["top-1"]["value"] <= 4 / 7
    assert list(rows(out, "few-shot"))[:3] == ["1-shot", "2-shot", "4-shot"]
    assert notes_of(out, "few-shot")[1:3] == [
        "2-shot: 1 of 3 classes has fewer training images ('bee'); all that there are of these are drawn",
        "4-shot: 1 of 3 classes has fewer training images ('bee'); all that there are of these are drawn",
    ]
    assert "8-shot is left out: no class has more than 4 training images" in notes_of(out, "few-shot")
    assert f"note: probe, k-nearest, few-shot on data: {untaught}" in said.stderr
    assert untaught in html.unescape((out / "report.html").read_text("utf-8"))


def test_a_limit_that_leaves_too_few_images_is_named_as_the_cause(
    models: list[str], photos: Path, tmp_path: Path
) -> None:
    arguments = ("--model", models[0], "--data", photos, "--tasks", "few-shot", "--out", tmp_path)
    run(*arguments, "--limit", 5)
    assert notes_of(tmp_path, "few-shot")[0].startswith("1 of 6 classes has no training image with --limit 5 ('")
    assert notes_of(tmp_path, "few-shot")[-1].endswith("no class has more than 1 training images, with --limit 5")


def test_a_class_that_a_copy_of_a_described_set_lacks_is_left_off_and_said(models: list[str], tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_split(tmp_path / "caltech101" / split, Faces=2, Leopards=2)
    out = tmp_path / "out"
    arguments = ("--data", "caltech101", "--data-folder", tmp_path, "--tasks", "zero-shot,few-shot")
    said = run("--model", models[0], *arguments, "--out", out)
    found = read_results(out / "results.json")
    assert found is not None
    assert found.data["caltech101"]["classes"] == 101
    assert "1 of 102 classes is left off the list, as this copy has no image of it: 'background'" in said.stderr
    assert set(rows(out, "few-shot")) >= {"1-shot", "2-shot"}


def test_a_task_that_fails_leaves_the_others_and_is_said(models: list[str], tmp_path: Path) -> None:
    """All that can be trained on is one class."""
    write_split(tmp_path / "data" / "train", ant=3)
    write_split(tmp_path / "data" / "test", ant=2, bee=2)
    arguments = ("--data", tmp_path / "data", "--tasks", "zero-shot,probe", "--out", tmp_path / "out")
    said = run("--model", models[0], *arguments, code=3)
    assert "left out: probe on data: all labels are one class ('ant'): there is nothing to tell apart" in said.stderr
    assert set(rows(tmp_path / "out", "zero-shot")) == {"top-1", "mean per class"}


def test_without_strangers_the_rest_of_abstaining_is_measured(models: list[str], tmp_path: Path) -> None:
    """All measured images are of one class of four: half of the names are left off, and no image of the other half."""
    write_split(tmp_path / "data" / "train", ant=2, bee=2, cat=2, dog=2)
    write_split(tmp_path / "data" / "test", ant=3)
    out = tmp_path / "out"
    said = run("--model", models[0], "--data", tmp_path / "data", "--tasks", "abstaining", "--out", out)
    assert (
        "note: abstaining on data: strangers AUROC is left out: all measured images are of the classes" in said.stderr
    )
    assert "coverage at 20% error" in rows(out, "abstaining")
    assert "strangers AUROC" not in rows(out, "abstaining")


def test_robustness_is_beside_the_probe_too(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.evaluate.tasks.CORRUPTIONS", {"jpeg": None, "contrast": None})
    said = run("--model", models[0], "--data", photos, "--tasks", "robustness", "--out", tmp_path)
    value = {name: row["value"] for name, row in rows(tmp_path, "robustness").items()}
    lost = {whose: value[f"{whose}, corruptions"] - value[f"{whose}, uncorrupted"] for whose in ("zero-shot", "probe")}
    over = rows(tmp_path, "robustness")["effective robustness over the probe"]
    assert over["value"] == pytest.approx(lost["zero-shot"] - lost["probe"])
    assert over["low"] <= over["value"] <= over["high"]
    assert "effective robustness over the probe" in said.stdout


def test_without_matplotlib_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.page.find_spec", lambda name: None)
    said = run("--model", "no-such-model", "--data", "no-such-data", "--out", tmp_path, code=1)
    assert "needs the extra [viz]" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "no --data"),
        (("--data", "x"), "no --out"),
        (("--data", "x", "--out", "o", "--tasks", "zero-shot,magic"), "no task 'magic'"),
        (("--data", "x", "--out", "o", "--tasks", ","), "names nothing"),
        (("--data", "x", "--out", "o", "--templates", "{} and {}"), "exactly one {}"),
    ],
)
def test_what_cannot_be_used_is_wrong_usage(models: list[str], tmp_path: Path, arguments: tuple, reason: str) -> None:
    assert reason in run("--model", models[0], *arguments, code=2).stderr


def test_what_is_no_data_set_fails_before_a_model_is_loaded(tmp_path: Path) -> None:
    said = run("--model", "no-such-model", "--data", tmp_path / "nothing", "--out", tmp_path / "out", code=1)
    assert "is no path and no described data set" in said.stderr


def test_two_sets_of_one_name_are_told_apart_or_refused(models: list[str], photos: Path, tmp_path: Path) -> None:
    said = run("--model", models[0], "--data", f"{photos},{photos}", "--out", tmp_path, code=2)
    assert "two data sets are called 'animals'" in said.stderr


def test_a_limit_takes_the_same_images_by_the_seed_and_is_said(models: list[str], photos: Path, tmp_path: Path) -> None:
    import sightline

    data, clip = open_measurable(str(photos)), sightline.load(models[0])

    def drawn(seed: int) -> list:
        subject = Subject(clip, data, Settings(limit=7, seed=seed), lambda what, done, of: None)
        return [subject.measured.image(i) for i in range(len(subject.measured))]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(drawn(0)) == 7
    run("--model", models[0], "--data", photos, "--tasks", "zero-shot", "--limit", 7, "--out", tmp_path)
    assert "at most 7 of each split" in (tmp_path / "report.html").read_text("utf-8")


def test_captions_are_for_retrieval_and_nothing_else(models: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "captioned"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(picture(i))
        (folder / f"{i}.txt").write_text(f"number {i}\nthe picture {i}")
    said = run("--model", models[0], "--data", folder, "--tasks", "retrieval,zero-shot", "--out", tmp_path / "out")
    assert "left out: zero-shot on captioned" in said.stderr
    assert set(rows(tmp_path / "out", "retrieval")) == {
        f"{way} recall@{k}" for way in ("image-to-text", "text-to-image") for k in (1, 5, 10)
    }


def test_labels_are_counted_in_each_group(models: list[str], photos: Path, tmp_path: Path) -> None:
    run("--model", models[0], "--data", photos, "--tasks", "bias", "--labels", "doctor, thief", "--out", tmp_path)
    (table,) = (row["table"] for row in json.loads((tmp_path / "results.json").read_text())["tables"])
    assert np.sum(table["shares"], axis=1) == pytest.approx(np.ones(6))
    assert set(rows(tmp_path, "bias")) == {"largest gap", "gap of doctor", "gap of thief"}


def test_a_group_without_measured_images_is_left_out_and_said(models: list[str], tmp_path: Path) -> None:
    write_split(tmp_path / "data" / "train", north=2, south=2, west=2)
    write_split(tmp_path / "data" / "test", north=2, west=2)
    arguments = ("--data", tmp_path / "data", "--tasks", "bias", "--out", tmp_path / "out")
    run("--model", models[0], *arguments, "--labels", "doctor, thief")
    assert notes_of(tmp_path / "out", "bias") == ["1 of 3 groups left out, as no measured image is of them: 'south'"]
    said = run("--model", models[0], *arguments, "--labels", "doctor", code=1)
    assert "left out: bias on data: --labels names 'doctor' alone: give two or more to choose from" in said.stderr
