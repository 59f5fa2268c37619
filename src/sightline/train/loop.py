"""The training loop: read it from top to bottom."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sightline.config import ModelConfig, available_models, model_config
from sightline.data.augment import Augment
from sightline.data.batch import Batch
from sightline.data.loader import Batches
from sightline.data.preflight import preflight
from sightline.data.sources import open_pairs
from sightline.distributed import processes, rank, world_size
from sightline.encoder import Encoder, load
from sightline.errors import ConfigError, TrainingError
from sightline.files import write_whole
from sightline.loss import contrastive_loss, sigmoid_loss
from sightline.models.clip import create_model
from sightline.optim import learning_rate, parameter_groups, update_average
from sightline.tokenizer import Tokenizer
from sightline.train.checkpoints import Checkpoints
from sightline.train.config import TrainConfig
from sightline.train.step import Towers, accumulate_gradients

MAX_LOGIT_SCALE = 4.605170185988092  # ln 100 (paper, section 2.5)
LOG_EVERY = 10.0  # seconds between progress lines


def train(config: TrainConfig, *, resume: bool = False, say: Callable[[str], object] = print) -> Path:
    """Train a model, and return the folder it was written to, which `sightline.load` reads.

    With `resume`, go on from the last whole checkpoint in `config.out`, to the bit on the same number of processes.

    Raises:
        DataError, ConfigError: if the data or the configuration cannot be trained on, before the first step.
        TrainingError: if the loss is not finite; the batch is named, and the last checkpoint is as it was.
    """
    with processes() as device:
        return _train(config, device, resume, say if rank() == 0 else lambda _: None)


def _train(config: TrainConfig, device: torch.device, resume: bool, say: Callable[[str], object]) -> Path:
    out = Path(config.out)
    checkpoints = Checkpoints(out / "checkpoints", config.keep)
    _claim(out, config, checkpoints, resume)

    # ── the model, and what moves it ──
    torch.manual_seed(config.seed)
    clip = _starting_point(config)
    model = clip.model.to(device).train()
    _freeze(model, config.freeze)
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    towers = Towers(model, precision=precision, sigmoid=config.loss == "sigmoid").to(device)
    parallel: nn.Module = towers
    if world_size() > 1:
        parallel = nn.parallel.DistributedDataParallel(towers, device_ids=[device] if device.type == "cuda" else None)
    groups = parameter_groups(towers.named_parameters(), config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
    average = {n: t.detach().clone() for n, t in model.state_dict().items()} if config.ema else {}
    loss = contrastive_loss if config.loss == "softmax" else sigmoid_loss

    # ── the data ──
    pairs = open_pairs(list(config.data), templates=config.templates)
    vision = model.config.vision
    augment = Augment(
        vision.image_size, model.config.mean, model.config.std, scale=(config.crop, 1.0), flip=config.flip
    )
    per_process = config.global_batch_size // world_size()
    found = preflight(pairs, clip.tokenizer, augment, batch_size=per_process, world_size=world_size(), seed=config.seed)
    for line in found.lines():
        say(line)
    if found.refusals:
        raise ConfigError(f"this cannot be trained: {'; '.join(found.refusals)}")

    # ── where it was ──
    start = 0
    if resume and checkpoints.steps():
        start = _restore(checkpoints, towers, optimizer, average, say)
    batches = Batches(
        pairs, clip.tokenizer, augment, batch_size=per_process, micro_batch_size=_piece_size(config, per_process),
        seed=config.seed, rank=rank(), world_size=world_size(), workers=config.workers, start=start,
    )  # fmt: skip
    progress = _Progress(config, out, start, say)

    # ── the loop ──
    stream = iter(batches)
    for step in range(start, config.steps):
        pieces = _Pieces(progress.waiting(islice(stream, per_process // batches.piece_size)), device)
        lr = learning_rate(step, steps=config.steps, warmup=config.warmup, peak=config.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        value = accumulate_gradients(parallel, pieces, loss)
        norm = nn.utils.clip_grad_norm_(towers.parameters(), config.gradient_clip)
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            raise _not_finite(out, step, value, pieces)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        if average:
            update_average(average, model.state_dict(), config.ema)
        last = step + 1 == config.steps
        progress.step(step + 1, value, lr=lr, gradient_norm=norm, scale=model.logit_scale.detach().exp(), last=last)
        if (step + 1) % config.checkpoint_every == 0 or last:
            checkpoints.save(step + 1, _state(towers, optimizer, average, step + 1))

    for line in batches.report.lines():
        say(line)
    return _finish(config, clip, average, say)


# ── the parts of it ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Pieces(Sequence[tuple[Tensor, Tensor]]):
    """The micro-batches of a step. Pixels become floats on the device, one piece at a time."""

    def __init__(self, batches: Sequence[Batch], device: torch.device):
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        batch = self.batches[index]
        return batch.augment.normalise(batch.pixels.to(self.device)), batch.tokens.to(self.device)


class _Progress:
    """A line now and then for people, and one JSON object a step in `metrics.jsonl` for programs."""

    def __init__(self, config: TrainConfig, out: Path, start: int, say: Callable[[str], object]):
        self.config, self.say, self.first = config, say, start
        self.path = _metrics_file(out / "metrics.jsonl", start) if rank() == 0 else None
        self.began = self.said = time.perf_counter()
        self.waited = 0.0

    def waiting(self, stream: Iterator[Batch]) -> list[Batch]:
        """The batches of a step, and note of how long they were waited for."""
        before = time.perf_counter()
        batches = list(stream)
        self.waited += time.perf_counter() - before
        return batches

    def step(self, done: int, loss: Tensor, *, last: bool, **values: Any) -> None:
        if self.path is None:
            return
        now = time.perf_counter()
        rate = (done - self.first) * self.config.global_batch_size / (now - self.began)
        numbers = {
            "step": done,
            "loss": float(loss),
            **{k: float(v) for k, v in values.items()},
            "samples_per_second": rate,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")
        if last or now - self.said >= LOG_EVERY:
            self.said = now
            left = (self.config.steps - done) * self.config.global_batch_size / rate
            self.say(
                f"step {done:,}/{self.config.steps:,}  loss {float(loss):.4f}  {rate:,.0f} samples/s  "
                f"waiting for data {self.waited / (now - self.began):.0%}  {_clock(left)} left"
            )


def _metrics_file(path: Path, start: int) -> Path:
    """The log, without what a run that died had written of steps that are now done again."""
    if path.exists():
        lines = path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= start]
        write_whole(path, "".join(kept).encode())
    return path


def _claim(out: Path, config: TrainConfig, checkpoints: Checkpoints, resume: bool) -> None:
    """The run's folder with its configuration in it. A run is not started over another."""
    settings = json.dumps(config.to_dict(), indent=2) + "\n"
    file = out / "train.json"
    if checkpoints.steps() and not resume:
        raise ConfigError(f"{out}: holds a run already; add --resume to go on with it, or name another folder")
    if resume and file.exists():
        before = TrainConfig.from_file(file)
        changed = [k for k, v in before.to_dict().items() if v != getattr(config, k) and k not in _MAY_CHANGE]
        if changed:
            raise ConfigError(f"{out}: the run was started with another {changed[0]}; resume it with the same")
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, settings.encode())


