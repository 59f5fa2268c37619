"""The tiled losses equal their formulas, in value and gradient, in one process and in several."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from sightline.loss import contrastive_loss, sigmoid_loss

N, D = 24, 16


def features(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, N, D, generator=generator)
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


def softmax_by_the_paper(image: Tensor, text: Tensor, scale: Tensor, _bias: Tensor) -> Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sigmoid_by_the_paper(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * image @ text.T + bias
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def ours(kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile: int) -> Tensor:
    if kind == "softmax":
        return contrastive_loss(image, text, scale, tile=tile)
    return sigmoid_loss(image, text, scale, bias, tile=tile)


def same_gradient(ours: Tensor | None, expected: Tensor) -> None:
    """Within 1e-5 of it, relative to its length."""
    difference = (torch.zeros(()) if ours is None else ours) - expected
    assert difference.norm() <= 1e-5 * expected.norm() + 1e-9


def whole(kind: str) -> tuple[Tensor, list[Tensor]]:
    """The loss by its formula, and its gradients for images, texts, scale and bias."""
    formula = softmax_by_the_paper if kind == "softmax" else sigmoid_by_the_paper
    leaves = [*(x.requires_grad_() for x in features()), torch.tensor(14.0, requires_grad=True)]
    leaves.append(torch.tensor(-10.0, requires_grad=True))
    loss = formula(*leaves)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), [torch.zeros(()) if g is None else g for g in grads]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tile", [1, 5, 24, 1000])
def test_a_tiled_loss_equals_its_formula(kind: str, tile: int) -> None:
    expected, expected_grads = whole(kind)
    leaves = [*(x.requires_grad_() for x in features()), torch.tensor(14.0, requires_grad=True)]
    leaves.append(torch.tensor(-10.0, requires_grad=True))
    loss = ours(kind, *leaves, tile)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    for leaf, grad in zip(leaves, expected_grads, strict=True):
        same_gradient(leaf.grad, grad)


def test_the_gradient_is_that_of_finite_differences() -> None:
    image, text = (x[:4].double().requires_grad_() for x in features())
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, tile=3), (image, text, scale))
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, tile=3), (image, text, scale, bias))


def test_a_large_scale_does_not_overflow() -> None:
    image, text = features()
    loss = contrastive_loss(image, text, torch.tensor(1e4))
    assert torch.isfinite(loss)


def _in_a_process(rank: int, world_size: int, folder: str, kind: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    own = slice(rank * N // world_size, (rank + 1) * N // world_size)
    image, text = (x[own].clone().requires_grad_() for x in features())
    scale, bias = torch.tensor(14.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    loss = ours(kind, image, text, scale, bias, 5)
    loss.backward()
    grads = [image.grad, text.grad, scale.grad, torch.zeros(()) if bias.grad is None else bias.grad]
    torch.save([loss.detach(), *grads], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_two_processes_equal_one(kind: str) -> None:
    expected, expected_grads = whole(kind)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_in_a_process, (2, folder, kind), nprocs=2)
        results = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    for loss, *_ in results:
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    # Training averages gradients over processes: half of what two processes give is the gradient.
    for position in (1, 2):
        together = torch.cat([result[position] for result in results]) / 2
        same_gradient(together, expected_grads[position - 1])
    for position in (3, 4):
        mean = sum(result[position] for result in results) / 2
        same_gradient(mean, expected_grads[position - 1])
