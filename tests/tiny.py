"""Tiny real models for the tests: every part of the architectures, in a few thousand weights."""

from dataclasses import replace

import torch

from sightline.config import Activation, ModelConfig, ModifiedResNetConfig, TextConfig, VisionTransformerConfig
from sightline.encoder import Encoder
from sightline.models.clip import CLIP, create_model
from sightline.tokenizer import Tokenizer

TEXT = TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=1, mlp_width=256)
VIT = VisionTransformerConfig(image_size=32, patch_size=8, width=128, layers=2, heads=2, mlp_width=512)
RESNET = ModifiedResNetConfig(image_size=64, layers=(1, 2, 1, 1), width=16, heads=8)


def tiny_config(kind: str = "vit", activation: Activation = "quick_gelu") -> ModelConfig:
    return ModelConfig(embed_dim=48, vision=VIT if kind == "vit" else RESNET, text=TEXT, activation=activation)


def tiny_model(kind: str = "vit", activation: Activation = "quick_gelu", seed: int = 0) -> CLIP:
    """Random weights that are not at rest: gains, biases and running statistics are drawn too."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = create_model(tiny_config(kind, activation))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def tiny_encoder(kind: str = "vit", seed: int = 0) -> Encoder:
    return Encoder(tiny_model(kind, seed=seed), Tokenizer.standard())


def small_vocabulary(model_seed: int = 0) -> Encoder:
    """A model whose vocabulary is a prefix of the published one, as the starter's is."""
    torch.manual_seed(model_seed)
    config = replace(tiny_config(), text=replace(TEXT, vocab_size=1000, context_length=32))
    return Encoder(create_model(config).eval(), Tokenizer.standard(32, 1000))


def images(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(n: int = 4) -> torch.Tensor:
    texts = ["a photo of a cat", "two dogs that run on a beach at sunset, one with a red ball", "x", "rocket!"]
    return Tokenizer.standard()([texts[i % len(texts)] for i in range(n)])
