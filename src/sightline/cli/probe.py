"""`sightline probe`: a classifier fitted to labelled images, for `sightline classify`."""

import json
import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.failures import Failures
from sightline.cli.labels import TemplatesOption
from sightline.cli.loading import DeviceOption, ModelOption, PrecisionOption, load_model
from sightline.cli.output import open_output, six_digits
from sightline.cli.progress import progress_bar
from sightline.errors import CheckpointError, InvalidArgumentError, SightlineError

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.encoder import Encoder
    from sightline.evaluate.features import ImageFeatures
    from sightline.evaluate.fitting import BesideZeroShot, Fitted
    from sightline.evaluate.intervals import Result
    from sightline.evaluate.labelled import LabelledImages


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"


def probe(
    data: Annotated[str | None, typer.Argument(metavar="DATA", hidden=True)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The classifier to write: pets.safetensors.")
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Choose C on these.  [default: one image in five of each class is set aside]"
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Measure on these, which the probe never sees, beside zero-shot."),
    ] = None,
    C: Annotated[
        list[float] | None,
        typer.Option(
            "--C",
            metavar="X",
            help="How freely weights may grow; give several to try each.  [default: the paper's sweep, 1e-6 to 1e6]",
            show_default=False,
        ),
    ] = None,
    before_projection: Annotated[
        bool,
        typer.Option("--before-projection", help="Fit to the features before the projection, as the paper does."),
    ] = False,
    templates: TemplatesOption = None,
    model: ModelOption = None,
    format: Annotated[Format, typer.Option(metavar="FORMAT", help="table or jsonl.")] = Format.table,
    device: DeviceOption = None,
    precision: PrecisionOption = "float32",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images encoded together.")] = 256,
) -> None:
    """Fit a classifier to labelled images: more exact than words, where there are examples.

    DATA is a folder with a folder of images for each class, or a table (.csv, .tsv, .jsonl), Parquet or .tar shards
    with a label for each image. Of a folder that has splits, as pets/train and pets/test, it is the one that is meant:
    what is learned from is "train", of --validation "val", of --test "test".

    \b
    Fit one, see how it does on images that it never saw, and use it:
      sightline probe pets/train -o pets.safetensors --test pets/test --model ViT-B/32
      sightline classify photos/ --classifier pets.safetensors --model ViT-B/32

    The model itself is left as it is: a linear probe is a logistic regression on its features. Its one setting, C, is
    chosen on images that are set aside, and then it is fitted to all of them. --templates are for the zero-shot
    accuracy beside it. The file knows whose features it is for, and is refused with another model.

    Features are kept in the cache, so that a second probe of the same images takes seconds.
    """
    if data is None:
        raise InvalidArgumentError("no DATA: name a folder of images for each class, a table or Parquet with labels")
    if output is None:
        raise InvalidArgumentError("no file to write: add -o pets.safetensors")
    target = _check_target(output)
    values = C[0] if C and len(C) == 1 else C or None
    if templates and test is None:
        raise InvalidArgumentError("--templates are for the zero-shot accuracy on --test images: add those")
    from sightline.cli.classify import read_prompts
    from sightline.linear_probe import LinearProbe

    LinearProbe(values).values_to_try(has_validation=validation is not None)
    prompts = read_prompts(templates)
    training = _open(data, "train")
    choosing = _open(validation, "val", training) if validation else None
    measured = _open(test, "test", training) if test else None
    _check_apart(training, choosing, "--validation")
    _check_apart(training, measured, "--test")
    clip = load_model(model, device, precision)
    from sightline.evaluate.fitting import beside_zero_shot, fit_probe

    bar_on, projected = _console(), not before_projection
    encode = partial(_encode, clip, batch_size, bar_on)
    fitted = fit_probe(encode, training, validation=choosing, C=values, projected=projected)
    _save(fitted, target, clip, projected)
    compared = None
    if measured is not None:
        compared = beside_zero_shot(clip, encode, fitted.probe, measured, templates=prompts, projected=projected)
    with open_output(None) as file:
        shown = _rows(fitted, compared, target) if format is Format.table else [_record(fitted, compared, target)]
        file.writelines(f"{line}\n".encode() for line in shown)
    sets = [(training, fitted.training)]
    sets += [(choosing, fitted.validation)] if choosing and fitted.validation else []
    sets += [(measured, compared.images)] if measured and compared else []
    _list_failures(sets)


def _open(name: str, split: str, training: "LabelledImages | None" = None) -> "LabelledImages":
    """The images of a path, or of the split that is meant where it has any. What was left out is said."""
    from sightline.evaluate.data_sets import open_split
    from sightline.images import printable_name

    images, found = open_split(name, split, training.class_names if training else None)
    if found:
        typer.echo(f"note: {printable_name(name)} has splits: taken is its {found!r}", err=True)
    for note in images.notes:
        typer.echo(f"note: {note}", err=True)
    return images


