"""Muon: matrices that move along all of their directions at once (Jordan et al. 2024)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
SIZE = 0.6  # the root mean square of an update at a learning rate of one
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are all made about one, with decoupled weight decay.

    A matrix's gradient has few large directions and many small ones, which learn too; each gets the same step here.
    Updates of all shapes are as large as one another (Liu et al. 2025, equation 4), and about three times as large as
    AdamW's at its learning rate, by which embeddings and temperature are moved beside them.

    Args:
        groups: parameters of two dimensions, or convolution kernels: (outputs, …) is taken as outputs × all the rest.
        precision: of the iteration; bfloat16 is enough.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, precision: torch.dtype = torch.bfloat16):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(group["lr"] * self._update(parameter))

    def _update(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        ahead = parameter.grad.lerp(state["momentum"], MOMENTUM)  # Nesterov's
        matrix = orthogonalize(ahead.flatten(1).to(self.precision)).float()
        return matrix.mul_(SIZE * math.sqrt(max(matrix.shape))).view_as(parameter)


def orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors, whose singular values lie between 0.7 and 1.2 or so.

    Five Newton–Schulz steps of a polynomial that is steep at zero; no exact orthogonality is wanted, and it costs more.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
