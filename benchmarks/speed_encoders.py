"""Images and texts to features, against open_clip as a user runs it: float32, eager, the same weights. Rows of
`speed.py`. Weights are random and moved so that no branch is idle."""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sightline
from sightline.engine import Engine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from peers import import_open_clip
from side_by_side import Row, in_turn, least_cosine

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
BOUNDS = {"float32": 0.99999, "auto": 0.999, "int8": 0.995, "int8 calibrated": 0.995}


def row(work: str, precision: str, theirs: float, ours: float, goal: float, cosine: float, flops: float | None) -> Row:
    bound = BOUNDS[precision]
    return Row(work, precision, theirs, ours, goal, f"cosine {cosine:.6f} (≥ {bound})", cosine >= bound, flops)


def limits() -> dict[str, float]:
    """FLOP/s of this machine's best large product in each precision, the fastest of nine."""
    x, weight = torch.randn(4096, 4096), torch.randn(4096, 4096)
    levels = torch.randint(-100, 100, (4096, 4096), dtype=torch.int8)
    with torch.inference_mode():
        found = {"float32": _products(x, weight), "auto": _products(x.bfloat16(), weight.bfloat16())}
        seconds = {name: min(in_turn(runs, 9, of=min).values()) for name, runs in found.items()}
        seconds["int8"] = in_turn({"int8": lambda: torch._int_mm(levels, levels)}, 9, of=min)["int8"]
    return {name: 2 * 4096**3 / taken for name, taken in seconds.items()}


def _products(x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    from sightline.engine import operators

    runs: dict[str, Callable[[], object]] = {"public": lambda: torch.mm(x, weight)}
    if operators.packed_linear_works(x.dtype):
        packed, bias = operators.pack(weight), torch.zeros(len(weight), dtype=x.dtype)
        runs["packed"] = lambda: operators.packed_linear(x, packed, bias, "none", None)
    return runs


def pair(name: str, peers_name: str) -> tuple[sightline.CLIP, Any]:
    """Our model and open_clip's with the same random weights, which are moved so that no branch is idle."""
    torch.manual_seed(0)
    model = sightline.create_model(name).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("bn3.weight"):
                tensor.fill_(0.3)
    theirs = import_open_clip().create_model(peers_name, pretrained=None).eval()
    theirs.load_state_dict(model.state_dict())
    return model, theirs


def engines(model: sightline.CLIP, precisions: list[str]) -> dict[str, Engine]:
    """One engine for each precision, each as if it had been loaded from a file: nobody else has its model."""

    def again() -> sightline.CLIP:
        copy = sightline.CLIP(model.config)
        copy.load_state_dict(model.state_dict())
        return copy.eval()

    return {name: Engine(again(), name.split()[0], again) for name in precisions}  # type: ignore[arg-type]


def image_rows(name: str, peers_name: str, batch: int, goals: dict[str, float], rounds: int) -> list[Row]:
    """A batch of preprocessed images. Calibration sees other images than the clock does."""
    model, theirs = pair(name, peers_name)
    size = model.config.vision.image_size
    generator = torch.Generator().manual_seed(1)
    ours = engines(model, list(goals))
    if "int8 calibrated" in ours:
        ours["int8 calibrated"].calibrate([pictures(16, size, generator) for _ in range(4)])
    for engine in ours.values():
        engine.encode_image(pictures(16, size, generator))  # by which "auto" decides, once for all
    pixels = pictures(batch, size, generator)

    def encode_theirs() -> Tensor:
        with torch.inference_mode():
            return theirs.encode_image(pixels, normalize=True)

    runs = {"open_clip": encode_theirs, **{p: (lambda e=e: e.encode_image(pixels)) for p, e in ours.items()}}
    times, features = in_turn(runs, rounds), {run: encode().numpy() for run, encode in runs.items()}
    flops = batch * flops_of_an_image(model)
    return [
        row(
            *(f"{name} images, batch {batch}", p, times["open_clip"], times[p], goals[p]),
            *(least_cosine(features["open_clip"], features[p]), flops),
        )
        for p in ours
    ]


def flops_of_an_image(model: sightline.CLIP) -> float:
    """Of the convolutions and matrix products of the image tower as published: each block whole, for every token."""
    size = model.config.vision.image_size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops())


