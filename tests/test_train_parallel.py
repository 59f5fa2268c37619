"""Two processes equal one: loss, gradients and weights, each with the whole model or with a half of it."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from sightline.loss import contrastive_loss, sigmoid_loss
from sightline.optim import parameter_groups
from sightline.tokenizer import Tokenizer
from sightline.train.checkpoints import Checkpoints
from sightline.train.parallel import parallelize, whole
from sightline.train.state import State
from sightline.train.step import Towers, accumulate_gradients
from tiny import images, tiny_model

PAIRS, STEPS = 8, 3


def batch() -> tuple[Tensor, Tensor]:
    texts = [f"a photo of {'very ' * (i % 4)}thing number {i}" for i in range(PAIRS)]
    return images(PAIRS, 32), Tokenizer.standard()(texts)


def adamw(towers: Towers) -> torch.optim.Optimizer:
    """With a large epsilon: the usual one makes whole steps of the rounding of gradients that are nearly zero."""
    return torch.optim.AdamW(parameter_groups(towers.named_parameters(), 0.1), lr=1e-2, eps=1e-2, fused=True)


def run_steps(rank: int, world_size: int, loss_name: str, pieces: int, shard: bool) -> tuple[list[float], State]:
    """Some steps of training on this process's part of the batch: the loss of each, and what came of it."""
    loss = partial(contrastive_loss if loss_name == "softmax" else sigmoid_loss, tile=3)
    towers = Towers(tiny_model().train(), sigmoid=loss_name == "sigmoid")
    parallel = parallelize(towers, shard=shard)
    optimizer = adamw(towers)
    own = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    parts = list(zip(*(x[own].chunk(pieces) for x in batch()), strict=True))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(float(accumulate_gradients(parallel, parts, loss)))
        norm = whole(nn.utils.clip_grad_norm_(towers.parameters(), 0.5))
        losses.append(float(norm))
        optimizer.step()
    return losses, State(towers, [optimizer], learn="all", ema=False)


def in_a_process(rank: int, folder: str, loss_name: str, pieces: int, shard: bool) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    losses, state = run_steps(rank, 2, loss_name, pieces, shard)
    state.save(Checkpoints(Path(folder) / "checkpoints", 3), STEPS)
    model = state.plain_model()
    assert (model is None) == (rank == 1)
    torch.save([losses, model.state_dict() if model else {}], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("loss_name", "pieces", "shard"),
    [("softmax", 1, False), ("softmax", 2, False), ("sigmoid", 2, False), ("softmax", 2, True), ("sigmoid", 1, True)],
)
def test_training_in_two_processes_equals_training_in_one(
    tmp_path: Path, loss_name: str, pieces: int, shard: bool
) -> None:
    expected, state = run_steps(0, 1, loss_name, 1, False)
    mp.spawn(in_a_process, (str(tmp_path), loss_name, pieces, shard), nprocs=2)
    (first, weights), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == pytest.approx(expected, rel=1e-5)
    assert second == pytest.approx(expected, rel=1e-5)
    plain = state.towers.model.state_dict()
    assert weights.keys() == plain.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-5, atol=1e-6)

    # The checkpoint that two processes wrote loads in one.
    towers = Towers(tiny_model(), sigmoid=loss_name == "sigmoid")
    alone = State(towers, [adamw(towers)], learn="all", ema=False)
    alone.load(Checkpoints(tmp_path / "checkpoints", 3), STEPS)
    for name, tensor in towers.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert {float(moments["step"]) for moments in alone.optimizers[0].state.values()} == {float(STEPS)}
