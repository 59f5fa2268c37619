"""What of a model learns: all of it, one tower, its last blocks, or low-rank adapters. The rest stays as it was.

    learn        what learns, beside `logit_scale`
    ─────────    ─────────────────────────────────
    all          everything
    image        the image tower
    text         the text tower
    last:N       the last N blocks of each tower, and what comes after them: the final norms and projections
    lora:R       adapters of rank R on the linear layers, which `merge_adapters` folds into the weights afterwards

"The last" is told by `depths`, which counts blocks from the top: learning rates that fall with depth go by it too.
"""

import re
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from sightline.errors import ConfigError
from sightline.models.clip import CLIP
from sightline.models.layers import MLP, Attention
from sightline.models.modified_resnet import AttentionPool2d

_LEARN = re.compile(r"(all|image|text)|(last|lora):([1-9][0-9]{0,3})")
_IMAGE = re.compile(r"(?:^|\.)visual\.")
_BLOCK = re.compile(r"(?:^|\.)(?:transformer\.resblocks|layer([1-4]))\.([0-9]+)\.")
_HEAD = re.compile(r"(?:^|\.)(ln_final|text_projection|visual\.(ln_post|proj|attnpool)|logit_scale|logit_bias)(?:\.|$)")

# α / r. Hu et al. set α once and leave it; twice the rank is what has become usual.
_ADAPTER_SCALE = 2.0


def check_learn(learn: object) -> tuple[str, int]:
    """What `learn` says: its word, and its number (0 for those that have none).

    Raises:
        ConfigError: if it says nothing that is known.
    """
    match = _LEARN.fullmatch(learn) if isinstance(learn, str) else None
    if match is None:
        raise ConfigError(
            f"learn is 'all', 'image', 'text', 'last:N' (N blocks of each tower) or 'lora:R' (adapters of rank R), "
            f"not {learn!r:.40}"
        )
    return (match[1], 0) if match[1] else (match[2], int(match[3]))


def choose_what_learns(model: CLIP, learn: str) -> None:
    """Give gradients to what learns, and to nothing else; with "lora:R", put the adapters in.

    Adapters go on the query, key, value and output projections of every attention and on both layers of every MLP. A
    ModifiedResNet has no such layers but those of its attention pooling, which get them; its convolutions stay.

    Running statistics of a BatchNorm that does not learn stand still, whatever `model.train()` says. Adapters of an
    earlier choice are folded in first.

    Raises:
        ConfigError: for a `learn` that is unknown, or is more than the model has.
    """
    word, number = check_learn(learn)
    merge_adapters(model)
    chosen = _what_learns([name for name, _ in model.named_parameters()], word, number)
    layers = _linear_layers(model) if word == "lora" else []
    if layers and number > (most := min(min(weight.shape) for _, _, weight in layers)):
        raise ConfigError(f"learn is 'lora:{number}', but the smallest layer of this model has rank {most}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    for module, name, weight in layers:
        parts = 3 if isinstance(module, Attention) else 1
        parametrize.register_parametrization(module, name, LowRankUpdate(weight, number, parts))
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
            module.register_forward_pre_hook(_stand_still)


def merge_adapters(model: nn.Module) -> None:
    """Fold the adapters into the weights they adapt: the same features from a plain CLIP, with its names and shapes."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)


class LowRankUpdate(nn.Module):
    """W to W + (α / r) · B A (Hu et al. 2021, section 4.1): A is Gaussian and B zero, so that it starts as W.

    A weight of several `parts`, such as that of query, key and value together, has a pair of matrices for each.
    """

    def __init__(self, weight: Tensor, rank: int, parts: int):
        super().__init__()
        outputs, inputs = weight.shape
        self.a = nn.Parameter(weight.new_empty(parts, rank, inputs).normal_(std=inputs**-0.5))
        self.b = nn.Parameter(weight.new_zeros(parts, outputs // parts, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + _ADAPTER_SCALE * (self.b @ self.a).flatten(0, 1)


def depths(names: Iterable[str]) -> dict[str, int]:
    """How far below the top of its tower each parameter of a CLIP is, in blocks.

    0 for final norms, projections and temperature; 1 for the last of L blocks and L for the first; L + 1 for what comes
    before the blocks. This is the count of BEiT and MAE, from the other end.

    Args:
        names: of all parameters, those that do not learn too. Wrappers may have put their own before them.
    """
    names, found = list(names), {}
    for of_tower in ([n for n in names if _IMAGE.search(n)], [n for n in names if not _IMAGE.search(n)]):
        blocks = {block for name in of_tower if (block := _block(name))}
        depth = {block: i for i, block in enumerate(sorted(blocks, reverse=True), start=1)}
        for name in of_tower:
            block = _block(name)
            found[name] = 0 if _HEAD.search(name) else depth[block] if block else len(blocks) + 1
    return found


def in_block(name: str) -> bool:
    """Whether a parameter is in one of the blocks of a tower."""
    return _block(name) is not None


def _block(name: str) -> tuple[int, int] | None:
    """The stage (0 in a Transformer) and number of the block that a parameter is in, if it is in one."""
    match = _BLOCK.search(name)
    return (int(match[1] or 0), int(match[2])) if match else None


def _what_learns(names: list[str], word: str, number: int) -> set[str]:
    """The names of what learns, adapters aside."""
    match word:
        case "all":
            return set(names)
        case "image":
            return {name for name in names if _IMAGE.search(name) or name == "logit_scale"}
        case "text":
            return {name for name in names if not _IMAGE.search(name)}
        case "last":
            depth = {name: d for name, d in depths(names).items() if d == 0 or _block(name)}
            if number > (most := max(depth.values())):
                raise ConfigError(f"learn is 'last:{number}', but the towers of this model have at most {most} blocks")
            return {name for name, d in depth.items() if d <= number}
        case _:
            return {"logit_scale"}


def _linear_layers(model: CLIP) -> list[tuple[nn.Module, str, Tensor]]:
    """The weights that adapters go on: each with the module it is in and its name there."""
    found: list[tuple[nn.Module, str, Tensor]] = []
    for module in model.modules():
        linears: list[nn.Linear] = []
        if isinstance(module, Attention):
            found.append((module, "in_proj_weight", module.in_proj_weight))
            linears = [module.out_proj]
        elif isinstance(module, MLP):
            linears = [module.c_fc, module.c_proj]
        elif isinstance(module, AttentionPool2d):
            linears = [module.q_proj, module.k_proj, module.v_proj, module.c_proj]
        found += [(linear, "weight", linear.weight) for linear in linears]
    return found


def _stand_still(norm: _BatchNorm, _inputs: object) -> None:
    """Before each forward: the running statistics of what does not learn are used, and not moved."""
    if not norm.weight.requires_grad:
        norm.eval()
