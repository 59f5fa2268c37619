"""`results.json`: what was measured, in a folder that one run at a time writes into; each task's row proves itself."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sightline.errors import SightlineError
from sightline.files import write_whole
from sightline.images import printable_name

FILE = "results.json"
FORMAT = 4
_LOCK = ".lock"
_HEAD = re.compile(rb'\s*\{\s*"about"\s*:\s*\{\s*"format"')  # how the file begins, also one that is damaged further on
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
)  # whatever a damaged one raises


@dataclass
class Evaluation:
    """What `results.json` holds.

    Attributes:
        about: how it was measured: version, date, command, settings.
        models, data: what each is, by its name.
        results: a row for each figure: model, data, task, name, value, low, high.
        tables: a row for each model, data set and task: what else there is to draw, what it depends on, and its proof.
        left_out: data set, task and why; and whether it failed, or was not to be had from the first.
        comparisons: every two models on the same images.
    """

    about: dict[str, Any]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)

    def table(self, model: str, data: str, task: str) -> dict[str, Any] | None:
        """What there is to draw, if that was measured."""
        return next((row["table"] for row in self.tables if of(row) == (model, data, task)), None)

    def figures(self, model: str, data: str, task: str) -> dict[str, dict[str, Any]]:
        """The rows of results of one task, by their names."""
        return {row["name"]: row for row in self.results if of(row) == (model, data, task)}

    def left_out_lines(self) -> list[str]:
        """What was left out and why, a line for each data set and reason."""
        tasks: dict[tuple[str, str], list[str]] = {}
        for row in self.left_out:
            tasks.setdefault((row["data"], row["reason"]), []).append(row["task"])
        return [f"{', '.join(names)} on {data}: {reason}" for (data, reason), names in tasks.items()]

    def note_lines(self) -> list[str]:
        """What a reader of the figures should know, a line for each data set and note."""
        notes: dict[tuple[str, str], list[str]] = {}
        for row in self.tables:
            for note in row["table"].get("notes", ()):
                notes.setdefault((row["data"], note), []).append(row["task"])
        of_data = [f"{name}: {note}" for name, about in self.data.items() for note in about.get("notes", ())]
        return of_data + [
            f"{', '.join(dict.fromkeys(tasks))} on {data}: {note}" for (data, note), tasks in notes.items()
        ]

    def unreadable(self, data: str) -> dict[str, Any]:
        """How many images of a data set could not be read, measured and to train on, and which the first are."""
        found: dict[str, tuple[int, list[str]]] = {}
        for row in self.tables:
            for part, (count, named) in row["unreadable"].items() if row["data"] == data else ():
                found[part] = max(found.get(part, (0, [])), (count, list(named)))
        measured, training = found.get("measured", (0, [])), found.get("training", (0, []))
        images = [*measured[1], *training[1]]
        return {"unreadable": measured[0], "training_unreadable": training[0], "unreadable_images": images}

    def unreadable_lines(self) -> list[str]:
        """What could not be read, a line for each data set."""
        lines = []
        for name, about in self.data.items():
            counts = (about["unreadable"], "image"), (about["training_unreadable"], "training image")
            said = " and ".join(f"{count:,} {what}{'s' if count > 1 else ''}" for count, what in counts if count)
            if said:
                rest = "; …" if len(about["unreadable_images"]) < sum(count for count, _ in counts) else ""
                lines.append(
                    f"{name}: {said} cannot be read, and left out: {'; '.join(about['unreadable_images'])}{rest}"
                )
        return lines

    def add(self, row: dict[str, Any], figures: list[dict[str, Any]]) -> None:
        """What a task found: its row of `tables`, to which the proof is added, and those of `results`."""
        self.tables.append({**row, "proof": _proof(row, figures)})
        self.results += figures


def of(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row of results or tables is of: model, data set, task."""
    return row["model"], row["data"], row["task"]


def read_results(path: Path) -> Evaluation | None:
    """What was measured before, as far as it is as it was written; None if there is no such file of this format."""
    try:
        found = Evaluation(**json.loads(path.read_text("utf-8")))
        return _proven(found) if found.about["format"] == FORMAT else None
    except _UNREADABLE:
        return None


def write_results(out: Path, found: Evaluation) -> None:
    """Replace what the folder holds.

    Raises:
        SightlineError: if it cannot be written; what was there is then as it was.
    """
    try:
        write_whole(out / FILE, json.dumps(vars(found), indent=1, allow_nan=False).encode())
    except OSError as error:
        raise SightlineError(f"cannot write {printable_name(out / FILE)}: {error.strerror or error}") from None


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Be the only run that writes results into a folder, which is made. The lock goes with the process.

    Raises:
        SightlineError: if another run is at work there, if it cannot be written, or if the results of something else
            are in it.
    """
    lock = FileLock(out / _LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise SightlineError(
            f"{printable_name(out)}: another sightline evaluate is at work in this folder: wait for it, or name another"
        ) from None
    except OSError as error:
        raise SightlineError(f"cannot write into {printable_name(out)}: {error.strerror or error}") from None
    try:
        _check(out / FILE)
        yield
    finally:
        lock.release()


def _check(path: Path) -> None:
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise SightlineError(f"cannot write {printable_name(path)}: {error.strerror or error}") from None
    if head.strip() and not _HEAD.match(head):
        raise SightlineError(
            f"{printable_name(path)} is there and no results of Sightline's: name another folder, or remove it first"
        )


def _proven(found: Evaluation) -> Evaluation:
    """Without the rows that somebody, or a bad disk, has altered."""
    figures: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in found.results:
        figures.setdefault(of(row), []).append(row)
    tables = {}
    for row in found.tables:
        bare = {name: value for name, value in row.items() if name != "proof"}
        if row.get("proof") == _proof(bare, figures.get(of(row), [])):
            tables[of(row)] = row
    results = [row for whose in tables for row in figures.get(whose, [])]
    return replace(found, tables=list(tables.values()), results=results)


def _proof(row: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    """A digest of all that a task found, by which it is known to be whole. It keeps out damage, and no forger."""
    return hashlib.sha256(json.dumps([row, figures]).encode()).hexdigest()
