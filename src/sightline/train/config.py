"""What a training run is told. It comes from a file or from flags, and is saved with the run."""

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sightline.errors import ConfigError

Loss = Literal["softmax", "sigmoid"]
Precision = Literal["float32", "bfloat16"]
Freeze = Literal["none", "image", "text"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, whole: the same configuration and data give the same weights.

    Attributes:
        data: where the pairs come from: CSV, TSV or JSONL files, folders, Parquet files, WebDataset shards.
        out: the folder of the run: checkpoints, logs, the report and the model.
        model: a published architecture ("ViT-B/32") or a JSON file of a `ModelConfig`, to start from nothing; or, with
            `start_from`, left out.
        start_from: weights to start from, by any name that `sightline.load` takes.
        samples: how many pairs to see in all.
        global_batch_size: how many pairs are contrasted with one another in a step.
        micro_batch_size: how many of them go through the towers at once, on each process; all that fit is fastest.
        loss: "softmax" as in CLIP, or "sigmoid" as in SigLIP.
        learning_rate: at the end of the warm-up; it falls to zero along a cosine.
        warmup: how many steps the learning rate rises for.
        weight_decay: of matrices; gains, biases and the temperature have none.
        beta2: of AdamW; beta1 is 0.9.
        gradient_clip: the largest norm of a step's gradient.
        precision: of the towers' arithmetic; weights, features and the loss are float32 always.
        templates: for data with class names in place of captions.
        crop: the smallest share of an image's area that a training crop shows (the paper's is 0.9).
        flip: how often a training image is mirrored.
        freeze: a tower that does not learn.
        ema: the share of the old in each step of the weights' running average; 0 for none.
        checkpoint_every: steps between checkpoints.
        keep: how many checkpoints stay.
        workers: processes that decode, on each process of training.
        seed: of the weights, the order of the data, and its augmentation.
    """

    data: tuple[str, ...]
    out: str
    model: str | None = None
    start_from: str | None = None
    samples: int = 1_000_000
    global_batch_size: int = 256
    micro_batch_size: int = 256
    loss: Loss = "softmax"
    learning_rate: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.2
    beta2: float = 0.98
    gradient_clip: float = 1.0
    precision: Precision = "bfloat16"
    templates: str = "plain"
    crop: float = 0.9
    flip: float = 0.0
    freeze: Freeze = "none"
    ema: float = 0.0
    checkpoint_every: int = 500
    keep: int = 3
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("there is no data: name at least one source of image-text pairs")
        if (self.model is None) == (self.start_from is None):
            raise ConfigError("name either a model to build (model) or weights to start from (start_from)")
        for name in ("samples", "global_batch_size", "micro_batch_size", "checkpoint_every", "keep"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a whole number above zero, not {getattr(self, name)!r}")
        for name in ("warmup", "workers", "seed"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ConfigError(f"{name} must be a whole number, zero or above, not {getattr(self, name)!r}")
        for name, low, high in (("learning_rate", 0, 1), ("gradient_clip", 0, 1e6), ("crop", 0, 1)):
            if not low < getattr(self, name) <= high:
                raise ConfigError(f"{name} must be above {low} and at most {high}, not {getattr(self, name)!r}")
        for name in ("weight_decay", "beta2", "ema", "flip"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be from 0 to below 1, not {getattr(self, name)!r}")
        for name, kind in (("loss", Loss), ("precision", Precision), ("freeze", Freeze)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")

    @property
    def steps(self) -> int:
        """How many steps the samples make, the last one whole."""
        return -(-self.samples // self.global_batch_size)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainConfig":
        """Raises ConfigError for a key that is unknown or missing."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(f"unknown key {unknown[0]!r} in the training configuration; known: {', '.join(known)}")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"the training configuration is not whole: {error}") from None

    @classmethod
    def from_file(cls, path: Path) -> "TrainConfig":
        """Read a `.toml` or `.json` file."""
        try:
            text = path.read_text("utf-8")
            return cls.from_dict(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path}: cannot be read as a training configuration ({error})") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
