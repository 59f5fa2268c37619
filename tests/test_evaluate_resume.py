"""Results that go on: what is altered is measured anew, one run has the folder, and only what is needed is opened."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_files import picture
from sightline.cli import app
from sightline.encoder import Encoder
from sightline.errors import DataError, SightlineError
from sightline.evaluate.data_sets import open_measurable
from sightline.evaluate.labelled import open_labelled
from sightline.evaluate.report import report
from sightline.evaluate.results import Evaluation, alone_in, read_results
from sightline.evaluate.run import evaluate
from sightline.evaluate.subject import Settings, Subject
from sightline.evaluate.tasks import TASKS
from tiny import small_vocabulary

NAMES = ("ant", "bee", "cat")
BOTH = "zero-shot", "k-nearest"
Damage = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two training images and two test images each."""
    root = tmp_path_factory.mktemp("data") / "animals"
    for start, split in enumerate(("train", "test")):
        for i, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for j in range(2):
                (root / split / name / f"{j}.png").write_bytes(picture(100 * start + 10 * i + j))
    return root


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each model's fingerprint and task, as it is measured."""
    done: list[tuple[str, str]] = []

    def counted(name: str) -> None:
        measure = TASKS[name].measure

        def count(subject: Subject):
            done.append((subject.clip.fingerprint()[:4], name))
            return measure(subject)

        monkeypatch.setitem(TASKS, name, TASKS[name]._replace(measure=count))

    for name in (*BOTH, "efficiency"):
        counted(name)
    return done


def measure(out: Path, data: Path, tasks: tuple[str, ...] = BOTH, seeds: tuple[int, ...] = (0,), **how) -> Evaluation:
    models = [(f"tiny-{seed}", lambda seed=seed: small_vocabulary(seed)) for seed in seeds]
    return evaluate(models, [open_measurable(str(data))], tasks, out, Settings(), **how)


def tasks_of(measured: list[tuple[str, str]]) -> list[str]:
    return [task for _, task in measured]


# ── what is altered ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_as_it_was_written_is_not_measured_again(photos: Path, tmp_path: Path, measured: list) -> None:
    first = measure(tmp_path, photos)
    assert tasks_of(measured) == ["zero-shot", "k-nearest"]
    second = measure(tmp_path, photos)
    assert len(measured) == 2
    assert (second.results, second.tables) == (first.results, first.tables)


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["results"][0].update(value=0.999),
        lambda found: found["results"][0].update(value="<b>99"),
        lambda found: found["results"][0].update(value=float("nan")),
        lambda found: found["results"].append(found["results"][0]),
        lambda found: found["results"].pop(0),
        lambda found: found["tables"][0].update(right="é1"),
        lambda found: found["tables"][0].update(right="111111"),
        lambda found: found["tables"][0].update(table={}),
        lambda found: found["tables"][0].update(unreadable="many"),
        lambda found: found["tables"][0].pop("unreadable"),
        lambda found: found["tables"][0].pop("proof"),
    ],
)
def test_a_task_that_is_altered_is_measured_anew_and_no_other(
    photos: Path, tmp_path: Path, measured: list, damage: Damage
) -> None:
    first = measure(tmp_path, photos)
    found = json.loads((tmp_path / "results.json").read_text())
    damage(found)
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert [row["task"] for row in read_results(tmp_path / "results.json").tables] == ["k-nearest"]  # type: ignore[union-attr]
    assert measure(tmp_path, photos).results == first.results
    assert tasks_of(measured) == ["zero-shot", "k-nearest", "zero-shot"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["tables"][0].pop("data"),
        lambda found: found["results"][0].pop("task"),
        lambda found: found["results"][0].update(model=["x"]),
        lambda found: found["tables"].append({"model": "x"}),
        lambda found: found.update(results=None),
        lambda found: found.update(tables=[[1]]),
        lambda found: found["about"].update(format=1),
        lambda found: found.update(more=1),
    ],
)
def test_where_rows_are_no_rows_all_is_measured_anew(
    photos: Path, tmp_path: Path, measured: list, damage: Damage
) -> None:
    first = measure(tmp_path, photos)
    found = json.loads((tmp_path / "results.json").read_text())
    damage(found)
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert measure(tmp_path, photos).results == first.results
    assert tasks_of(measured) == 2 * ["zero-shot", "k-nearest"]


