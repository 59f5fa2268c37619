"""All that a run is made of at a step: weights, optimiser, their running average, the state of what is drawn."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sightline.distributed import rank, world_size
from sightline.fine_tune import choose_what_learns, merge_adapters
from sightline.models.clip import CLIP
from sightline.train.checkpoints import Checkpoints
from sightline.train.parallel import gathered, same_buffers, whole_state
from sightline.train.step import Towers


class State:
    """The towers as they learn, with what goes into a checkpoint beside them.

    `average` is the running average of the model's state dict (empty without `ema`), which the caller updates.
    """

    def __init__(self, towers: Towers, optimizers: list[torch.optim.Optimizer], *, learn: str, ema: bool):
        self.towers, self.optimizers, self.learn = towers, optimizers, learn
        self.average = {n: t.detach().clone() for n, t in towers.model.state_dict().items()} if ema else {}

    def save(self, checkpoints: Checkpoints, step: int, **about: int) -> None:
        same_buffers(self.towers)
        checkpoints.save(step, self._parts(), **about)

    def load(self, checkpoints: Checkpoints, step: int) -> None:
        parts = self._parts()
        if checkpoints.about(step)["processes"] != world_size():
            del parts["random"]
        checkpoints.load(step, parts)
        set_state_dict(
            self.towers, self.optimizers, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
        )
        if "random" in parts:
            torch.set_rng_state(parts["random"][str(rank())])

    def _parts(self) -> dict[str, Any]:
        model, moments = get_state_dict(self.towers, self.optimizers)
        parts: dict[str, Any] = {"model": model, "optimizer": moments}
        parts["random"] = {str(rank()): torch.get_rng_state()}
        return {**parts, "average": self.average} if self.average else parts

    def plain_model(self) -> CLIP | None:
        """The model as it would be saved now: averaged if it is, nothing split, adapters merged, in `eval` mode.

        It shares memory with the one that learns. Only the first process gets it, but all must ask for it.
        """
        weights = gathered(self.average) if self.average else whole_state(self.towers.model)
        return self._built(weights) if rank() == 0 else None

    def _built(self, weights: dict[str, Tensor]) -> CLIP:
        with torch.device("meta"):
            model = CLIP(self.towers.model.config)
            choose_what_learns(model, self.learn)
        model.load_state_dict(weights, assign=True)
        merge_adapters(model)
        return model.eval().requires_grad_(False)
