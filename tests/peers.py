"""The published implementations that the tests compare with, imported in spite of what their packaging lacks.

Nothing in `src/` imports them. Warnings that their imports raise are theirs and are silenced here alone.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any

# Operators for which torchvision registers shape functions while it is imported. Its compiled half defines
# them, and a build for CUDA cannot load that half beside a CPU torch. A declaration is all the import needs.
_PAIR = "Tensor a, Tensor b"
_SHAPE = "SymInt n, SymInt c, SymInt h, SymInt w"
_CONV = "SymInt i, SymInt j, SymInt k, SymInt l, SymInt m, SymInt o, SymInt p, SymInt q, bool r"
_FIVE = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
_TORCHVISION_OPERATORS = (
    f"nms({_PAIR}, float t) -> Tensor",
    f"qnms({_PAIR}, float t) -> Tensor",
    f"roi_align({_PAIR}, float s, SymInt x, SymInt y, int t, bool u) -> Tensor",
    f"_roi_align_backward({_PAIR}, float s, SymInt x, SymInt y, {_SHAPE}, int t, bool u) -> Tensor",
    f"roi_pool({_PAIR}, float s, SymInt x, SymInt y) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_PAIR}, Tensor d, float s, SymInt x, SymInt y, {_SHAPE}) -> Tensor",
    f"ps_roi_align({_PAIR}, float s, SymInt x, SymInt y, int t) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_PAIR}, Tensor d, float s, SymInt x, SymInt y, int t, {_SHAPE}) -> Tensor",
    f"ps_roi_pool({_PAIR}, float s, SymInt x, SymInt y) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_PAIR}, Tensor d, float s, SymInt x, SymInt y, {_SHAPE}) -> Tensor",
    f"deform_conv2d({_PAIR}, Tensor d, Tensor e, Tensor f, {_CONV}) -> Tensor",
    f"_deform_conv2d_backward({_PAIR}, Tensor d, Tensor e, Tensor f, Tensor g, {_CONV}) -> {_FIVE}",
)
_declared: list[Any] = []  # torch forgets a declaration when the library object that made it goes


def import_torchvision() -> Any:
    """The module `torchvision`; of a build that does not fit this torch, its pure-Python part."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except (ImportError, OSError, RuntimeError):
            _forget("torchvision")
            _declare_operators()
            return importlib.import_module("torchvision")


def import_open_clip() -> Any:
    """The module `open_clip` (PyPI: open_clip_torch)."""
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("open_clip")


def import_openai_clip() -> Any:
    """The module `clip` (PyPI: openai-clip), which asks `pkg_resources` of old setuptools for `packaging`."""
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
            stand_in: Any = types.ModuleType("pkg_resources")
            stand_in.packaging = importlib.import_module("packaging")
            importlib.import_module("packaging.version")
            sys.modules["pkg_resources"] = stand_in
        return importlib.import_module("clip")


def import_transformers() -> Any:
    """The module `transformers`, which imports torchvision where there is one."""
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("transformers")


def _forget(package: str) -> None:
    """Drops what a failed import left behind, so that the next import starts anew."""
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _TORCHVISION_OPERATORS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _declared.append(library)
