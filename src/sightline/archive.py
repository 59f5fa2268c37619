"""Weight files to tensors, without running anything that they carry.

A `.pt` file is a zip of raw tensors and a pickle that says how they hang together. Pickle is a language whose programs
can call any function, so the pickle is read here by an interpreter that knows only the handful of names that weights
need, each bound to a function of this file. Whatever else it names, the file is refused.
"""

import math
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sightline.errors import CheckpointError, UnsafeCheckpointError

State = dict[str, Tensor]

_PICKLE_LIMIT = 64 * 2**20  # the largest published `data.pkl` is under one MiB
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_tensors(path: Path) -> State:
    """The named tensors of a weight file, mapped from disk: nothing is copied until it is used.

    Reads `.safetensors`, state dicts and training checkpoints of `torch.save`, and TorchScript archives.

    Raises:
        CheckpointError: if the file is damaged or holds no named tensors.
        UnsafeCheckpointError: if reading it would run code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if path.suffix == ".safetensors":
                return _read_safetensors(path)
            if head[:2] == b"PK":
                return _flatten(_TorchArchive(path, file).load(), path)
        return _flatten(_read_legacy(path), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({error})") from None


def _read_legacy(path: Path) -> Any:
    """A file of `torch.save` from before PyTorch 1.6, through PyTorch's own restricted reader."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" not in str(error) and "nsupported" in str(error):
            raise UnsafeCheckpointError(f"{path}: refused, because reading it would run code; none was run") from None
        raise CheckpointError(f"{path}: is not a weight file (.safetensors, or .pt of torch.save)") from None
    except Exception:
        raise CheckpointError(f"{path}: is not a whole weight file (.safetensors, or .pt of torch.save)") from None


class _ScriptObject:
    """A TorchScript module as its pickle describes it: a bag of attributes, and no code."""

    def __init__(self, *_: Any):
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _TorchArchive:
    """The zip that `torch.save` and `torch.jit.save` write: `NAME/data.pkl` and one entry a storage, uncompressed."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.file = file
        self.storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        try:
            self.zip = zipfile.ZipFile(self.file)
            self.entries = {info.filename.partition("/")[2]: info for info in self.zip.infolist()}
            if "data.pkl" not in self.entries:
                raise CheckpointError(f"{self.path}: is a zip without weights (no data.pkl in it)")
            if self.entries["data.pkl"].file_size > _PICKLE_LIMIT:
                raise CheckpointError(f"{self.path}: its data.pkl is larger than any that describes weights")
            if "byteorder" in self.entries and self.zip.read(self.entries["byteorder"]) != b"little":
                raise CheckpointError(f"{self.path}: is big-endian, which Sightline does not read")
            self.bytes = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)
            with self.zip.open(self.entries["data.pkl"]) as data:
                return _WeightUnpickler(data, self).load()
        except CheckpointError:
            raise
        except Exception as error:  # a hostile pickle can raise anything at all
            raise CheckpointError(f"{self.path}: is damaged ({type(error).__name__} while reading it)") from None

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """The tensor of a whole storage, mapped from the archive."""
        if key not in self.storages:
            info = self.entries.get(f"data/{key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                raise CheckpointError(f"{self.path}: the tensor data/{key} is missing or not of its stated size")
            # A local header is 30 bytes, the last four of them the lengths of the name and the extra field after it.
            name_length, extra_length = struct.unpack_from("<HH", self.bytes, info.header_offset + 26)
            offset = info.header_offset + 30 + name_length + extra_length
            if count:
                self.storages[key] = torch.frombuffer(self.bytes, dtype=dtype, count=count, offset=offset)
            else:
                self.storages[key] = torch.empty(0, dtype=dtype)
        return self.storages[key]


class _WeightUnpickler(pickle.Unpickler):
    """Knows the names that weights need, and no other."""

    def __init__(self, data: Any, archive: _TorchArchive):
        super().__init__(data, encoding="utf-8")
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _ScriptObject
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _first
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise UnsafeCheckpointError(
                f"{self.archive.path}: refused, because reading it would run {module}.{name}; none of it was run"
            ) from None

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError("unknown persistent id")
        return self.archive.storage(str(key), dtype, int(count))


def _first(value: Any, *_: Any) -> Any:
    return value


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if min((offset, *size, *stride), default=0) < 0:
        raise ValueError("negative size")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(storage):
        raise ValueError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset)


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
}


def _flatten(root: Any, path: Path) -> State:
    """The state dict in whatever the file held: itself, a training checkpoint's, or a TorchScript module's."""
    if isinstance(root, _ScriptObject):
        state: State = {}
        _walk(root, "", state)
    else:
        while isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
            root = root["state_dict"]
        state = root if isinstance(root, dict) else {}
    state = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: holds no named tensors")
    return state


def _walk(module: _ScriptObject, prefix: str, state: State, depth: int = 0) -> None:
    if depth > 32:
        raise CheckpointError("a TorchScript module that contains itself")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            state[prefix + str(name)] = value
        elif isinstance(value, _ScriptObject):
            _walk(value, f"{prefix}{name}.", state, depth + 1)