def test_an_image_that_is_changed_in_place_with_its_date_put_back_is_noticed(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "test", tmp_path / "test")
    before = open_labelled(tmp_path / "test").identity()
    path = tmp_path / "test" / "bee" / "1.png"
    status = path.stat()
    while time.time_ns() < status.st_ctime_ns + 20_000_000:  # as fine as some kernels tell the time
        time.sleep(0.005)
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert open_labelled(tmp_path / "test").identity() != before


# ── speeds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_speeds_are_of_one_moment_for_all_models(photos: Path, tmp_path: Path, measured: list) -> None:
    tasks = "efficiency", "zero-shot"
    measure(tmp_path, photos, tasks, (0, 1))
    assert tasks_of(measured) == ["zero-shot", "zero-shot", "efficiency", "efficiency"]
    measure(tmp_path, photos, tasks, (0, 1))
    assert len(measured) == 4
    measure(tmp_path, photos, tasks, (0, 1, 2))  # no old one is kept beside that of the new model
    assert tasks_of(measured)[4:] == ["zero-shot", "efficiency", "efficiency", "efficiency"]
    assert len({model for model, task in measured[5:]}) == 3


# ── what is opened ───────────────────────────────────────────────────────────────────────────────────────────────────


def without_training(photos: Path):
    """A data set whose training images cannot be had."""
    data = open_measurable(str(photos))

    def opened(split: str):
        if split == "train":
            raise DataError("animals/train", "is damaged")
        return open_measurable(str(photos)).opener(split)

    return replace(data, opener=opened)


def test_training_images_are_opened_only_for_a_task_that_needs_them(photos: Path, tmp_path: Path) -> None:
    models = [("tiny", small_vocabulary)]
    data, alone = without_training(photos), ("zero-shot", "calibration", "bias", "efficiency")
    found = evaluate(models, [data], alone, tmp_path, Settings(labels=("a", "b")))
    assert found.left_out == []
    assert (found.data["animals"]["training"], found.data["animals"]["training_images"]) == (None, 0)
    found = evaluate(models, [data], ["k-nearest", *alone], tmp_path, Settings(labels=("a", "b")))
    assert found.left_out == [
        {"data": "animals", "task": "k-nearest", "reason": "animals/train: is damaged", "failed": True}
    ]
    assert {row["task"] for row in found.tables} == set(alone)


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if name not in ("retrieval", "efficiency")])
def test_other_training_images_are_another_measurement_where_they_have_a_part(photos: Path, task: str) -> None:
    """A task that is kept although they are others is one that gets by without any."""
    subject = Subject(small_vocabulary(), without_training(photos), Settings(labels=("a", "b")), lambda *how: None)
    if TASKS[task].learns:
        with pytest.raises(DataError, match="is damaged"):
            TASKS[task].measure(subject)
    else:
        TASKS[task].measure(subject)


def test_labels_are_not_taken_for_captions_where_another_split_is_damaged(photos: Path, tmp_path: Path) -> None:
    rows = [f"{photos / 'test' / name / '0.png'},{name}\n" for name in NAMES]
    (tmp_path / "test.csv").write_text("".join(["image,label\n", *rows]))
    assert open_measurable(str(tmp_path)).class_names == NAMES
    (tmp_path / "train.csv").write_text("image\nx.png\n")
    with pytest.raises(DataError, match=r"train\.csv"):
        open_measurable(str(tmp_path))


def test_what_was_learned_from_is_told(photos: Path, tmp_path: Path) -> None:
    for _ in range(2):  # and when nothing is measured again
        about = measure(tmp_path, photos).data["animals"]
        assert (about["training"], about["training_images"]) == ("train", 6)


