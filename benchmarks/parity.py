"""Features at full size against the published implementations, with the same random weights, in both directions.

    python benchmarks/parity.py            # all, about five minutes and 6 GB
    python benchmarks/parity.py ViT-B/32   # one architecture

Each row is a checkpoint that one side wrote and the other read; the figure is the largest difference between their
features, float32. Exits non-zero where it is over 1e-5. Needs the test dependencies (`--group test`) and no network.
"""

import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sightline
from sightline.layouts import config_to_open_clip, config_to_transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from peers import import_open_clip, import_openai_clip, import_transformers

TOLERANCE = 1e-5
Encode = Callable[[Tensor], Tensor]
worst = 0.0


@torch.no_grad()
def stir(module: torch.nn.Module) -> torch.nn.Module:
    """Move what starts at rest: a fresh model has biases of zero, and residual branches that do nothing."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor) * 0.1)
            if name.endswith("bn3.weight"):
                tensor.add_(0.3)
    return module.eval()


def compare(name: str, direction: str, model: sightline.CLIP, encode_image: Encode, encode_text: Encode) -> None:
    global worst
    generator = torch.Generator().manual_seed(0)
    size = model.visual.input_resolution
    pixels = torch.randn(2, 3, size, size, generator=generator)
    ids = sightline.tokenize(["a photo of a cat", "two dogs on a beach at sunset, one with a red ball"])
    with torch.inference_mode():
        image = (model.encode_image(pixels) - encode_image(pixels)).abs().max().item()
        text = (model.encode_text(ids) - encode_text(ids)).abs().max().item()
    worst = max(worst, image, text)
    print(f"{name:10}  {direction:38}  image {image:.1e}  text {text:.1e}", flush=True)


def with_transformers(name: str, folder: Path) -> None:
    transformers = import_transformers()
    config = sightline.model_config(name)
    theirs = stir(transformers.CLIPModel(transformers.CLIPConfig(**config_to_transformers(config))))
    theirs.save_pretrained(folder / "theirs")
    ours = sightline.load(folder / "theirs", device="cpu")
    compare(name, "transformers wrote, Sightline read", ours.model, *features_of(theirs))
    ours.export(folder / "ours", to="transformers")
    theirs = transformers.CLIPModel.from_pretrained(folder / "ours").eval()
    compare(name, "Sightline wrote, transformers read", ours.model, *features_of(theirs))


def features_of(model: Any) -> tuple[Encode, Encode]:
    def pooled(features: Any) -> Tensor:
        return features if isinstance(features, Tensor) else features.pooler_output

    return (
        lambda pixels: pooled(model.get_image_features(pixel_values=pixels)),
        lambda ids: pooled(model.get_text_features(input_ids=ids)),
    )


def with_open_clip(name: str, folder: Path) -> None:
    open_clip = import_open_clip()
    from safetensors.torch import save_file

    settings = config_to_open_clip(sightline.model_config(name))
    theirs = stir(open_clip.model.CLIP(**settings["model_cfg"]))
    (folder / "theirs").mkdir()
    (folder / "theirs" / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(dict(theirs.state_dict()), folder / "theirs" / "open_clip_model.safetensors")
    ours = sightline.load(folder / "theirs", device="cpu")
    compare(name, "open_clip wrote, Sightline read", ours.model, theirs.encode_image, theirs.encode_text)
    ours.export(folder / "ours", to="open_clip")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'ours'}")
    theirs.eval()
    compare(name, "Sightline wrote, open_clip read", ours.model, theirs.encode_image, theirs.encode_text)


def with_original(name: str, folder: Path) -> None:
    clip = import_openai_clip()
    ours = sightline.Encoder(stir(sightline.create_model(name)), sightline.Tokenizer.standard())
    for tensor in ours.model.state_dict().values():  # the original keeps weights in half precision
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
    ours.export(folder / "ours.pt", to="original")
    theirs, _ = clip.load(str(folder / "ours.pt"), device="cpu")
    compare(name, "Sightline wrote, the original read", ours.model, theirs.encode_image, theirs.encode_text)
    again = sightline.load(folder / "ours.pt", device="cpu")
    compare(name, "the same file, Sightline read", again.model, theirs.encode_image, theirs.encode_text)


def main() -> None:
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:]
    runs = [
        ("ViT-B/32", with_transformers),
        ("ViT-L/14", with_transformers),
        ("ViT-B/32", with_open_clip),
        ("RN50", with_open_clip),
        ("ViT-B/32", with_original),
        ("RN50", with_original),
    ]
    if unknown := set(wanted) - {name for name, _ in runs}:
        sys.exit(f"no run for {', '.join(sorted(unknown))}: there are {', '.join(sorted({name for name, _ in runs}))}")
    for name, run in runs:
        if wanted and name not in wanted:
            continue
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            run(name, Path(folder))
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
