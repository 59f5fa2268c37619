"""The training loop: read it from top to bottom."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.data.augment import Augment
from sightline.data.batch import Batch
from sightline.data.loader import Batches
from sightline.data.preflight import preflight
from sightline.data.sources import open_pairs
from sightline.distributed import first_process_first, processes, rank, world_size
from sightline.errors import ConfigError, TrainingError
from sightline.files import write_whole
from sightline.fine_tune import choose_what_learns
from sightline.loss import contrastive_loss, sigmoid_loss
from sightline.optim import learning_rate, optimizers, update_average
from sightline.train.config import NEW_LEARNING_RATE, TUNING_LEARNING_RATE, TrainConfig
from sightline.train.memory import memory_lines, recompute_blocks
from sightline.train.parallel import parallelize, whole
from sightline.train.progress import Progress
from sightline.train.run import Run
from sightline.train.start import starting_point
from sightline.train.state import State
from sightline.train.step import Towers, accumulate_gradients
from sightline.train.stopping import Stop, only_one, plain_errors, stop_when_asked

MAX_LOGIT_SCALE = 4.605170185988092  # ln 100 (paper, section 2.5)
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "paper": {"scale": (0.9, 1.0)},
    "light": {"scale": (0.5, 1.0), "flip": 0.5},
    "strong": {
        "scale": (0.3, 1.0), "flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
        "jitter": 0.8, "grayscale": 0.1, "blur": 0.1, "erase": 0.25,
    },
}  # fmt: skip


def train(config: TrainConfig, *, resume: bool = False, say: Callable[[str], object] = print) -> Path:
    """Train a model, and return the folder it was written to, which `sightline.load` reads.

    Started by torchrun, all its processes train together.

    Args:
        resume: go on from the last whole checkpoint in `config.out`, to the bit on the same number of processes.
        say: takes the lines for a person.

    Raises:
        DataError, ConfigError: if the data or the configuration cannot be trained on, before the first step.
        TrainingError: if the loss is not finite (the batch is named), if memory runs out or a checkpoint cannot be
            written; the last one is as it was.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is done and saved.
    """
    with plain_errors(), only_one(Path(config.out).expanduser()), processes() as device, stop_when_asked() as stop:
        return _train(config, device, resume, say if rank() == 0 else lambda _: None, stop)


def _train(config: TrainConfig, device: torch.device, resume: bool, say: Callable[[str], object], stop: Stop) -> Path:
    # ── the data ──
    with first_process_first():
        pairs = open_pairs(list(config.data), templates=config.templates)
    config = _with_defaults(config, len(pairs))
    assert config.samples
    assert config.global_batch_size
    assert config.learning_rate
    if config.global_batch_size < 2:
        raise ConfigError("global_batch_size is 1: a step contrasts pairs with one another, so it needs two at least")
    if config.global_batch_size % world_size():
        raise ConfigError(f"global_batch_size {config.global_batch_size} does not split over {world_size()} processes")
    per_process = config.global_batch_size // world_size()
    steps = math.ceil(config.samples / config.global_batch_size)
    warmup = min(config.warmup, steps // 10)
    run = Run(config, resume, say)

    # ── the model, and what moves it ──
    torch.manual_seed(config.seed)
    clip = starting_point(config.model, config.start_from)
    model = clip.model.train()
    choose_what_learns(model, config.learn)
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    towers = Towers(model, precision=precision, sigmoid=config.loss == "sigmoid").to(device)
    if config.recompute:
        recompute_blocks(model)
    vision = model.config.vision
    piece = next(n for n in range(min(config.micro_batch_size, per_process), 0, -1) if per_process % n == 0)
    if piece < min(config.micro_batch_size, per_process) / 2:
        say(
            f"warning: {per_process:,} pairs divide into pieces of {piece} alone, which is slow: choose a rounder batch"
        )
    augment = Augment(vision.image_size, model.config.mean, model.config.std, **AUGMENTATIONS[config.augment])
    if rank() == 0:
        found = preflight(
            pairs, clip.tokenizer, augment, batch_size=per_process, world_size=world_size(), seed=config.seed
        )
        for line in (*found.lines(), *memory_lines(towers, pairs=per_process, piece=piece, ema=config.ema > 0)):
            say(line)
        if found.refusals:
            raise ConfigError(f"this cannot be trained: {'; '.join(found.refusals)}")
    parallel = parallelize(towers, shard=config.shard)
    if config.compile:
        towers.compile()
    movers = optimizers(
        towers.named_parameters(), config.optimizer,
        weight_decay=config.weight_decay, layer_decay=config.layer_decay, precision=precision,
    )  # fmt: skip
    state = State(towers, movers, learn=config.learn, ema=config.ema > 0)
    loss = contrastive_loss if config.loss == "softmax" else sigmoid_loss

    # ── where it was ──
    start = run.restore(state, pairs=len(pairs), piece=piece)
    run.evaluate_if_missed(start, state, clip.tokenizer)
    batches = Batches(
        pairs, clip.tokenizer, augment, batch_size=per_process, micro_batch_size=piece,
        seed=config.seed, rank=rank(), world_size=world_size(), workers=config.workers, start=start,
    )  # fmt: skip
    progress = Progress(start, steps, per_process * world_size(), say)

    # ── the loop ──
    stream = iter(batches)
    for step in range(start, steps):
        pieces = Pieces(progress.wait_for(islice(stream, per_process // piece)), device)
        lr = learning_rate(step, steps=steps, warmup=warmup, peak=config.learning_rate)
        for group in chain.from_iterable(mover.param_groups for mover in movers):
            group["lr"] = lr * group["scale"]
        towers.zero_grad(set_to_none=True)
        value = accumulate_gradients(parallel, pieces, loss)
        norm = whole(nn.utils.clip_grad_norm_(towers.parameters(), config.gradient_clip))
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            raise _not_finite(run.out, step, value, pieces)
        for mover in movers:
            mover.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        if state.average:
            update_average(state.average, model.state_dict(), config.ema)
        done = step + 1
        speed = progress.step(done, float(value))
        run.scalars(
            done, loss=value, learning_rate=lr, gradient_norm=norm, scale=model.logit_scale.detach().exp(), **speed
        )
        stopping = stop.asked_anywhere(device)
        if done % config.checkpoint_every == 0 or done == steps or stopping:
            since = time.perf_counter()
            state.save(run.checkpoints, done, pairs=len(pairs), piece=piece)
            if done == steps or not stopping:
                run.evaluate(done, state, clip.tokenizer)
            progress.pause(since)
        if stopping and done < steps:
            say(f"stopped after step {done:,}; go on with --resume")
            raise KeyboardInterrupt

    return run.finish(state, clip.tokenizer, batches.report)


class Pieces(Sequence[tuple[Tensor, Tensor]]):
    """The micro-batches of a step. Pixels become floats on the device, one piece at a time."""

    def __init__(self, batches: Sequence[Batch], device: torch.device):
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        batch = self.batches[index]
        return batch.augment.normalise(batch.pixels.to(self.device)), batch.tokens.to(self.device)


def _with_defaults(config: TrainConfig, pairs: int) -> TrainConfig:
    """The configuration with what was left to the data filled in."""
    rate = TUNING_LEARNING_RATE if config.start_from else NEW_LEARNING_RATE
    return replace(
        config,
        samples=config.samples or 10 * pairs,
        global_batch_size=config.global_batch_size or max(1, min(256, pairs) // world_size()) * world_size(),
        learning_rate=config.learning_rate or rate,
    )


def _not_finite(out: Path, step: int, value: Tensor, pieces: Pieces) -> TrainingError:
    names = [name for batch in pieces.batches for name in batch.names]
    file = out / f"not-finite-step-{step}-rank-{rank()}.txt"
    write_whole(file, "\n".join(names).encode("utf-8", "backslashreplace"))
    return TrainingError(
        f"the loss of step {step} is {float(value)} (or its gradient is not finite): its pairs are listed in {file}; "
        "lower the learning rate, or look at them"
    )
