"""`sightline evaluate`: models measured on data sets, with intervals, as tables and as a report."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.classify import read_prompts
from sightline.cli.exit_codes import ExitCode
from sightline.cli.labels import read_labels
from sightline.cli.loading import DeviceOption, PrecisionOption, load_model, name_default_model
from sightline.cli.output import open_output
from sightline.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sightline.evaluate.data_sets import DataSet
    from sightline.evaluate.run import Evaluation
    from sightline.evaluate.subject import Progress


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"


def evaluate(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A published name (see `sightline models`), a folder, a weight file, or hf-hub:owner/name; several "
            "--model are compared.  [default: starter, a small model for trying things out]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA", help="Names of data sets, or paths, with commas between; or several --data."),
    ] = None,
    data_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where named data sets are.  [default: this folder]")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS", help="What to measure, with commas between.  [default: all that the data allows]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where results.json and report.html go.")
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEMPLATE",
            help="A template set (plain, imagenet, pets, …) or a template of your own; several are an ensemble.  "
            "[default: those of the data set]",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="LABELS", help='For bias: what to look for in the groups, as "doctor, nurse, thief".'),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="At most N images of each split, drawn by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of all that is drawn.")] = 0,
    format: Annotated[Format, typer.Option(metavar="FORMAT", help="table or jsonl, on stdout.")] = Format.table,
    device: DeviceOption = None,
    precision: PrecisionOption = "float32",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images encoded together.")] = 256,
) -> None:
    """Measure models on data sets, with intervals, and compare them on the same images.

    DATA is a name (cifar10, imagenet-v2, …), found in --data-folder or fetched; hf:owner/name; or a path: a folder with
    a folder or a file for each split, a folder of classes, Parquet, a table, tar shards.

    \b
      sightline evaluate --data cifar10,cifar100 --data-folder data --out report
      sightline evaluate --model starter --model run/model --data photos/ --tasks zero-shot,probe --out report
      sightline evaluate --model ViT-B/32 --data imagenet-v2 --limit 1000 --out quick --format jsonl

    \b
    Tasks:
      zero-shot    top-1, top-5 and mean per class of the class names in --templates (by default the data set's own)
      probe        logistic regression on features of the training split, its strength swept on a part of it
      k-nearest    the votes of the 20 nearest training images
      few-shot     probes on 1, 2, 4, 8 and 16 images of each class, beside zero-shot
      prompts      which templates help, chosen on training images
      calibration  whether a probability means what it says
      abstaining   coverage and accuracy with thresholds from training images; noticing images of no listed class
      robustness   ten corruptions in five severities, of at most 1,000 images
      retrieval    recall@1, 5 and 10 both ways, of data with captions
      efficiency   parameters, FLOPs, images and texts a second
      bias         how often each of --labels is chosen in each class, as in each group (only when named)
      probe-before-projection   the probe of the paper (only when named)

    Choices are made on training images; those that are measured decide nothing. Run again with the same --out, it goes
    on where it was stopped. Features are kept in the cache. The report needs: pip install 'sightline[viz]'
    """
    from sightline.evaluate.report import FILE as REPORT
    from sightline.evaluate.report import write_report
    from sightline.evaluate.results import alone_in
    from sightline.evaluate.run import evaluate as measure
    from sightline.evaluate.subject import Settings
    from sightline.hub import cache_dir, resolve
    from sightline.outputs import check_page
    from sightline.page import check_drawing

    named = _tasks(tasks)
    if not data:
        raise InvalidArgumentError("no --data: name data sets, as --data cifar10 or --data photos/")
    if data_folder is not None and not data_folder.expanduser().is_dir():
        raise InvalidArgumentError(f"--data-folder {str(data_folder)!r} is no folder")
    if out is None:
        raise InvalidArgumentError("no --out: name a folder for results.json and report.html")
    check_drawing("a report with plots")
    check_page(out / REPORT)
    if (out / REPORT).is_dir():
        raise InvalidArgumentError(f"{out / REPORT} is a folder: name another --out, or remove it")
    settings = Settings(
        templates=read_prompts(templates) if templates else None,
        labels=tuple(read_labels(labels, None)) if labels is not None else (),
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        cache=cache_dir() / "image-features",
    )
    sets = [_open(name, data_folder) for given in data for name in _split(given, "--data")]
    names = model or [name_default_model()]
    with alone_in(out):  # what is wrong with the folder or with a name is said before anything is measured
        for name in names:
            resolve(name)
    loads = [partial(load_model, name, device, precision) for name in names]
    models = list(zip(_shown(names), loads, strict=True))
    command = shlex.join(["sightline", *sys.argv[1:]])
    with _progress() as (progress, say):
        found = measure(models, sets, named, out, settings, command=command, progress=progress, say=say)
    write_report(out, found)
    lines = _table(found) if format is Format.table else map(json.dumps, [*found.results, *found.comparisons])
    with open_output(None) as file:
        file.writelines(f"{line}\n".encode() for line in lines)
    _finish(found, out / REPORT)


def _open(name: str, data_folder: Path | None) -> "DataSet":
    """A data set. That a hub is asked is said, as `datasets` tries for a while where there is no network."""
    from sightline.evaluate.data_sets import open_measurable
    from sightline.evaluate.hugging_face import is_of_the_hub
    from sightline.images import printable_name

    if name.startswith("hf:") and is_of_the_hub(name.removeprefix("hf:")):
        typer.echo(f"{printable_name(name)}: asking Hugging Face", err=True)
    return open_measurable(name, data_folder)


def _tasks(given: str | None) -> list[str]:
    """The tasks that are named, or all that are by default."""
    from sightline.evaluate.tasks import TASKS

    if given is None:
        return [name for name, task in TASKS.items() if task.by_default]
    names = _split(given, "--tasks")
    for name in names:
        if name not in TASKS:
            raise InvalidArgumentError(f"--tasks: there is no task {name!r:.40}; there are {', '.join(TASKS)}")
    return list(dict.fromkeys(names))


def _split(given: str, option: str) -> list[str]:
    """Names with commas between. A path with a comma in it is taken whole where there is such a file."""
    if os.path.lexists(os.path.expanduser(given)):
        return [given]
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise InvalidArgumentError(f"{option} {given!r} names nothing")
    return names


def _shown(names: list[str]) -> list[str]:
    """What to call models: a path by its last two parts, where these tell it apart."""
    from sightline.images import printable_name

    short = [os.sep.join(Path(name).parts[-2:]) if os.path.lexists(name) else name for name in names]
    return [printable_name(last if short.count(last) == 1 else name) for name, last in zip(names, short, strict=True)]


def _finish(found: "Evaluation", report: Path) -> None:
    """Say what was left out, what could not be read and where the report is, and exit so that a script knows."""
    for line in found.left_out_lines():
        typer.echo(f"left out: {line}", err=True)
    for line in found.note_lines():
        typer.echo(f"note: {line}", err=True)
    unreadable = found.unreadable_lines()
    for line in unreadable:
        typer.echo(f"failed: {line}", err=True)
    typer.echo(f"report: {report}", err=True)
    if not found.results:
        typer.echo("error: nothing was measured", err=True)
        raise typer.Exit(ExitCode.FAILED)
    if unreadable or any(row["failed"] for row in found.left_out):
        raise typer.Exit(ExitCode.SOME_INPUTS_FAILED)


# ── on the terminal ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _progress() -> "Iterator[tuple[Progress, Callable[[str], object]]]":
    """What is told how far it is, and what is finished: a bar where stderr is a terminal, else a line for each task."""
    if not sys.stderr.isatty():
        yield lambda what, done, of: None, partial(typer.echo, err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        shown = bar.add_task("", total=None)

        def progress(what: str, done: int, of: int) -> None:
            if bar.tasks[0].description != what:
                bar.reset(shown, description=what, total=of)
            bar.update(shown, completed=done, total=of)

        yield progress, lambda line: None


def _table(found: "Evaluation") -> "Iterator[str]":
    """Figures down, models across, and then which model is better."""
    from sightline.cli.table import aligned

    if not found.results:
        return
    rows = [("data set", "task", "figure", *found.models)]
    figures_of = dict.fromkeys((row["data"], row["task"], row["name"]) for row in found.results)
    for data, task, name in sorted(figures_of, key=lambda of: not of[0]):  # what is of no data set comes last
        shown = "uncorrupted", "corruptions", "over the probe"  # the rest of robustness is in the report
        if task != "robustness" or name.endswith(shown):
            figures = (found.figures(model, data, task).get(name) for model in found.models)
            rows.append((data or "–", task, name, *(_said(figure) for figure in figures)))
    yield from aligned(rows)
    if found.comparisons:
        yield ""
        head = ("data set", "task", "which is better", "points", "95% interval", "p", "p after Holm")
        yield from aligned([head, *map(_compared, found.comparisons)])


def _said(figure: dict[str, Any] | None) -> str:
    """A figure with its interval; what is no share is said by its name."""
    if figure is None:
        return "–"
    value, ends, name = figure["value"], (figure["low"], figure["high"]), figure["name"]
    if name.startswith("shots"):
        return "more than were tried" if value is None else "fewer than 1" if value < 1 else f"{value:.1f}"
    if name.endswith(("parameters", "FLOPs", "per second")):
        return f"{value:,.0f}"
    if name.endswith("AUROC"):
        return f"{value:.3f} ({ends[0]:.3f}–{ends[1]:.3f})"
    if name.startswith("effective robustness"):
        return f"{100 * value:+.1f} points ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
    return f"{value:.1%}" if ends[0] is None else f"{value:.1%} ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"


def _compared(row: dict[str, Any]) -> tuple[str, ...]:
    value, low, high = (f"{100 * row[name]:+.1f}" for name in ("value", "low", "high"))
    who = f"{row['first']} over {row['second']}"
    return row["data"], row["task"], who, value, f"{low} to {high}", f"{row['p_value']:.2g}", f"{row['adjusted']:.2g}"
