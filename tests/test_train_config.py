"""What a training run is told: from flags, from a file, and what is refused."""

import json
from pathlib import Path

import pytest

from sightline.errors import ConfigError
from sightline.train.config import TrainConfig

WHOLE = {"data": ["pairs.csv"], "out": "run", "model": "ViT-B/32"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "there is no data"),
        ({"data": "pairs.csv"}, "data must be a list of names, not 'pairs.csv'"),
        ({"data": [3]}, "data must be a list of names"),
        ({"out": " "}, "out is empty"),
        ({"colour": 1}, "unknown key 'colour' in the training configuration"),
        ({"model": None}, "name a model to build"),
        ({"samples": 0}, "samples must be a whole number above zero, not 0"),
        ({"samples": 1.5}, "samples must be a whole number, not 1.5"),
        ({"samples": True}, "samples must be a whole number, not True"),
        ({"seed": 10**20}, r"seed must be a whole number from 0 to below 2\^63, not 100000000000000000000"),
        ({"workers": None}, "workers must be a whole number, not None"),
        ({"learning_rate": 7}, "learning_rate must be above 0 and at most 1, not 7"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        ({"ema": 1.0}, "ema must be from 0 to below 1"),
        ({"weight_decay": float("nan")}, "weight_decay must be from 0 to below 1, not nan"),
        ({"loss": "hinge"}, "loss is one of softmax, sigmoid, not 'hinge'"),
        ({"optimizer": "sgd"}, "optimizer is one of adamw, muon, not .sgd."),
        ({"augment": "much"}, "augment is one of paper, light, strong, not 'much'"),
        ({"learn": "lora"}, "learn is 'all', 'image', 'text'"),
        ({"compile": "yes"}, "compile must be true or false, not 'yes'"),
    ],
)
def test_a_configuration_that_makes_no_run_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({**WHOLE, **changes})


@pytest.mark.parametrize("missing", ["data", "out"])
def test_a_configuration_without_data_or_a_place_is_refused(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"the training configuration has no '{missing}'"):
        TrainConfig.from_dict({name: value for name, value in WHOLE.items() if name != missing})


def test_a_configuration_comes_from_toml_or_json(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = ["pairs.csv"]\nout = "run"\nmodel = "ViT-B/32"\nsamples = 5_000\n')
    settings = TrainConfig.from_file(tmp_path / "run.toml")
    assert (settings.data, settings.samples, settings.micro_batch_size) == (("pairs.csv",), 5000, 256)
    (tmp_path / "run.json").write_text(json.dumps(settings.to_dict()))
    assert TrainConfig.from_file(tmp_path / "run.json") == settings
    for name, text in (("bad.toml", "data = ["), ("bad.json", "[" * 100_000), ("latin.json", "\xff")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read as a training configuration"):
            TrainConfig.from_file(tmp_path / name)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list\.json: is no table of names and values"):
        TrainConfig.from_file(tmp_path / "list.json")
