"""The published layouts of CLIP weights: how each names its tensors and writes its configuration, to ours and back.

Ours is OpenAI's. OpenCLIP's is the same but for wrappers around it; Hugging Face's splits the attention's projection
and transposes two matrices.
"""

import re
from typing import Any, Literal

import torch

from sightline.archive import State
from sightline.config import (
    MEAN,
    STD,
    Activation,
    ModelConfig,
    ModifiedResNetConfig,
    TextConfig,
    Towers,
    VisionTransformerConfig,
)
from sightline.errors import CheckpointError, ConfigError

Layout = Literal["original", "open_clip", "transformers"]

_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "embeddings.position_ids"}
# Hugging Face's names and ours, for whole tensors; those of the blocks are in _BLOCK.
_WHOLE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_STACKS = {
    "text_model.encoder.layers": "transformer.resblocks",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
}


# ── names of tensors ─────────────────────────────────────────────────────────────────────────────────────────────────


def to_ours(state: State, towers: Towers = "both") -> State:
    """A state dict of any published layout with our names. Unknown tensors stay, so that loading reports them.

    With `towers`, the other one may be left out where putting it together would take memory.
    """
    state = {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    state = {n: t for n, t in state.items() if n not in _NOT_WEIGHTS and not n.endswith("embeddings.position_ids")}
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        if towers != "both":
            image = ("vision_model.", "visual_projection.", "logit_scale")
            text = ("text_model.", "text_projection.", "logit_scale")
            state = {n: t for n, t in state.items() if n.startswith(image if towers == "image" else text)}
        return _from_transformers(state)
    # OpenCLIP's CustomTextCLIP keeps the text tower under "text.".
    return {n.removeprefix("text."): t for n, t in state.items() if n != "text.attn_mask"}


def _from_transformers(state: State) -> State:
    ours: State = {}
    for name, tensor in state.items():
        stack = next((s for s in _STACKS if name.startswith(s + ".")), None)
        if name in _TRANSPOSED:
            ours[_TRANSPOSED[name]] = tensor.T
        elif stack is None:
            ours[_WHOLE.get(name, name)] = tensor
        else:
            index, part, kind = _block_parts(name.removeprefix(stack + "."))
            target = f"{_STACKS[stack]}.{index}."
            if part == "self_attn.q_proj":
                parts = [state.get(f"{stack}.{index}.self_attn.{x}_proj.{kind}") for x in "qkv"]
                if any(p is None for p in parts):
                    raise CheckpointError(f"the checkpoint has {name} without its k_proj and v_proj")
                if {p.shape[:1] for p in parts} != {parts[0].shape[:1]} or not parts[0].ndim:  # type: ignore[union-attr]
                    raise CheckpointError(f"{name}, its k_proj and its v_proj differ in shape")
                ours[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                ours[f"{target}{_BLOCK.get(part, part)}.{kind}"] = tensor
    return ours


def _block_parts(name: str) -> tuple[str, str, str]:
    index, _, rest = name.partition(".")
    part, _, kind = rest.rpartition(".")
    return index, part, kind


def to_transformers(state: State) -> State:
    """Our state dict with Hugging Face's names and separate q, k and v.

    Raises:
        CheckpointError: for a ResNet, which `transformers.CLIPModel` has no class for.
    """
    if "visual.attnpool.c_proj.weight" in state:
        raise CheckpointError("transformers has no CLIP ResNet: export it to open_clip or original instead")
    whole = {ours: theirs for theirs, ours in _WHOLE.items()}
    transposed = {ours: theirs for theirs, ours in _TRANSPOSED.items()}
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    out: State = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"((?:visual\.)?transformer\.resblocks)\.(\d+)\.(.+)", name)
        if match is None:
            theirs = transposed.get(name) or whole[name]
            out[theirs] = tensor.T.contiguous() if name in transposed else tensor
            continue
        stack = next(theirs for theirs, ours in _STACKS.items() if ours == match[1])
        if match[3].startswith("attn.in_proj_"):
            kind = match[3].removeprefix("attn.in_proj_")
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{stack}.{match[2]}.self_attn.{x}_proj.{kind}"] = part.clone()
        else:
            part_name, _, kind = match[3].rpartition(".")
            out[f"{stack}.{match[2]}.{block[part_name]}.{kind}"] = tensor
    return out


# ── configurations ───────────────────────────────────────────────────────────────────────────────────────────────────


def infer_config(state: State, activation: Activation) -> ModelConfig:
    """The configuration of a model from the shapes of its tensors (our names), heads of 64 channels each.

    Raises:
        CheckpointError: if the tensors are not those of a CLIP with both its towers.
    """
    try:
        width, embed_dim = state["text_projection"].shape
        text = TextConfig(
            context_length=len(state["positional_embedding"]),
            vocab_size=len(state["token_embedding.weight"]),
            width=width,
            layers=_count(state, r"transformer\.resblocks\.(\d+)\."),
            heads=max(1, width // 64),
            mlp_width=len(state["transformer.resblocks.0.mlp.c_fc.bias"]),
        )
        is_vit = "visual.proj" in state
        vision = _infer_vision_transformer(state) if is_vit else _infer_modified_resnet(state)
        return ModelConfig(embed_dim=embed_dim, vision=vision, text=text, activation=activation)
    except KeyError as error:
        raise CheckpointError(f"these are not the weights of a CLIP that Sightline knows: no tensor {error}") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"these are not the weights of a CLIP that Sightline knows: {error}") from None


def _infer_vision_transformer(state: State) -> VisionTransformerConfig:
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    return VisionTransformerConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        layers=_count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
        heads=max(1, width // 64),
        mlp_width=len(state["visual.transformer.resblocks.0.mlp.c_fc.bias"]),
    )


def _infer_modified_resnet(state: State) -> ModifiedResNetConfig:
    places, channels = state["visual.attnpool.positional_embedding"].shape
    return ModifiedResNetConfig(
        image_size=round((places - 1) ** 0.5) * 32,
        layers=tuple(_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)),  # type: ignore[arg-type]
        width=channels // 32,
        heads=max(1, channels // 64),
    )


def _count(state: State, pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def config_from_transformers(data: dict[str, Any], processor: dict[str, Any]) -> ModelConfig:
    """Hugging Face's `config.json` and `preprocessor_config.json`. Keys left out have that library's defaults."""
    if data.get("model_type") != "clip":
        raise ConfigError(f"config.json describes a {data.get('model_type')!r} model, not a CLIP")
    vision, text = data.get("vision_config") or {}, data.get("text_config") or {}
    activation = vision.get("hidden_act", "quick_gelu")
    if text.get("hidden_act", "quick_gelu") != activation:
        raise ConfigError("config.json has different activations for its two towers, which Sightline does not build")
    for tower in (vision, text):
        if abs(tower.get("layer_norm_eps", 1e-5) - 1e-5) > 1e-9:
            raise ConfigError(f"config.json has layer_norm_eps {tower['layer_norm_eps']}; Sightline builds 1e-05")
    _check_processor(processor)
    return ModelConfig(
        embed_dim=data.get("projection_dim", 512),
        vision=VisionTransformerConfig(
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            width=vision.get("hidden_size", 768),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 12),
            mlp_width=vision.get("intermediate_size", 3072),
        ),
        text=TextConfig(
            context_length=text.get("max_position_embeddings", 77),
            vocab_size=text.get("vocab_size", 49408),
            width=text.get("hidden_size", 512),
            layers=text.get("num_hidden_layers", 12),
            heads=text.get("num_attention_heads", 8),
            mlp_width=text.get("intermediate_size", 2048),
        ),
        activation=activation,
        mean=tuple(processor.get("image_mean", MEAN)),
        std=tuple(processor.get("image_std", STD)),
    )


def _check_processor(processor: dict[str, Any]) -> None:
    """Refuse settings that would give other pixels than ours."""
    same = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    for key, value in same.items():
        if processor.get(key, value) != value:
            raise ConfigError(f"the image processor has {key} = {processor[key]}; Sightline does {key} = {value}")


def config_to_transformers(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `transformers.CLIPModel.from_pretrained` reads."""
    vision, text = config.vision, config.text
    if isinstance(vision, ModifiedResNetConfig):
        raise CheckpointError("transformers has no CLIP ResNet: export it to open_clip or original instead")
    shared = {"projection_dim": config.embed_dim, "hidden_act": config.activation, "layer_norm_eps": 1e-5}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp_width,
        },
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp_width,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
        },
    }


_OPEN_CLIP_KEYS = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


def config_from_open_clip(data: dict[str, Any]) -> ModelConfig:
    """OpenCLIP's `open_clip_config.json`, or its `model_cfg` alone.

    Raises:
        ConfigError: for a model that is not a CLIP of these two towers (SigLIP, CoCa, timm or EVA towers, …).
    """
    model = data.get("model_cfg", data)
    pixels = data.get("preprocess_cfg") or {}
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    for where, part in (("", model), ("vision_cfg", vision), ("text_cfg", text)):
        # What is there but switched off asks for nothing.
        if unknown := sorted(key for key in part if key not in _OPEN_CLIP_KEYS[where] and part[key]):
            raise ConfigError(f"the OpenCLIP configuration has {unknown[0]!r}, which Sightline's models do not have")
    if (pixels.get("interpolation") or "bicubic") != "bicubic" or (
        pixels.get("resize_mode") or "shortest"
    ) != "shortest":
        raise ConfigError(f"the OpenCLIP configuration asks for a resize that Sightline does not do: {pixels}")
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    head_width = vision.get("head_width", 64)
    tower: VisionTransformerConfig | ModifiedResNetConfig
    if isinstance(layers, list):
        tower = ModifiedResNetConfig(vision.get("image_size", 224), tuple(layers), width, width * 32 // head_width)
    else:
        mlp_width = int(width * vision.get("mlp_ratio", 4.0))
        tower = VisionTransformerConfig(
            vision.get("image_size", 224), vision.get("patch_size", 16), width, layers, width // head_width, mlp_width
        )
    text_width = text.get("width", 512)
    return ModelConfig(
        embed_dim=model["embed_dim"],
        vision=tower,
        text=TextConfig(
            context_length=text.get("context_length", 77),
            vocab_size=text.get("vocab_size", 49408),
            width=text_width,
            layers=text.get("layers", 12),
            heads=text.get("heads", 8),
            mlp_width=int(text_width * text.get("mlp_ratio", 4.0)),
        ),
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        mean=tuple(pixels.get("mean", MEAN)),
        std=tuple(pixels.get("std", STD)),
    )


def config_to_open_clip(config: ModelConfig) -> dict[str, Any]:
    """The `open_clip_config.json` that `open_clip.create_model_and_transforms("local-dir:…")` reads."""
    vision, text = config.vision, config.text
    if isinstance(vision, ModifiedResNetConfig):
        tower = {"layers": list(vision.layers), "head_width": vision.width * 32 // vision.heads, "patch_size": None}
    else:
        head_width, mlp_ratio = vision.width // vision.heads, vision.mlp_width / vision.width
        tower = {
            "layers": vision.layers,
            "head_width": head_width,
            "mlp_ratio": mlp_ratio,
            "patch_size": vision.patch_size,
        }
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == "quick_gelu",
            "vision_cfg": {"image_size": vision.image_size, "width": vision.width, **tower},
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
                "mlp_ratio": text.mlp_width / text.width,
            },
        },
        "preprocess_cfg": {"mean": list(config.mean), "std": list(config.std), "interpolation": "bicubic"},
    }
