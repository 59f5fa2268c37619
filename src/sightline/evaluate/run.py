"""Tasks measured of models on data sets, one after another, into `results.json`: stopped at any moment, it goes on.

The file is written whole after each task. What it holds is measured again only if something that it depends on
(weights, precision, images, templates, seed, limit) is another now, or if it is not as it was written.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import sightline
from sightline.encoder import Encoder
from sightline.errors import (
    DataError,
    DownloadError,
    InvalidArgumentError,
    TextTooLongError,
    TowerNotLoadedError,
)
from sightline.evaluate.comparisons import compare
from sightline.evaluate.data_sets import DataSet
from sightline.evaluate.results import FILE, FORMAT, Evaluation, alone_in, of, read_results, write_results
from sightline.evaluate.shifts import beside_imagenet
from sightline.evaluate.subject import Progress, Settings, Subject
from sightline.evaluate.tasks import TASKS, Found
from sightline.images import printable_name

__all__ = ["FILE", "Evaluation", "evaluate", "read_results"]

Models = Sequence[tuple[str, Callable[[], Encoder]]]
_RIGHT = "01-"  # of an image: wrong, right, could not be read
_LEAVES_OUT = (
    InvalidArgumentError,
    TextTooLongError,
    DataError,
    DownloadError,
    TowerNotLoadedError,
)  # a task, and not all the others


def evaluate(
    models: Models,
    data: Sequence[DataSet],
    tasks: Sequence[str],
    out: Path,
    settings: Settings,
    *,
    command: str = "",
    progress: Progress = lambda what, done, of: None,
    say: Callable[[str], object] = lambda line: None,
) -> Evaluation:
    """Measure every task of every model on every data set, as far as the data allows.

    Args:
        models: a name and what loads the model, one at a time.
        out: the folder of `results.json`, which may hold what was measured before.
        command: what is said in the report about how it was made.
        progress: told how far a task is.
        say: told a line when a task is finished.

    Raises:
        InvalidArgumentError: if two models or two data sets have one name.
        SightlineError: if a model cannot be loaded, a data set cannot be read, the folder cannot be written, another
            run is at work in it, or the results of something else are in it.
    """
    for what, names in (("models", [name for name, _ in models]), ("data sets", [each.name for each in data])):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidArgumentError(f"two {what} are called {twice!r}: leave one out, or give it another name")
    data = beside_imagenet(data)
    with alone_in(out):
        run = _Run(out, settings, _about(command, settings), progress, say)
        on_data = [task for task in tasks if not TASKS[task].of_model]
        of_model = [task for task in tasks if TASKS[task].of_model]
        run.whole = len(models) * (len(data) * len(on_data) + len(of_model))
        for name, load in models:
            run.measure(name, load, data, on_data)
        for task in of_model:
            run.measure_together(models, data[0], task)
        run.now.comparisons = [each._asdict() for each in compare(_rights(run.now), seed=settings.seed)]
        write_results(out, run.now)
        return run.now


class _Run:
    """What was measured before, what is now, and how far it is."""

    def __init__(
        self, out: Path, settings: Settings, about: dict[str, Any], progress: Progress, say: Callable[[str], object]
    ):
        self.out, self.settings, self.progress, self.say = out, settings, progress, say
        self.before, self.now = read_results(out / FILE) or Evaluation({}), Evaluation(about)
        self.begun, self.whole, self.name = 0, 0, ""

    def measure(self, name: str, load: Callable[[], Encoder], data: Sequence[DataSet], tasks: Sequence[str]) -> None:
        """Tasks of one model on all data sets."""
        clip = self._load(name, load)
        self.now.models[name] = _about_model(clip)
        for each in data:
            subject = Subject(clip, each, self.settings, self._report)
            about = self.now.data.setdefault(each.name, _about_data(subject))
            for task in tasks:
                self._one(subject, task)
                about |= _about_training(subject)
                about |= self.now.unreadable(each.name)
                write_results(self.out, _so_far(self.before, self.now))

    def measure_together(self, models: Models, data: DataSet, task: str) -> None:
        """A task of the models alone, of all of them one right after another.

        Speeds of different moments are not to be compared where a machine has other work to do: what was measured
        before is kept of all models, or of none.
        """
        keys = [_key(self.now.models[name], task) for name, _ in models]
        kept = [self._kept((name, "", task), key) for (name, _), key in zip(models, keys, strict=True)]
        together = Evaluation({})  # not to be stopped between two of them
        for (name, load), key, row in zip(models, keys, kept, strict=True):
            self.begun, self.name = self.begun + 1, name
            if all(kept) and row is not None:
                self._keep(together, row)
            else:
                clip = self._load(name, load)
                self._measure(together, Subject(clip, data, self.settings, self._report), (name, "", task), key)
                del clip  # before the next is loaded
        self.now.tables += together.tables
        self.now.results += together.results

    def _one(self, subject: Subject, task: str) -> None:
        """A task on a data set: measured, or what is there of it; or why it is left out."""
        self.begun += 1
        whose = (self.name, subject.data.name, task)
        if (reason := TASKS[task].lacking(subject.data, self.settings)) is not None:
            self._leave_out(whose, reason, failed=False)
            return
        try:
            key = _key(self.now.models[self.name], task, subject)
        except _LEAVES_OUT as error:
            self._leave_out(whose, str(error), failed=True)
            return
        if (row := self._kept(whose, key)) is not None:
            self._keep(self.now, row)
        else:
            self._measure(self.now, subject, whose, key)

    def _measure(self, found: Evaluation, subject: Subject, whose: tuple[str, str, str], key: str) -> None:
        start = time.monotonic()
        try:
            got = TASKS[whose[2]].measure(subject)
        except _LEAVES_OUT as error:
            reason = f"{self.name}: {error}" if isinstance(error, TowerNotLoadedError) else str(error)
            self._leave_out((self.name, subject.data.name, whose[2]), reason, failed=True)
            return
        seconds = time.monotonic() - start
        _add(found, dict(zip(("model", "data", "task"), whose, strict=True)), key, got, seconds, subject.unreadable)
        self._tell(whose, f"{seconds:.1f} s")

    def _kept(self, whose: tuple[str, str, str], key: str) -> dict[str, Any] | None:
        return next((row for row in self.before.tables if row["key"] == key and of(row) == whose), None)

    def _keep(self, found: Evaluation, row: dict[str, Any]) -> None:
        found.tables.append(row)
        found.results += self.before.figures(*of(row)).values()
        self._tell(of(row), "measured before")

    def _leave_out(self, whose: tuple[str, str, str], reason: str, *, failed: bool) -> None:
        left_out = {"data": whose[1], "task": whose[2], "reason": reason, "failed": failed}
        if left_out not in self.now.left_out:
            self.now.left_out.append(left_out)
        if failed:
            self._tell(whose, f"left out: {reason}")

    def _load(self, name: str, load: Callable[[], Encoder]) -> Encoder:
        self.name = name
        self._report("loading", 0, 1)
        return load()

    def _report(self, what: str, done: int, of: int) -> None:
        self.progress(f"{self.begun}/{self.whole} {self.name}: {what}", done, of)

    def _tell(self, whose: tuple[str, str, str], how: str) -> None:
        model, data, task = whose
        self.say(f"{self.begun}/{self.whole} {model}{' on ' if data else ''}{data}: {task}, {how}")


def _add(
    now: Evaluation, here: dict[str, Any], key: str, found: Found, seconds: float, unreadable: dict[str, Any]
) -> None:
    rows = [{**here, **{name: _json(value) for name, value in each._asdict().items()}} for each in found.results]
    right = None if found.right is None else "".join(_RIGHT[2 if np.isnan(x) else int(x)] for x in found.right)
    table = {**here, "key": key, "seconds": round(seconds, 1), "unreadable": dict(unreadable)}
    now.add({**table, "right": right, "table": found.table}, rows)


def _rights(now: Evaluation) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Which images each model was right on, by data set and task."""
    rights: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for row in now.tables:
        if row["right"] is not None:
            marks = np.frombuffer(row["right"].encode("ascii"), np.uint8)
            right = np.where(marks == ord("-"), np.nan, marks == ord("1"))
            rights.setdefault((row["data"], row["task"]), {})[row["model"]] = right
    return rights