def pictures(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth random pictures with noise, normalised as photos are."""
    coarse = torch.randn(n, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return smooth + 0.2 * torch.randn(n, 3, size, size, generator=generator)


def text_rows(texts: list[str], work: str, goals: dict[str, float], rounds: int, sample: int) -> list[Row]:
    """Texts from string to feature. open_clip, whose time is the same for every 64 of them, encodes `sample`."""
    model, theirs = pair("ViT-B/32", "ViT-B-32-quickgelu")
    tokenize = import_open_clip().get_tokenizer("ViT-B-32-quickgelu")
    tokenizer = sightline.Tokenizer.standard()
    ours = engines(model, list(goals))
    every = max(1, len(texts) // sample)
    sampled = texts[::every]

    def encode_theirs() -> np.ndarray:
        with torch.inference_mode():
            parts = [
                theirs.encode_text(tokenize(sampled[i : i + 64]), normalize=True) for i in range(0, len(sampled), 64)
            ]
        return torch.cat(parts).numpy()

    runs = {
        "open_clip": encode_theirs,
        **{p: (lambda e=e: e.encode_text(tokenizer.batch(texts), 64)) for p, e in ours.items()},
    }
    times, features = in_turn(runs, rounds), {run: encode() for run, encode in runs.items()}
    whole = times["open_clip"] * len(texts) / len(sampled)
    reference = features["open_clip"]
    return [row(work, p, whole, times[p], goals[p], least_cosine(reference, features[p][::every]), None) for p in ours]


def prompt_rows() -> list[Row]:
    labels = sightline.class_names("imagenet")
    texts = [f"a photo of a {label}." for label in labels]
    return text_rows(texts, "text, 1,000 label prompts", {"float32": 9, "auto": 17, "int8": 22}, 3, sample=64)


def classifier_rows() -> list[Row]:
    """A classifier of 80 templates and 1,000 classes: 80,000 texts, in the groups that `ZeroShotClassifier` makes.

    Weights are random, so what it says of photos is asked of the starter, whose weights are trained.
    """
    model, theirs = pair("ViT-B/32", "ViT-B-32-quickgelu")
    tokenize = import_open_clip().get_tokenizer("ViT-B-32-quickgelu")
    labels, templates = sightline.class_names("imagenet"), sightline.template_set("imagenet")
    with tempfile.TemporaryDirectory() as folder:
        sightline.Encoder(model, sightline.Tokenizer.standard()).save(Path(folder) / "model")
        clip = sightline.load(Path(folder) / "model", precision="auto", device="cpu")
        clip.encode_texts(["a first text"])
        start = time.perf_counter()
        classifier = sightline.ZeroShotClassifier(clip, labels, templates)
        ours = time.perf_counter() - start
    from sightline.templates import fill

    start = time.perf_counter()
    with torch.inference_mode():
        means = [
            theirs.encode_text(tokenize(fill(templates, label)), normalize=True).mean(dim=0) for label in labels[:2]
        ]
    whole = (time.perf_counter() - start) / 2 * len(labels)
    expected = torch.nn.functional.normalize(torch.stack(means), dim=-1).numpy()
    weights = classifier.coef_[:2] / np.linalg.norm(classifier.coef_[:2], axis=1, keepdims=True)
    cosine = least_cosine(expected, weights)
    measured = row("classifier, 80 × 1,000 prompts", "auto", whole, ours, 15, cosine, None)
    same, photos = starter_top1()
    accuracy = f"{measured.accuracy}; the starter's top-1 unchanged on {same} of {photos} photos"
    return [replace(measured, accuracy=accuracy, holds=measured.holds and same == photos)]


def starter_top1() -> tuple[int, int]:
    """Of how many of the example photos the starter names the same of 1,000 classes in "auto" as in float32."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    named = []
    for precision in ("auto", "float32"):
        clip = sightline.load("starter", precision=precision, device="cpu")  # type: ignore[arg-type]
        classifier = sightline.ZeroShotClassifier(
            clip, sightline.class_names("imagenet"), sightline.template_set("imagenet")
        )
        named.append(classifier.logits(photos).argmax(axis=1))
    return int((named[0] == named[1]).sum()), len(photos)


PARTS: dict[str, Callable[[], list[Row]]] = {
    "images": lambda: image_rows(
        *("ViT-B/32", "ViT-B-32-quickgelu", 32),
        {"float32": 1.15, "auto": 2.4, "int8": 4.5, "int8 calibrated": 4.5},
        rounds=7,
    ),
    "image": lambda: image_rows(
        *("ViT-B/32", "ViT-B-32-quickgelu", 1),
        {"float32": 1.65, "auto": 3, "int8": 4.5, "int8 calibrated": 4.5},
        rounds=31,
    ),
    "rn50": lambda: image_rows("RN50", "RN50-quickgelu", 16, {"float32": 1, "auto": 3.3}, rounds=5),
    "prompts": prompt_rows,
    "classifier": classifier_rows,
}