def _check_apart(learned: "LabelledImages", other: "LabelledImages | None", option: str) -> None:
    """Refuses the same images to learn from and to choose by or measure on: any probe would look good on them."""
    if other is None:
        return
    if learned.files & other.files:
        raise InvalidArgumentError(
            f"DATA and {option} are the same images ({other.name}): give others, which were not learned from"
        )


def _check_target(output: Path) -> Path:
    """Where to write, links followed; refuses, before any work, what stands there and is no classifier."""
    from sightline.classifier_file import read_classifier
    from sightline.images import printable_name

    path = Path(os.path.realpath(os.path.expanduser(output)))
    where = f"cannot write {printable_name(path)}"
    if path.exists():
        try:
            read_classifier(path)
        except CheckpointError:
            raise SightlineError(f"{where}: something is there that is no classifier; name another file") from None
    if not path.parent.is_dir():
        raise SightlineError(f"{where}: there is no such folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SightlineError(f"{where}: permission denied")
    return path


def _encode(
    clip: "Encoder", batch_size: int, bar_on: "Console | None", data: "LabelledImages", *, projected: bool
) -> "ImageFeatures":
    from sightline.evaluate.features import image_features
    from sightline.hub import cache_dir

    with progress_bar(f"encoding {data.name}", bar_on, len(data)) as report:
        cache = cache_dir() / "image-features"
        return image_features(clip, data, projected=projected, batch_size=batch_size, cache=cache, progress=report)


def _save(fitted: "Fitted", path: Path, clip: "Encoder", projected: bool) -> None:
    from sightline.images import printable_name

    try:
        fitted.probe.save(path, clip=clip, projected=projected)
    except OSError as error:
        raise SightlineError(f"cannot write {printable_name(path)}: {error.strerror or error}") from error


def _rows(fitted: "Fitted", compared: "BesideZeroShot | None", path: Path) -> list[str]:
    """The table for people."""
    from sightline.cli.table import aligned
    from sightline.images import printable_name

    probe, chosen_at = fitted.probe, fitted.chosen_at
    rows = [
        ("images", f"{len(fitted.training.rows):,}"),
        ("classes", f"{len(probe.classes_):,}"),
        ("C", f"{probe.C_:.3g}"),
    ]
    if chosen_at is not None:
        where = "one in five, set aside" if fitted.validation is None else f"{len(fitted.validation.rows):,} images"
        rows.append(("validation", f"top-1 {chosen_at:.1%}  ({where})"))
    if compared is not None:
        better = compared.difference
        rows += [
            ("test", f"{len(compared.images.rows):,} images"),
            ("  this probe", f"top-1 {_percent(compared.probe)}"),
            ("  zero-shot", f"top-1 {_percent(compared.zero_shot)}"),
            ("  difference", f"{_points(better.value)} points ({_points(better.low)} to {_points(better.high)})"),
        ]
    return aligned([*rows, ("written to", printable_name(path))])


def _percent(result: "Result") -> str:
    return f"{result.value:.1%} ({result.low:.1%} to {result.high:.1%})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _record(fitted: "Fitted", compared: "BesideZeroShot | None", path: Path) -> str:
    """One JSON object for programs. Accuracies are from 0 to 1."""

    def between(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
        ends = {"value": value, "low": low, "high": high}
        return {name: None if end is None else six_digits(end) for name, end in ends.items()}

    probe = fitted.probe
    record = {
        "path": str(path),
        "images": len(fitted.training.rows),
        "unreadable": fitted.training.unreadable,
        "classes": [str(name) for name in probe.classes_],
        "C": six_digits(probe.C_),
        "sweep": [{"C": six_digits(C), "top-1": six_digits(accuracy)} for C, accuracy in probe.sweep_],
        "validation": None if fitted.chosen_at is None else six_digits(fitted.chosen_at),
    }
    if compared is not None:
        record["test"] = {
            "images": len(compared.images.rows),
            "probe": between(*compared.probe[1:]),
            "zero-shot": between(*compared.zero_shot[1:]),
            "difference": {**between(*compared.difference[:3]), "p-value": six_digits(compared.difference.p_value)},
        }
    return json.dumps(record)


def _list_failures(sets: "list[tuple[LabelledImages, ImageFeatures]]") -> None:
    """List the images that could not be read, and exit with the code that says so; return if there are none."""
    from sightline.evaluate.fitting import unreadable

    failures = Failures(lambda path, reason: None)
    for data, found in sets:
        for error in unreadable(data, found):
            failures.add(error.name, error)
    failures.finish(sum(len(found.rows) for _, found in sets))


def _console() -> "Console | None":
    from rich.console import Console

    return Console(stderr=True) if sys.stderr.isatty() else None
