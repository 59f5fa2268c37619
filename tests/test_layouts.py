"""Features equal those of the published implementations, through our loader, in both directions."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

import sightline
from peers import import_open_clip, import_openai_clip, import_transformers
from sightline.errors import CheckpointError, ConfigError
from sightline.layouts import config_from_open_clip, config_to_open_clip, config_to_transformers
from tiny import images, small_vocabulary, tiny_config, tiny_encoder, tiny_model, tokens

TOLERANCE = 1e-5


def equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=TOLERANCE)


def same_features(model, encode_image, encode_text) -> None:
    pixels, ids = images(4, model.visual.input_resolution), tokens()
    with torch.no_grad():
        equal(model.encode_image(pixels), encode_image(pixels))
        equal(model.encode_text(ids), encode_text(ids))


def transformers_model(activation: str):
    transformers = import_transformers()
    torch.manual_seed(1)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(**config_to_transformers(tiny_config(activation=activation)))
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def transformers_features(model):
    def pooled(result):
        return result if isinstance(result, torch.Tensor) else result.pooler_output

    return (
        lambda pixels: pooled(model.get_image_features(pixel_values=pixels)),
        lambda ids: pooled(model.get_text_features(input_ids=ids)),
    )


def open_clip_model(kind: str, activation: str):
    import_open_clip()
    from open_clip.model import CLIP

    torch.manual_seed(1)
    model = CLIP(**config_to_open_clip(tiny_config(kind, activation))["model_cfg"]).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name != "attn_mask":
                tensor.add_(torch.rand_like(tensor) * 0.05)
    return model


def original_model(kind: str):
    import_openai_clip()
    from clip.model import CLIP

    config = tiny_config(kind)
    torch.manual_seed(1)
    vision, text = config.vision, config.text
    patch = None if kind == "resnet" else vision.patch_size
    return CLIP(
        config.embed_dim, vision.image_size, vision.layers, vision.width, patch,
        text.context_length, text.vocab_size, text.width, text.heads, text.layers,
    ).eval()  # fmt: skip


# ── theirs, loaded by us ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_transformers_folder_gives_its_features(tmp_path: Path, activation: str) -> None:
    theirs = transformers_model(activation)
    theirs.save_pretrained(tmp_path / "hf")
    ours = sightline.load(tmp_path / "hf")
    assert ours.model.config == tiny_config(activation=activation)
    same_features(ours.model, *transformers_features(theirs))


@pytest.mark.parametrize(("kind", "activation"), [("vit", "quick_gelu"), ("vit", "gelu"), ("resnet", "quick_gelu")])
def test_an_open_clip_folder_gives_its_features(tmp_path: Path, kind: str, activation: str) -> None:
    from safetensors.torch import save_file

    theirs = open_clip_model(kind, activation)
    save_file({n: t.contiguous() for n, t in theirs.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config_to_open_clip(tiny_config(kind, activation))))
    same_features(sightline.load(tmp_path).model, theirs.encode_image, theirs.encode_text)


@pytest.mark.parametrize("half", [False, True])
def test_a_bare_state_dict_is_taken_for_gelu_and_says_so(tmp_path: Path, half: bool) -> None:
    theirs = open_clip_model("vit", "gelu")
    torch.save({n: t.half() if half else t for n, t in theirs.state_dict().items()}, tmp_path / "bare.pt")
    with pytest.warns(UserWarning, match="took GELU, as OpenCLIP does"):
        assert sightline.load(tmp_path / "bare.pt").model.config.activation == "gelu"


def test_the_pixels_and_vocabulary_that_transformers_saves_are_read(tmp_path: Path) -> None:
    transformers = import_transformers()
    clip = small_vocabulary()
    clip.export(tmp_path / "ours", to="transformers")
    theirs = transformers.CLIPTokenizerFast.from_pretrained(tmp_path / "ours")
    clip.export(tmp_path / "theirs", to="transformers")
    for name in ("merges.txt", "vocab.json", "preprocessor_config.json"):
        (tmp_path / "theirs" / name).unlink()
    theirs.save_pretrained(tmp_path / "theirs")  # a tokenizer.json, and since version 5 nothing beside it
    (tmp_path / "theirs" / "merges.txt").unlink(missing_ok=True)
    pixels = {"image_processor": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}}
    (tmp_path / "theirs" / "processor_config.json").write_text(json.dumps(pixels))
    again = sightline.load(tmp_path / "theirs")
    assert again.tokenizer.fingerprint == clip.tokenizer.fingerprint
    assert (again.preprocess.mean, again.preprocess.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("setting", [{"resize_mode": "squash"}, {"interpolation": "bilinear"}])
def test_pixels_that_sightline_would_make_otherwise_are_refused(setting: dict) -> None:
    data = config_to_open_clip(tiny_config())
    data["preprocess_cfg"].update(setting)
    with pytest.raises(ConfigError, match="asks for a resize that Sightline does not do"):
        config_from_open_clip(data)


def test_an_open_clip_training_checkpoint_without_a_configuration_is_read_and_says_what_it_assumed(tmp_path) -> None:
    theirs = open_clip_model("vit", "gelu")
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    optimizer = torch.optim.AdamW(theirs.parameters())
    checkpoint = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    with pytest.warns(UserWarning, match="took GELU, as OpenCLIP does"):
        ours = sightline.load(tmp_path / "epoch_3.pt")
    same_features(ours.model, theirs.encode_image, theirs.encode_text)
    same_features(sightline.load(tmp_path / "epoch_3.pt", config=tiny_config(activation="gelu")).model,
                  theirs.encode_image, theirs.encode_text)  # fmt: skip


def test_an_open_clip_model_with_a_text_tower_of_its_own_is_read(tmp_path: Path) -> None:
    import_open_clip()
    from open_clip.model import CustomTextCLIP

    torch.manual_seed(1)
    theirs = CustomTextCLIP(**config_to_open_clip(tiny_config())["model_cfg"]).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.bin")
    ours = sightline.load(tmp_path / "model.bin", config=tiny_config())
    same_features(ours.model, theirs.encode_image, theirs.encode_text)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("archive", ["torchscript", "state_dict"])
def test_an_original_checkpoint_in_half_precision_gives_its_features(tmp_path: Path, kind: str, archive: str) -> None:
    theirs = original_model(kind)
    pixels, ids = images(2, theirs.visual.input_resolution), tokens(2)
    theirs.half().float()  # values that half precision holds
    theirs.register_buffer("input_resolution", torch.tensor(theirs.visual.input_resolution))  # as published files have
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(theirs, (pixels, ids), check_trace=False)
        if archive == "torchscript":
            torch.jit.save(traced.half(), tmp_path / "theirs.pt")
            theirs.float()
        else:
            halves = {n: t.half() if t.is_floating_point() else t for n, t in theirs.state_dict().items()}
            torch.save(halves, tmp_path / "theirs.pt")
    ours = sightline.load(tmp_path / "theirs.pt")
    assert ours.model.config == tiny_config(kind)
    same_features(ours.model, theirs.encode_image, theirs.encode_text)


def test_a_file_of_torch_save_from_before_1_6_is_read(tmp_path: Path) -> None:
    model = tiny_model()
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    ours = sightline.load(tmp_path / "old.pt", config=model.config)
    same_features(ours.model, model.encode_image, model.encode_text)


# ── ours, loaded by them ─────────────────────────────────────────────────────────────────────────────────────────────


def test_transformers_loads_our_export(tmp_path: Path) -> None:
    transformers = import_transformers()
    ours = tiny_encoder()
    ours.export(tmp_path / "hf", to="transformers")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    same_features(ours.model, *transformers_features(theirs))
    assert theirs.logit_scale.item() == pytest.approx(ours.model.logit_scale.item())
    theirs_ids = transformers.CLIPTokenizerFast.from_pretrained(tmp_path / "hf")(["a photo of a cat"])["input_ids"][0]
    assert theirs_ids == ours.tokenizer(["a photo of a cat"])[0, : len(theirs_ids)].tolist()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_open_clip_loads_our_export(tmp_path: Path, kind: str) -> None:
    open_clip = import_open_clip()
    ours = tiny_encoder(kind)
    ours.export(tmp_path / "oc", to="open_clip")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'oc'}")
    theirs.eval()
    same_features(ours.model, theirs.encode_image, theirs.encode_text)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_original_loads_our_export(tmp_path: Path, kind: str) -> None:
    clip = import_openai_clip()
    ours = tiny_encoder(kind)
    for tensor in ours.model.state_dict().values():  # the original keeps weights in half precision
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
    ours.export(tmp_path / "ours.pt", to="original")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, _ = clip.load(str(tmp_path / "ours.pt"), device="cpu")
    same_features(ours.model, theirs.encode_image, theirs.encode_text)


@pytest.mark.parametrize("to", ["transformers", "open_clip", "original"])
def test_an_export_loads_again_with_the_same_configuration_and_features(tmp_path: Path, to: str) -> None:
    ours = tiny_encoder()
    ours.export(tmp_path / "out.pt", to=to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a bare state dict does not say its activation
        again = sightline.load(tmp_path / "out.pt", config=ours.model.config if to == "original" else None)
    assert again.model.config == ours.model.config
    same_features(again.model, ours.model.encode_image, ours.model.encode_text)


@pytest.mark.parametrize(
    ("kind", "activation", "to", "message"),
    [
        ("resnet", "quick_gelu", "transformers", "transformers has no CLIP ResNet"),
        ("vit", "gelu", "original", "the original clip cannot hold this model"),
        ("vit", "quick_gelu", "keras", "there is no layout 'keras'"),
    ],
)
def test_an_export_that_the_layout_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, kind: str, activation: str, to: str, message: str
) -> None:
    encoder = sightline.Encoder(tiny_model(kind, activation), sightline.Tokenizer.standard())
    with pytest.raises(sightline.SightlineError, match=message):
        encoder.export(tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_an_open_clip_configuration_of_another_kind_of_model_is_refused() -> None:
    data = config_to_open_clip(tiny_config())
    data["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base"
    with pytest.raises(sightline.SightlineError, match="'timm_model_name', which Sightline's models do not have"):
        config_from_open_clip(data)


def test_logits_and_probabilities_are_those_of_the_original() -> None:
    import_openai_clip()
    ours = tiny_model()
    theirs = original_model("vit")
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for a, b in zip(ours(images(3, 32), tokens()), theirs(images(3, 32), tokens()), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # logits are features times up to 100
    assert ours.logit_scale.exp().item() == pytest.approx(math.exp(ours.logit_scale.item()))


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with (
        pytest.warns(UserWarning, match="no configuration"),
        pytest.raises(CheckpointError, match="not the weights of a CLIP that Sightline knows"),
    ):
        sightline.load(tmp_path / "other.pt")
