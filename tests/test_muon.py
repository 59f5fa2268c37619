"""Muon: what its updates are, against torch's own for matrices, and a run that is moved by it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.errors import ConfigError
from sightline.muon import Muon, orthogonalize
from sightline.optim import optimizers
from sightline.train.config import TrainConfig
from sightline.train.loop import train
from test_train_resume import run_until_done_with_kills
from tiny import tiny_model
from tiny_run import config, quiet, same, weights


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_matrix_keeps_its_directions_and_gets_singular_values_of_about_one(shape, precision) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    sizes = torch.logspace(0, -2, min(shape))
    found = orthogonalize((u * sizes @ v).to(precision)).float()
    inside = u.T @ found @ v.T  # diagonal, if the directions are the same
    assert inside.diagonal().min() > 0.4
    assert inside.diagonal().max() < 1.3
    assert (inside - inside.diagonal().diag()).abs().max() < (1e-4 if precision == torch.float32 else 0.05)


def test_a_gradient_of_zero_moves_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_matrices_move_as_they_do_by_the_muon_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(32, 8)), nn.Parameter(torch.ones(8, 32))] for _ in range(2))
    by_us = Muon([{"params": ours, "lr": 0.02, "weight_decay": 0.1}])
    by_torch = torch.optim.Muon(theirs, lr=0.06, weight_decay=0.1 / 3, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        by_us.step()
        by_torch.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)  # of 0.06 a step; both iterate in bfloat16


def test_a_kernel_moves_as_the_matrix_of_its_outputs_and_all_the_rest() -> None:
    torch.manual_seed(0)
    kernel, matrix = nn.Parameter(torch.ones(6, 4, 3, 3)), nn.Parameter(torch.ones(6, 36))
    kernel.grad = torch.randn(6, 4, 3, 3)
    matrix.grad = kernel.grad.flatten(1)
    Muon([{"params": [kernel, matrix], "lr": 0.1}]).step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(matrix, torch.ones(6, 36))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_blocks_matrices_are_moved_by_muon_and_all_else_by_adamw(kind: str) -> None:
    model = tiny_model(kind)
    named = dict(model.named_parameters())
    adamw, muon = optimizers(named.items(), "muon", weight_decay=0.1)
    names = {id(p): name for name, p in named.items()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert isinstance(muon, Muon)
    assert by_muon | by_adamw == set(named)
    assert not by_muon & by_adamw
    assert all(named[name].ndim >= 2 for name in by_muon)
    assert "transformer.resblocks.0.mlp.c_fc.weight" in by_muon
    assert ("visual.layer2.0.conv2.weight" in by_muon) == (kind == "resnet")
    assert {"token_embedding.weight", "text_projection", "visual.conv1.weight", "logit_scale"} <= by_adamw
    assert all(group["weight_decay"] == 0.1 for group in muon.param_groups)


def test_adamw_alone_moves_all_where_muon_is_not_asked_for() -> None:
    named = dict(tiny_model().named_parameters())
    (adamw,) = optimizers(named.items(), "adamw", weight_decay=0.1)
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(named)


def test_a_run_by_muon_learns_and_resumes_to_the_bit(colours: Path) -> None:
    settings = {"optimizer": "muon", "ema": 0.5, "learning_rate": 5e-3}
    whole_run = train(config(colours, out=str(colours.parent / "whole"), **settings), say=quiet)
    resumed = run_until_done_with_kills(config(colours, **settings), colours.parent, kills=1)
    assert same(weights(resumed), weights(whole_run))
    by_adamw = train(config(colours, out=str(colours.parent / "adamw"), ema=0.5, learning_rate=5e-3), say=quiet)
    assert not same(weights(by_adamw), weights(whole_run))
    assert "Muon for the matrices of the blocks" in (whole_run / "README.md").read_text("utf-8")


def test_muon_turns_whole_matrices_and_refuses_split_ones() -> None:
    with pytest.raises(ConfigError, match="muon turns whole matrices, and shard splits them"):
        TrainConfig(data=("pairs.csv",), out="run", model="ViT-B/32", optimizer="muon", shard=True)
