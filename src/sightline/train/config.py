"""What a training run is told. It comes from a file or from flags, and is saved with the run."""

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sightline.errors import ConfigError

Loss = Literal["softmax", "sigmoid"]
Precision = Literal["float32", "bfloat16"]
Augmentation = Literal["paper", "light", "strong"]
Optimizer = Literal["adamw", "muon"]

NEW_LEARNING_RATE = 5e-4
TUNING_LEARNING_RATE = 5e-5


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, whole: the same configuration and data give the same weights.

    Attributes:
        data: where the pairs come from: CSV, TSV or JSONL files, folders, Parquet files, WebDataset shards.
        out: the folder of the run: checkpoints, metrics, the report and the model.
        model: a published architecture ("ViT-B/32") or a JSON file of one, to train from nothing.
        start_from: weights to start from, by any name that `sightline.load` takes. With a `model` too, they are fitted
            to its image size.
        samples: how many pairs to see in all. [default: each ten times]
        global_batch_size: how many pairs are contrasted with one another in a step. [default: 256, or all there are]
        micro_batch_size: how many of them go through the towers at once, on each process; the result is the same, and
            the most that fits in memory is fastest.
        loss: "softmax" as in CLIP, or "sigmoid" as in SigLIP.
        optimizer: "adamw", or "muon" for the matrices and kernels inside the towers' blocks (the rest by AdamW):
            fewer steps to the same loss, each somewhat slower.
        learning_rate: after the warm-up; it falls to zero along a cosine. [default: 5e-4 for a new model, else 5e-5]
        warmup: how many steps the learning rate rises for; at most a tenth of the run.
        weight_decay: of matrices; gains, biases and the temperature have none.
        gradient_clip: the largest norm of a step's gradient.
        precision: of the towers' arithmetic, "float32" or "bfloat16"; weights, features and loss are float32 always.
        templates: for data with class names in place of captions: a template set, or a template of your own.
        augment: "paper" (a random crop of 90% or more), "light" (crops of 50% or more, mirrored half the time) or
            "strong" (crops of 30% or more, mirrored, colours changed, parts erased): the less data, the stronger.
        learn: what learns: "all"; "image" or "text", that tower alone; "last:N", the last N blocks of both towers;
            "lora:R", low-rank adapters of rank R, which are merged at the end.
        layer_decay: the factor by which each block learns slower than the one above it; 1 for none.
        ema: the share of the old in each step of the weights' running average, which becomes the model; 0 for none.
        evaluate: labelled images (a folder per class, Parquet) to measure zero-shot accuracy on at each checkpoint.
        checkpoint_every: steps between checkpoints.
        keep: how many checkpoints stay.
        workers: processes that decode, on each process of training.
        seed: of the weights, the order of the data, and its augmentation.
        recompute: keep no activations inside the Transformers' blocks, and compute them again: slower, less memory.
        compile: compile the towers: faster on a GPU, after a minute or more.
        shard: split weights and optimiser over the processes (FSDP2), for models that do not fit in one.
        tensorboard: write scalars for TensorBoard too.
    """

    data: tuple[str, ...]
    out: str
    model: str | None = None
    start_from: str | None = None
    samples: int | None = None
    global_batch_size: int | None = None
    micro_batch_size: int = 256
    loss: Loss = "softmax"
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    warmup: int = 200
    weight_decay: float = 0.2
    gradient_clip: float = 1.0
    precision: Precision = "bfloat16"
    templates: str = "plain"
    augment: Augmentation = "paper"
    learn: str = "all"
    layer_decay: float = 1.0
    ema: float = 0.0
    evaluate: tuple[str, ...] = ()
    checkpoint_every: int = 500
    keep: int = 3
    workers: int = 2
    seed: int = 0
    recompute: bool = False
    compile: bool = False
    shard: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        if not self.data:
            raise ConfigError("there is no data: name at least one source of image-text pairs")
        if not self.out.strip():
            raise ConfigError("out is empty: name the folder of the run")
        if self.model is None and self.start_from is None:
            raise ConfigError("name a model to build (model), or weights to start from (start_from)")
        for name in ("samples", "global_batch_size", "micro_batch_size", "checkpoint_every", "keep"):
            self._check(name, 1, None, "a whole number above zero")
        for name in ("warmup", "workers"):
            self._check(name, 0, None, "a whole number, zero or above")
        self._check("seed", 0, 2**63 - 1, "a whole number from 0 to below 2^63")
        for name, high in (("learning_rate", 1), ("gradient_clip", 1e6), ("layer_decay", 1)):
            self._check(name, 1e-12, high, f"above 0 and at most {high:g}")
        for name in ("weight_decay", "ema"):
            self._check(name, 0, 1 - 1e-12, "from 0 to below 1")
        choices = {"loss": Loss, "optimizer": Optimizer, "precision": Precision, "augment": Augmentation}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        if self.optimizer == "muon" and self.shard:
            raise ConfigError("muon turns whole matrices, and shard splits them: use adamw, or leave shard out")
        from sightline.fine_tune import check_learn  # here, for it needs torch and --help reads this file

        check_learn(self.learn)

    def _check_types(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            if not any(_is(getattr(self, name), kind) for kind in kinds):
                raise ConfigError(f"{name} must be {_WORDS.get(kinds[0], 'text')}, not {getattr(self, name)!r}")

    def _check(self, name: str, low: float, high: float | None, what: str) -> None:
        value = getattr(self, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            raise ConfigError(f"{name} must be {what}, not {value!r}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainConfig":
        """Raises ConfigError for a key that is unknown or missing, and for a value that cannot be used."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(f"unknown key {unknown[0]!r} in the training configuration; known: {', '.join(known)}")
        if missing := [name for name in ("data", "out") if name not in data]:
            raise ConfigError(f"the training configuration has no {missing[0]!r}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> "TrainConfig":
        """Read a `.toml` or `.json` file."""
        return cls.from_dict(read_settings(path))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_settings(path: Path) -> dict[str, Any]:
    """The names and values in a `.toml` or `.json` file.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as a training configuration ({error})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: is no table of names and values")
    return settings


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", tuple[str, ...]: "a list of names"}


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of the type of a field. True is no number, and a whole number will do for any other."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if kind is float:
        return type(value) in (float, int)
    return type(value) is (str if get_origin(kind) is Literal else kind)
