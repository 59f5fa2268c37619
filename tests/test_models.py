"""The architectures have the published sizes, and a configuration describes exactly one model."""

import math
from dataclasses import replace

import pytest
import torch

import sightline
from sightline.config import ModelConfig, ModifiedResNetConfig, TextConfig, VisionTransformerConfig
from sightline.errors import ConfigError, InvalidArgumentError, TowerNotLoadedError
from sightline.models.clip import CLIP
from tiny import TEXT, images, small_vocabulary, tiny_config, tiny_model, tokens

PUBLISHED = {
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


def test_the_nine_published_architectures_are_known_by_name() -> None:
    assert sightline.available_models() == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_has_exactly_its_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = CLIP(sightline.model_config(name))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_features_have_the_shape_of_the_space_and_are_unit_length_on_request(kind: str) -> None:
    model = tiny_model(kind)
    pixels = images(3, model.visual.input_resolution)
    assert model.encode_image(pixels).shape == (3, 48)
    assert model.encode_text(tokens(5)).shape == (5, 48)
    for features in (model.encode_image(pixels, normalize=True), model.encode_text(tokens(5), normalize=True)):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_calling_the_model_gives_scaled_cosines_both_ways() -> None:
    model = tiny_model()
    with torch.no_grad():
        per_image, per_text = model(images(3, 32), tokens(5))
        a, b = model.encode_image(images(3, 32)), model.encode_text(tokens(5))
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(per_image, model.logit_scale.exp() * cosine)
    torch.testing.assert_close(per_text, per_image.T)


def test_padding_after_the_end_token_has_no_part_in_the_result() -> None:
    model, ids = tiny_model(), tokens(1)
    short = ids[:, : int(ids.argmax()) + 1]
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(short), model.encode_text(ids), rtol=0, atol=1e-6)


def test_token_ids_may_be_int32_as_the_originals_tokenize_gives_them() -> None:
    model = tiny_model()
    assert torch.equal(model.encode_text(tokens(2).int()), model.encode_text(tokens(2)))


def test_a_new_model_starts_as_the_paper_says() -> None:
    model = sightline.create_model(tiny_config("resnet"))
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.dtype == torch.float32
    assert (model.visual.input_resolution, model.context_length, model.vocab_size) == (64, 77, 49408)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not block.bn3.weight.any() for stage in (model.visual.layer1, model.visual.layer4) for block in stage)


def test_a_tower_that_was_not_built_says_so() -> None:
    with pytest.raises(TowerNotLoadedError, match="towers='text': it cannot encode images"):
        sightline.create_model(tiny_config(), towers="text").encode_image(images(1, 32))
    with pytest.raises(TowerNotLoadedError, match="towers='image': it cannot encode texts"):
        sightline.create_model(tiny_config(), towers="image").encode_text(tokens(1))


def test_ids_of_another_vocabulary_are_told_from_a_bug() -> None:
    with pytest.raises(InvalidArgumentError, match=r"not of this model's vocabulary of 1000: .*clip\.tokenizer"):
        small_vocabulary().model.encode_text(sightline.tokenize(["a rhinoceros"]))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_configuration_survives_json(kind: str) -> None:
    assert ModelConfig.from_dict(tiny_config(kind).to_dict()) == tiny_config(kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown configuration key 'colour'"),
        ({"vision": {**tiny_config().to_dict()["vision"], "depth": 3}}, r"unknown configuration key vision.'depth'"),
        ({"vision": None}, "the configuration of 'vision' is missing"),
        ({"text": []}, "the configuration of 'text' is missing"),
        ({"embed_dim": 0}, "embed_dim must be a whole number above zero and at most 16777216, not 0"),
        ({"embed_dim": "512"}, "embed_dim must be a whole number above zero and at most 16777216, not '512'"),
        ({"activation": "relu"}, "activation 'relu' is neither"),
        ({"std": [1.0, 0.0, 1.0]}, "mean and std need three numbers"),
        ({"mean": ["a", "b", "c"]}, "mean and std need three numbers"),
        ({"mean": [10**400, 0, 0]}, "mean and std need three numbers"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({**tiny_config().to_dict(), **change})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionTransformerConfig(30, 8, 64, 1, 1, 64), "image_size 30 is not a multiple of patch_size 8"),
        (lambda: VisionTransformerConfig(32, 8, 64, 1, 5, 64), "width 64 is not divisible by 5 heads"),
        (lambda: ModifiedResNetConfig(60, (1, 1, 1, 1), 16, 8), "image_size 60 is not a multiple of 32"),
        (lambda: ModifiedResNetConfig(64, (1, 1, 1), 16, 8), "layers of a ResNet are four numbers"),
        (
            lambda: TextConfig(77, 49408, 64, -1, 1, 64),
            "layers must be a whole number above zero and at most 512, not -1",
        ),
        (lambda: replace(TEXT, layers=100_000), "layers must be a whole number above zero and at most 512"),
        (lambda: replace(TEXT, vocab_size=2**40), "vocab_size must be a whole number above zero"),
        (lambda: sightline.model_config("ViT-B-99"), "no architecture is named 'ViT-B-99'; known: RN50, RN101"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