_MAY_CHANGE = ("out", "workers", "keep", "checkpoint_every", "micro_batch_size")


def _starting_point(config: TrainConfig) -> Encoder:
    if config.start_from is not None:
        return load(config.start_from, device="cpu")
    settings = _model_config(str(config.model))
    tokenizer = Tokenizer.standard(settings.text.context_length, settings.text.vocab_size)
    return Encoder(create_model(settings), tokenizer, config.model or "")


def _model_config(name: str) -> ModelConfig:
    if name in available_models():
        return model_config(name)
    path = Path(name)
    try:
        return ModelConfig.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"model {name!r} is neither a published architecture nor a JSON file of one ({error})"
        ) from None


def _freeze(model: nn.Module, tower: str) -> None:
    for name, parameter in model.named_parameters():
        is_image = name.startswith("visual.")
        if (tower == "image" and is_image) or (tower == "text" and not is_image and name != "logit_scale"):
            parameter.requires_grad_(False)


def _piece_size(config: TrainConfig, per_process: int) -> int:
    """The largest divisor of a process's part of the batch that is no more than `micro_batch_size`."""
    return next(n for n in range(min(config.micro_batch_size, per_process), 0, -1) if per_process % n == 0)


def _state(towers: Towers, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int) -> dict[str, Any]:
    model, moments = get_state_dict(towers, optimizer)
    state = {
        "model": model,
        "optimizer": moments,
        "step": step,
        "processes": world_size(),
        "random": torch.get_rng_state(),
    }
    return {**state, "average": average} if average else state


def _restore(
    checkpoints: Checkpoints,
    towers: Towers,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    say: Callable[[str], object],
) -> int:
    step = checkpoints.steps()[-1]
    state = _state(towers, optimizer, average, 0)
    checkpoints.load(step, state)
    set_state_dict(towers, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    torch.set_rng_state(state["random"])
    exact = "exactly" if state["processes"] == world_size() else "approximately, on another number of processes"
    say(f"resuming {exact} after step {step:,}")
    return step


def _not_finite(out: Path, step: int, value: Tensor, pieces: _Pieces) -> TrainingError:
    names = [name for batch in pieces.batches for name in batch.names]
    file = out / f"not-finite-step-{step}-rank-{rank()}.txt"
    write_whole(file, "\n".join(names).encode("utf-8", "backslashreplace"))
    return TrainingError(
        f"the loss of step {step} is {float(value)} (or its gradient is not finite): its pairs are listed in {file}; "
        "lower the learning rate, or look at them"
    )


def _finish(config: TrainConfig, clip: Encoder, average: dict[str, Tensor], say: Callable[[str], object]) -> Path:
    folder = Path(config.out) / "model"
    if rank() == 0:
        if average:
            clip.model.load_state_dict(average)
        clip.model.eval()
        if folder.exists():  # an earlier end of the same run
            os.replace(folder, folder.with_name(f"model-before-{int(time.time())}"))
        clip.save(folder, card=_card(config))
        say(f"the model is in {folder}: sightline classify photos/ --labels '…' --model {folder}")
    return folder


def _card(config: TrainConfig) -> str:
    settings = json.dumps(config.to_dict(), indent=2)
    return f"# A CLIP model\n\nTrained by Sightline on {', '.join(config.data)}.\n\n```json\n{settings}\n```\n"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