def test_a_tower_that_is_not_loaded_leaves_out_what_needs_it(photos: Path, tmp_path: Path) -> None:
    import sightline

    def load() -> Encoder:
        return sightline.load(tmp_path / "model", towers="image")

    small_vocabulary().save(tmp_path / "model")
    found = evaluate([("half", load)], [open_measurable(str(photos))], BOTH, tmp_path / "out", Settings())
    assert {row["task"] for row in found.tables} == {"k-nearest"}
    (left_out,) = found.left_out
    assert left_out["task"] == "zero-shot"
    assert left_out["reason"].startswith("half: this model was loaded with towers='image'")


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_run_at_a_time_has_the_folder(photos: Path, tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(SightlineError, match="another sightline evaluate is at work"):
        measure(tmp_path, photos)
    measure(tmp_path, photos)


@pytest.mark.parametrize("text", ['{"my": "own results"}', "[1]", "name,value\n", '{"about": [1]}'])
def test_a_file_of_something_else_is_left_as_it_is(photos: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(SightlineError, match=r"results.json is there and no results of Sightline's"):
        measure(tmp_path, photos)
    assert (tmp_path / "results.json").read_text() == text


def test_an_end_that_was_lost_costs_no_more_than_the_measuring(photos: Path, tmp_path: Path, measured: list) -> None:
    first = measure(tmp_path, photos)
    whole = (tmp_path / "results.json").read_bytes()
    for length in (0, 40, len(whole) // 2):
        (tmp_path / "results.json").write_bytes(whole[:length])
        assert measure(tmp_path, photos).results == first.results
    assert len(measured) == 8


def out_that_is_a_file(root: Path) -> Path:
    (root / "file").write_text("")
    return root / "file"


def out_with_a_folder(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "out" / name).mkdir(parents=True)
        return root / "out"

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (out_that_is_a_file, "cannot write into"),
        (out_with_a_folder("results.json"), "cannot write"),
        (out_with_a_folder("report.html"), "report.html is a folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_said_before_a_model_is_looked_for(
    photos: Path, tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    arguments = ["evaluate", "--data", str(photos), "--model", "no-such", "--out", str(make(tmp_path))]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code in (1, 2)
    assert says in said.stderr
    assert "no-such" not in said.stderr


def test_a_name_of_no_model_is_said_before_anything_is_measured(photos: Path, tmp_path: Path, measured: list) -> None:
    arguments = ["--data", str(photos), "--tasks", "zero-shot", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, ["evaluate", "--model", "starter", "--model", "ViT-B/33", *arguments])
    assert said.exit_code == 1
    assert "did you mean 'ViT-B/32'" in said.stderr
    assert measured == []


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_task_is_told_when_it_is_finished(photos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    measure(tmp_path, photos, (*BOTH, "efficiency"), say=said.append)
    assert [line.rpartition(",")[0] for line in said] == [
        "1/3 tiny-0 on animals: zero-shot",
        "2/3 tiny-0 on animals: k-nearest",
        "3/3 tiny-0: efficiency",
    ]
    again: list[str] = []
    measure(tmp_path, photos, BOTH, say=again.append)
    assert again == [f"{i + 1}/2 tiny-0 on animals: {task}, measured before" for i, task in enumerate(BOTH)]


def test_what_is_of_the_model_alone_makes_a_report(photos: Path, tmp_path: Path) -> None:
    found = measure(tmp_path, photos, ("efficiency",))
    assert {row["data"] for row in found.tables} == {""}
    assert b"images a second" in report(found)


def test_where_no_terminal_is_these_are_lines(photos: Path, tmp_path: Path) -> None:
    small_vocabulary().save(tmp_path / "model")
    arguments = ["--data", str(photos), "--tasks", "zero-shot", "--model", str(tmp_path / "model"), "--out"]
    said = CliRunner().invoke(app, ["evaluate", *arguments, str(tmp_path / "out")])
    assert f"1/1 {tmp_path.name}/model on animals: zero-shot, " in said.stderr
