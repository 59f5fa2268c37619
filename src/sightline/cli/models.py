"""`sightline models`: which models there are, and which of them are on this machine."""

import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import open_output

# Of both towers together. They are numbers here so that torch is not needed to tell; a test counts them.
PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
}


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Model:
    name: str
    parameters: int | None
    image_size: int | None
    embed_dim: int | None
    path: str | None  # on this machine; None where it would have to be downloaded


def models(
    format: Annotated[Format, typer.Option(metavar="FORMAT", help="table or jsonl.")] = Format.table,
) -> None:
    """List the models, and which are on this machine.

    \b
      sightline models
      sightline models --format jsonl

    Nothing is downloaded or read. A model that is not here yet is fetched when it is first used.
    """
    found = [*map(_published, PARAMETERS), _starter()]
    lines = _table(found) if format is Format.table else [json.dumps(asdict(model)) for model in found]
    with open_output(None) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def _published(name: str) -> Model:
    from sightline.config import model_config
    from sightline.hub import PUBLISHED, published_dir

    config = model_config(name)
    path = published_dir() / PUBLISHED[name][0].rpartition("/")[2]
    here = str(path) if path.is_file() else None
    return Model(name, PARAMETERS[name], config.vision.image_size, config.embed_dim, here)


def _starter() -> Model:
    """The model inside this package: its files say what it is."""
    from sightline.hub import STARTER

    folder = Path(str(files("sightline"))) / STARTER
    if not (folder / "config.json").is_file():
        return Model(STARTER, None, None, None, None)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    parameters = _count_parameters(folder / "model.safetensors")
    return Model(STARTER, parameters, config["vision"]["image_size"], config["embed_dim"], str(folder))


def _count_parameters(file: Path) -> int:
    """From the header alone. What a ResNet's BatchNorm counts as it trains is not a parameter."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        names = [n for n in tensors.keys() if "running_" not in n and not n.endswith("num_batches_tracked")]  # noqa: SIM118
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def _table(found: list[Model]) -> list[str]:
    from sightline.cli.table import aligned

    def row(model: Model) -> tuple[str, ...]:
        size = f"{model.parameters / 1e6:.1f}M".rjust(10) if model.parameters else "–".rjust(10)
        numbers = (f"{number or '–'}".rjust(10) for number in (model.image_size, model.embed_dim))
        here = "in the package" if model.path and model.name == "starter" else model.path or "no"
        return model.name, size, *numbers, here

    return aligned([("model", "parameters", "image_size", " embed_dim", "on this machine"), *map(row, found)])
