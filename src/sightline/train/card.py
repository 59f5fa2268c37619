"""The model card of a trained model: what it is, what it was trained on and how, what was measured, its limits."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from sightline.config import ModelConfig, VisionTransformerConfig, available_models
from sightline.data.batch import Report
from sightline.images import printable_name
from sightline.train.config import TrainConfig
from sightline.train.curves import UNREADABLE

_FRONT = """---
library_name: sightline
pipeline_tag: zero-shot-image-classification
tags:
- clip
- vision
- image-text
- zero-shot
---
"""
_USE = """```python
import sightline

clip = sightline.load("path/to/this/folder")
classifier = sightline.ZeroShotClassifier(clip, ["cat", "dog", "rocket"])
classifier.predict_proba(["photo.jpg"])
```

```sh
sightline classify photos/ --labels "cat, dog, rocket" --model path/to/this/folder
```
"""
_LISTED = 20


def model_card(
    config: TrainConfig, model: ModelConfig, data: Report, measured: Mapping[str, float] | None = None
) -> str:
    """A card in Markdown, with the front matter that model hubs read. No path of this machine is in it.

    Args:
        config: of the run, with what was left to the data filled in.
        model: the architecture.
        data: what was wrong with the data.
        measured: accuracies by set, as `zero_shot_accuracy` names them: {"cifar10/test top-1": 0.77}.
    """
    begun = f"trained further from {_base(config.start_from)}" if config.start_from else "trained from nothing"
    sections = {
        "What it is": f"A CLIP model (Radford et al. 2021), {begun} with Sightline.\n\n" + _rows(_architecture(model)),
        "What it was trained on": "\n".join(_data(config, data)),
        "How it was trained": _rows(_settings(config)),
        "What was measured": _measured(config, measured or {}),
        "Use": _USE,
        "Limits": "\n".join(_limits(config, model, measured or {})),
    }
    title = f"# {_plain(PurePosixPath(os.path.abspath(config.out)).name)}\n"
    return "\n".join([_FRONT, title, *(f"## {name}\n\n{text.strip()}\n" for name, text in sections.items())])


def _architecture(model: ModelConfig) -> Iterator[tuple[str, str]]:
    vision, text = model.vision, model.text
    image_parameters, text_parameters = _parameters(model)
    if isinstance(vision, VisionTransformerConfig):
        patches = f"patches of {vision.patch_size} × {vision.patch_size} pixels"
        what = f"Vision Transformer, {patches}, {vision.layers} layers, width {vision.width}"
    else:
        what = f"modified ResNet, {vision.layers} blocks, width {vision.width}"
    yield "image tower", f"{what}; {image_parameters / 1e6:,.1f} million parameters"
    yield "images", f"{vision.image_size} × {vision.image_size} pixels"
    yield (
        "text tower",
        (f"Transformer, {text.layers} layers, width {text.width}; {text_parameters / 1e6:,.1f} million parameters"),
    )
    yield "texts", f"{text.context_length} tokens, of a vocabulary of {text.vocab_size:,}"
    yield "shared space", f"{model.embed_dim} dimensions"


def _parameters(model: ModelConfig) -> tuple[int, int]:
    """How many numbers the image tower learns, and how many the rest."""
    from sightline.models.clip import empty_model

    sizes = [(name.startswith("visual."), p.numel()) for name, p in empty_model(model).named_parameters()]
    return sum(n for image, n in sizes if image), sum(n for image, n in sizes if not image)


def _data(config: TrainConfig, data: Report) -> Iterator[str]:
    names = list(dict.fromkeys(_base(part) for source in config.data for part in source.split("::")))
    yield from (f"- {name}" for name in names[:_LISTED])
    if len(names) > _LISTED:
        yield f"- and {len(names) - _LISTED:,} more"
    yield ""
    steps = -(-(config.samples or 0) // (config.global_batch_size or 1))
    yield f"{steps * (config.global_batch_size or 0):,} image-text pairs were seen, repetitions counted."
    if data.failed:
        yield f"{data.failed:,} times a pair could not be read, and another took its place."
    if data.cut:
        yield f"{data.cut:,} captions were longer than the context, and were cut."
    yield f"Data with class names had them put into templates (`{_plain(config.templates)}`)."


def _settings(config: TrainConfig) -> Iterator[tuple[str, str]]:
    batch = f"{config.global_batch_size or 0:,} pairs contrasted with one another"
    yield "loss", f"{config.loss}, {batch}"
    yield "steps", f"{-(-(config.samples or 0) // (config.global_batch_size or 1)):,}"
    yield "learning rate", f"{config.learning_rate or 0:g} after {config.warmup:,} steps at most, then a cosine to zero"
    moved = "AdamW" if config.optimizer == "adamw" else "Muon for the matrices of the blocks, AdamW for the rest"
    yield "optimiser", f"{moved}, weight decay {config.weight_decay:g}, gradient clipped at {config.gradient_clip:g}"
    yield "precision", config.precision
    yield "augmentation", config.augment
    yield "what learned", config.learn + (f", layer decay {config.layer_decay:g}" if config.layer_decay != 1 else "")
    if config.ema:
        yield "weights", f"running average, {config.ema:g} of the old kept in each step"
    yield "seed", str(config.seed)


def _measured(config: TrainConfig, measured: Mapping[str, float]) -> str:
    if not measured:
        return "Nothing was measured during training: no claim of accuracy is made."
    how = f"Zero-shot accuracy at the end of training, with the templates `{_plain(config.templates)}`:"
    rows = [(n, f"{v:,.0f} images" if n.endswith(UNREADABLE) else f"{v:.1%}") for n, v in measured.items()]
    return f"{how}\n\n{_rows(rows)}"


def _limits(config: TrainConfig, model: ModelConfig, measured: Mapping[str, float]) -> Iterator[str]:
    if measured:
        yield (
            "- Whether the sets above are independent of the training data was not checked. On classes that the "
            "training data name, these figures are supervised accuracy through a text interface, and not zero-shot "
            "transfer."
        )
    yield "- It knows what its training data showed and named; a label beyond that gets an arbitrary place."
    if config.start_from:
        yield "- What the model it was started from could do may have become worse: measure it before relying on it."
    yield f"- It sees {model.vision.image_size} × {model.vision.image_size} pixels: what is small in a photo is lost."
    yield f"- Texts of more than {model.text.context_length - 2} tokens do not fit."
    yield "- Its probabilities are not calibrated, and it has no notion of “none of these”."
    yield "- It has the biases of its data. These were not measured, and it should not be used to judge people."
    yield "- This card was written by the training program: the data's licences and their content are for you to add."


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows)])


def _base(source: str) -> str:
    """The last part of a path or an address; a published name stays whole."""
    if source.startswith(("hf://", "hf-hub:")) or source in available_models():
        return _plain(source)
    return _plain(PurePosixPath(source).name or source)


def _plain(text: str) -> str:
    """Text that is one line of Markdown and no markup: a name may be anything."""
    return "".join(f"\\{c}" if c in "|<>`*[]\\" else c for c in printable_name(text))
