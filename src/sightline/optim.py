"""AdamW's parameter groups, the learning rate over time, and the running average of weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Matrices decay; gains, biases, vectors and the temperature do not (paper, section 2.5)."""
    trained = [(name, p) for name, p in named if p.requires_grad]
    return [
        {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear from 0 to `peak` over the warm-up, then a cosine to 0 at `steps` (paper, section 2.5)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def update_average(average: dict[str, Tensor], state: dict[str, Tensor], decay: float) -> None:
    """average ← decay · average + (1 − decay) · state; counters are copied."""
    for name, tensor in state.items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)
