"""A run is what its configuration says, survives being killed at any moment, and goes on to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import sightline
from sightline.errors import ConfigError, TrainingError
from sightline.train.checkpoints import Checkpoints
from sightline.train.config import TrainConfig
from sightline.train.loop import train
from tiny import tiny_config

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder per class: eight small images of each of four colours."""
    noise = random.Random(0)
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            shade = tuple(max(0, min(255, c + noise.randint(-25, 25))) for c in colour)
            Image.new("RGB", (40, 36), shade).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def config(colours: Path, **changes: object) -> TrainConfig:
    """A run of 8 steps of a model of some thousand weights."""
    settings = tiny_config().to_dict()
    settings["text"].update(vocab_size=1000, context_length=16)
    settings["vision"].update(layers=1)
    model = colours.parent / "model.json"
    model.write_text(json.dumps(settings))
    base = TrainConfig(
        data=(str(colours),), out=str(colours.parent / "run"), model=str(model), samples=8 * 16, global_batch_size=16,
        micro_batch_size=8, learning_rate=1e-3, warmup=2, precision="float32", checkpoint_every=3, workers=0, flip=0.5,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return sightline.load(folder).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quiet(_: str) -> None:
    pass


def test_a_run_learns_and_its_model_loads_and_classifies(colours: Path) -> None:
    folder = train(config(colours, samples=60 * 16, learning_rate=2e-3), say=quiet)
    classifier = sightline.ZeroShotClassifier(sightline.load(folder), list(COLOURS))
    images = [colours / name / "0.png" for name in COLOURS]
    assert classifier.predict(images).tolist() == list(COLOURS)
    steps = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 61))
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_same_configuration_gives_the_same_weights(colours: Path) -> None:
    first = train(config(colours, out=str(colours.parent / "a")), say=quiet)
    second = train(config(colours, out=str(colours.parent / "b"), workers=2), say=quiet)
    other = train(config(colours, out=str(colours.parent / "c"), seed=1), say=quiet)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(colours: Path, workers: int) -> None:
    whole = train(config(colours, out=str(colours.parent / "whole"), ema=0.9), say=quiet)
    settings = config(colours, workers=workers, ema=0.9)
    resumed = run_until_done_with_kills(settings, colours.parent, kills=2)
    assert same(weights(resumed), weights(whole))


def run_until_done_with_kills(settings: TrainConfig, folder: Path, kills: int) -> Path:
    """Start the run in a process of its own and kill it once it has written a step; then let it go on to the end."""
    file = folder / "settings.json"
    file.write_text(json.dumps(settings.to_dict()))
    code = "import sys; from sightline.train.loop import train; from sightline.train.config import TrainConfig; "
    code += "from pathlib import Path; train(TrainConfig.from_file(Path(sys.argv[1])), resume=True)"
    for attempt in range(kills + 1):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}, start_new_session=True,
        )  # fmt: skip
        if attempt < kills:
            seen = len(Checkpoints(Path(settings.out) / "checkpoints", 3).steps())
            deadline = time.monotonic() + 120
            while len(Checkpoints(Path(settings.out) / "checkpoints", 3).steps()) <= seen and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        error = process.communicate()[1].decode()
    assert process.returncode == 0, error
    return Path(settings.out) / "model"


def test_a_save_that_is_killed_in_the_middle_loses_no_checkpoint(tmp_path: Path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"w": torch.ones(3)})

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    import sightline.train.checkpoints as room

    with monkeypatch.context() as patch:
        patch.setattr(room, "sync_tree", die)  # all is written, nothing is yet in its place
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(2, {"w": torch.zeros(3)})
    assert checkpoints.steps() == [1]
    state = {"w": torch.zeros(3)}
    checkpoints.load(1, state)
    assert state["w"].tolist() == [1, 1, 1]
    checkpoints.save(2, {"w": torch.full((3,), 2.0)})  # what was left behind is swept away
    checkpoints.save(3, {"w": torch.full((3,), 3.0)})
    assert checkpoints.steps() == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def test_a_loss_that_is_not_finite_names_its_pairs_and_keeps_the_last_checkpoint(colours: Path, monkeypatch) -> None:
    import sightline.train.loop as loop

    real, calls = loop.accumulate_gradients, []

    def broken(*arguments: object) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(loop, "accumulate_gradients", broken)
    with pytest.raises(TrainingError, match=r"the loss of step 4 is nan .* listed in .*not-finite-step-4-rank-0\.txt"):
        train(config(colours), say=quiet)
    run = colours.parent / "run"
    assert Checkpoints(run / "checkpoints", 3).steps() == [3]
    assert len((run / "not-finite-step-4-rank-0.txt").read_text().splitlines()) == 16


def test_a_run_is_not_started_over_another_nor_resumed_as_another(colours: Path) -> None:
    train(config(colours), say=quiet)
    with pytest.raises(ConfigError, match="holds a run already; add --resume"):
        train(config(colours), say=quiet)
    with pytest.raises(ConfigError, match="was started with another learning_rate"):
        train(config(colours, learning_rate=0.5), resume=True, say=quiet)


def test_a_frozen_tower_does_not_move(colours: Path) -> None:
    start = sightline.Encoder(
        sightline.create_model(sightline.ModelConfig.from_dict(json.loads(_model_of(colours)))),
        sightline.Tokenizer.standard(16, 1000),
    )
    start.save(colours.parent / "start")
    settings = config(colours, model=None, start_from=str(colours.parent / "start"), freeze="image")
    before, after = weights(colours.parent / "start"), weights(train(settings, say=quiet))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith("visual.") for name in moved)


def _model_of(colours: Path) -> str:
    return Path(str(config(colours).model)).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "there is no data"),
        ({"colour": 1}, "unknown key 'colour' in the training configuration"),
        ({"start_from": "starter"}, "name either a model to build"),
        ({"samples": 0}, "samples must be a whole number above zero, not 0"),
        ({"learning_rate": 7}, "learning_rate must be above 0 and at most 1, not 7"),
        ({"ema": 1.0}, "ema must be from 0 to below 1"),
        ({"loss": "hinge"}, "loss is one of softmax, sigmoid, not 'hinge'"),
    ],
)
def test_a_configuration_that_makes_no_run_is_refused(colours: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({**config(colours).to_dict(), **changes})


def test_a_configuration_comes_from_toml_or_json(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = ["pairs.csv"]\nout = "run"\nmodel = "ViT-B/32"\nsamples = 5_000\n')
    settings = TrainConfig.from_file(tmp_path / "run.toml")
    assert (settings.data, settings.samples, settings.global_batch_size) == (("pairs.csv",), 5000, 256)
    (tmp_path / "run.json").write_text(json.dumps(settings.to_dict()))
    assert TrainConfig.from_file(tmp_path / "run.json") == settings
    (tmp_path / "bad.toml").write_text("data = [")
    with pytest.raises(ConfigError, match=r"bad\.toml: cannot be read as a training configuration"):
        TrainConfig.from_file(tmp_path / "bad.toml")
