"""The two contrastive losses, in tiles: the N × N logits never exist whole.

Every process holds n of the N = world_size · n pairs. It takes its own n rows of the logits, one tile of them at a
time, against the text features of all. The memory is that of a tile and of the features, whatever N is.

Both functions return the loss over all N pairs, the same on each process. Their gradients are world_size times those of
the process's own features: data-parallel training averages over processes, and the average is then the exact gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.distributed import (
    gather_rows,
    logsumexp_over_processes,
    rank,
    scatter_sum,
    sum_over_processes,
    world_size,
)

TILE = 1024


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, *, tile: int = TILE) -> Tensor:
    """Symmetric softmax cross-entropy over all pairs (paper, figure 3).

    Args:
        image_features, text_features: this process's pairs, (n, embed_dim) each, of unit length, float32.
        scale: exp(logit_scale), a scalar.
        tile: rows of the logits that exist at a time.
    """
    return _Contrastive.apply(image_features, text_features, scale, tile)


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, bias: Tensor, *, tile: int = TILE
) -> Tensor:
    """The sigmoid loss of SigLIP (Zhai et al. 2023, algorithm 1): each pair of the batch is a question of its own.

    −1/N · Σᵢⱼ log σ(zᵢⱼ · (scale · xᵢ·yⱼ + bias)), with z = 1 on the diagonal and −1 elsewhere.
    """
    return _Sigmoid.apply(image_features, text_features, scale, bias, tile)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, tile: int) -> Tensor:
        texts = gather_rows(text)  # (N, embed_dim)
        total = len(texts)
        by_image = image.new_empty(len(image))  # log Σⱼ exp(logitᵢⱼ), each row's
        by_text = image.new_full((total,), -torch.inf)  # log Σᵢ exp(logitᵢⱼ), each column's, of the rows so far
        for start in range(0, len(image), tile):
            logits = scale * image[start : start + tile] @ texts.T  # (tile, N)
            by_image[start : start + tile] = logits.logsumexp(dim=1)
            by_text = torch.logaddexp(by_text, logits.logsumexp(dim=0))
        by_text = logsumexp_over_processes(by_text)
        own = slice(rank() * len(text), (rank() + 1) * len(text))
        matching = scale * (image * text).sum(dim=1)
        loss = ((by_image - matching).sum() + (by_text[own] - matching).sum()) / (2 * total)
        ctx.save_for_backward(image, texts, scale, by_image, by_text)
        ctx.tile = tile
        return sum_over_processes(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, texts, scale, by_image, by_text = ctx.saved_tensors
        total, first = len(texts), rank() * len(image)
        grad_image, grad_texts = torch.empty_like(image), torch.zeros_like(texts)
        grad_scale = torch.zeros_like(scale)
        weight = grads[0] * world_size() / (2 * total)
        for start in range(0, len(image), ctx.tile):
            rows = slice(start, start + ctx.tile)
            cosine = image[rows] @ texts.T
            logits = scale * cosine
            # d loss / d logits is the row's softmax plus the column's, less two on the diagonal.
            grad = (logits - by_image[rows, None]).exp_().add_(torch.exp(logits - by_text))
            grad.diagonal(first + start).sub_(2)
            grad.mul_(weight)
            grad_scale += (grad * cosine).sum()
            grad_image[rows] = scale * (grad @ texts)
            grad_texts += scale * (grad.T @ image[rows])
        return grad_image, scatter_sum(grad_texts), grad_scale, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile: int) -> Tensor:
        texts = gather_rows(text)
        first = rank() * len(image)
        loss = image.new_zeros(())
        for start in range(0, len(image), tile):
            logits = scale * image[start : start + tile] @ texts.T + bias
            # −log σ(−x) = softplus(x) for all, and for a matching pair softplus(−x) = softplus(x) − x.
            loss += F.softplus(logits).sum() - logits.diagonal(first + start).sum()
        ctx.save_for_backward(image, texts, scale, bias)
        ctx.tile = tile
        return sum_over_processes(loss / len(texts))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, texts, scale, bias = ctx.saved_tensors
        first = rank() * len(image)
        grad_image, grad_texts = torch.empty_like(image), torch.zeros_like(texts)
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        weight = grads[0] * world_size() / len(texts)
        for start in range(0, len(image), ctx.tile):
            rows = slice(start, start + ctx.tile)
            cosine = image[rows] @ texts.T
            grad = torch.sigmoid(scale * cosine + bias)
            grad.diagonal(first + start).sub_(1)
            grad.mul_(weight)
            grad_scale += (grad * cosine).sum()
            grad_bias += grad.sum()
            grad_image[rows] = scale * (grad @ texts)
            grad_texts += scale * (grad.T @ image[rows])
        return grad_image, scatter_sum(grad_texts), grad_scale, grad_bias, None
