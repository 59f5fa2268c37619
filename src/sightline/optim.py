"""The optimisers, the learning rate over time, and the running average of weights."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sightline.fine_tune import depths, in_block
from sightline.muon import Muon


def optimizers(
    named: Iterable[tuple[str, nn.Parameter]],
    kind: str,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    precision: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """What moves the weights: "adamw", or "muon" for the matrices and kernels of the blocks and AdamW for the rest."""
    named = list(named)
    groups = parameter_groups(named, weight_decay, layer_decay)
    by_muon = {p for name, p in named if kind == "muon" and p.ndim >= 2 and in_block(name)}
    rest = _with(groups, lambda p: p not in by_muon)
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), fused=True)]
    if matrices := _with(groups, lambda p: p in by_muon):
        found.append(Muon(matrices, precision=precision))
    return found


def _with(groups: list[dict], wanted: Callable[[nn.Parameter], bool]) -> list[dict]:
    chosen = [{**group, "params": list(filter(wanted, group["params"]))} for group in groups]
    return [group for group in chosen if group["params"]]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Matrices decay; gains, biases, vectors and the temperature do not (paper, section 2.5).

    Args:
        named: all parameters with their names; those that do not learn are left out of the groups.
        layer_decay: the learning rate of each block as a share of that of the block above it, as in BEiT (Bao et al.
            2022) and MAE (He et al. 2022, appendix A.1). Final norms, projections and temperature have the full rate.

    Returns:
        Few groups, those of equal rate and decay being one. `scale` is what the learning rate is multiplied by.
    """
    named = list(named)
    depth = depths(name for name, _ in named)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            groups.setdefault((layer_decay ** depth[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": groups[scale, is_matrix], "weight_decay": weight_decay if is_matrix else 0.0, "scale": scale}
        for scale, is_matrix in sorted(groups, reverse=True)
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