def _key(model: dict[str, Any], task: str, subject: Subject | None = None) -> str:
    """By what all that a task finds is determined.

    Raises:
        DataError, DownloadError: if the images cannot be had.
    """
    asked = [FORMAT, sightline.__version__, task, model["fingerprint"], model["precision"], model["device"]]
    if subject is not None:
        settings, training = subject.settings, subject.training if TASKS[task].learns else None
        asked += [subject.measured.identity(), "" if training is None else training.identity()]
        asked += [list(subject.data.class_names), list(subject.templates.templates), list(settings.labels)]
        asked += [settings.limit, settings.seed]
        asked += [subject.on(subject.data.imagenet).measured.identity()] if subject.data.imagenet else []
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _about(command: str, settings: Settings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "sightline": sightline.__version__,
        "python": sys.version.partition(" ")[0],
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "command": command,
        "seed": settings.seed,
        "limit": settings.limit,
        "templates": None if settings.templates is None else list(settings.templates.templates),
        "labels": list(settings.labels),
    }


def _about_model(clip: Encoder) -> dict[str, Any]:
    return {
        "from": printable_name(clip.name),
        "fingerprint": clip.fingerprint(),
        "precision": clip.engine.precision_of("image"),
        "device": str(clip.device),
        "embed_dim": clip.embed_dim,
        "image_size": clip.engine.config.vision.image_size,
    }


def _about_data(subject: Subject) -> dict[str, Any]:
    data = subject.data
    return {
        "measured": data.measured,
        "images": len(subject.measured),
        "identity": hashlib.sha256(subject.measured.identity().encode()).hexdigest(),
        "training": None,
        "training_images": 0,
        "classes": len(data.class_names),
        "templates": f"{subject.templates.name} ({len(subject.templates.templates)})",
        "licence": data.licence,
        "measure": data.measure,
        "notes": [*data.notes, *subject.measured.notes],
        "of_imagenet": bool(data.imagenet_numbers) and not data.of_strangers,
        **Evaluation({}).unreadable(data.name),
    }


def _about_training(subject: Subject) -> dict[str, Any]:
    """What was learned from, if any task asked for it."""
    training = subject.opened_training
    if training is None:
        return {}
    notes = dict.fromkeys((*subject.data.notes, *subject.measured.notes, *training.notes))
    return {"training": subject.data.training, "training_images": len(training), "notes": [*notes]}


def _so_far(before: Evaluation, now: Evaluation) -> Evaluation:
    """With what was measured before and is not reached yet, so that a run which is stopped loses none of it."""
    reached = {of(row) for row in now.tables}
    tables = [row for row in before.tables if of(row) not in reached]
    results = [row for row in before.results if of(row) not in reached]
    return replace(now, tables=now.tables + tables, results=now.results + results)


def _json(value: Any) -> Any:
    """JSON has no infinity: what is never reached is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
