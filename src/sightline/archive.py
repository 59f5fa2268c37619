"""Weight files to tensors, without running anything that they carry.

A `.pt` file is a zip of raw tensors and a pickle that says how they hang together; `weight_pickle` reads that pickle by
an interpreter of its own. `.safetensors` files hold no pickle.
"""

import io
import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sightline.errors import CheckpointError
from sightline.weight_pickle import NAME_LIMIT, STORAGES, FindStorage, Interpreter, ScriptObject, shown

State = dict[str, Tensor]

# Limits that no published checkpoint comes near, optimizer state included: its `data.pkl` is of a few MiB at most.
_PICKLE_LIMIT = 16 * 2**20
_ATTRIBUTE_LIMIT = 200_000

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {*STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2}


def read_tensors(path: Path) -> State:
    """The named tensors of a weight file, mapped from disk: nothing is copied until it is used.

    Reads `.safetensors`, state dicts and training checkpoints of `torch.save`, and TorchScript archives.

    Raises:
        CheckpointError: if the file is damaged or holds no named tensors.
        UnsafeCheckpointError: if reading it would run code.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if path.suffix == ".safetensors":
                state = _read_safetensors(path)
            elif file.read(2) == b"PK":
                state = _flatten(_TorchArchive(path, file).load(), path)
            else:
                state = _flatten(_read_legacy(path, file), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    for name, tensor in state.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{path}: the tensor {shown(name)} is of {tensor.dtype}, which weights are not")
    return state


def _open_at_once(name: str, flags: int) -> int:
    """Opens without waiting for the other end of a named pipe; and refuses whatever is not a file."""
    descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{name}: is a folder, a named pipe or a device, not a file")
    return descriptor


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({error})") from None


# ── the two containers of torch.save ─────────────────────────────────────────────────────────────────────────────────


class _TorchArchive:
    """The zip that `torch.save` and `torch.jit.save` write: `NAME/data.pkl` and one entry a storage, uncompressed."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.file = file
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def load(self) -> Any:
        try:
            self.zip = zipfile.ZipFile(self.file)
            self.entries = {info.filename.partition("/")[2]: info for info in self.zip.infolist()}
            if "data.pkl" not in self.entries:
                raise CheckpointError(f"{self.path}: is a zip without weights (no data.pkl in it)")
            if "byteorder" in self.entries and self._read("byteorder", 16) != b"little":
                raise CheckpointError(f"{self.path}: is big-endian, which Sightline does not read")
            program = io.BytesIO(self._read("data.pkl", _PICKLE_LIMIT))
            self.bytes = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)
            return Interpreter(self.path, self.storage).run(program)
        except CheckpointError:
            raise
        except Exception as error:  # a hostile file can raise anything at all
            raise CheckpointError(f"{self.path}: is damaged ({type(error).__name__} while reading it)") from None

    def _read(self, name: str, limit: int) -> bytes:
        info = self.entries[name]
        if info.file_size > limit:
            raise CheckpointError(f"{self.path}: its {name} is larger than any that describes weights")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path}: its {name} is compressed, which torch.save never does")
        return self.zip.read(info)

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """The tensor of a whole storage, mapped from the archive."""
        if (key, dtype) not in self.storages:
            info = self.entries.get(f"data/{key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                what = f"the tensor data/{shown(key)} is missing or not of its stated size"
                raise CheckpointError(f"{self.path}: {what}")
            # A local header is 30 bytes, the last four of them the lengths of the name and the extra field after it.
            name_length, extra_length = struct.unpack_from("<HH", self.bytes, info.header_offset + 26)
            offset = info.header_offset + 30 + name_length + extra_length
            self.storages[key, dtype] = _map(self.bytes, dtype, count, offset)
        return self.storages[key, dtype]


def _map(data: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    if not count:  # torch.frombuffer takes no empty buffers
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=offset)


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    """A file of `torch.save` from before PyTorch 1.6: five pickles and then the storages, each after its length.

    The pickle of the tensors comes before their bytes, so it is read twice: first for the storages that it names.
    """
    place = 0
    sizes: dict[str, tuple[torch.dtype, int]] = {}
    storages: State = {}

    def unpickle(storage: FindStorage) -> Any:
        nonlocal place
        program = io.BytesIO(data[place : place + _PICKLE_LIMIT])
        value = Interpreter(path, storage).run(program)
        place += program.tell()
        return value

    def note(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if sizes.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError("a storage of two sizes")
        return torch.empty(count, dtype=dtype, device="meta")

    try:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        magic, _, system = (unpickle(note) for _ in range(3))
        if magic != _LEGACY_MAGIC or system["little_endian"] is not True:
            raise ValueError("not of torch.save, or big-endian")
        start = place
        unpickle(note)
        keys = unpickle(note)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise ValueError("not the keys of storages")
        for key in keys:
            dtype, count = sizes.pop(key)  # once: a key named again is refused
            if struct.unpack_from("<q", data, place) != (count,):
                raise ValueError("a storage not of its stated size")
            storages[key] = _map(data, dtype, count, place + 8).clone()  # to an address that suits its type
            place += 8 + count * dtype.itemsize
        place = start
        return unpickle(lambda key, *_: storages[key])
    except CheckpointError:
        raise
    except Exception:  # a hostile file can raise anything at all
        raise CheckpointError(f"{path}: is not a whole weight file (.safetensors, or .pt of torch.save)") from None


# ── what the pickle held ─────────────────────────────────────────────────────────────────────────────────────────────


def _flatten(root: Any, path: Path) -> State:
    """The state dict in whatever the file held: itself, a training checkpoint's, or a TorchScript module's."""
    state: State = {}
    if isinstance(root, ScriptObject):
        try:
            _walk(root, "", state, iter(range(_ATTRIBUTE_LIMIT)))
        except RecursionError:
            raise CheckpointError(
                f"{path}: holds a TorchScript module that contains itself, or no end of them"
            ) from None
    else:
        for _ in range(8):  # not for ever: a dict can hold itself
            if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
                root = root["state_dict"]
        state = root if isinstance(root, dict) else {}
    state = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: holds no named tensors")
    return state


def _walk(module: ScriptObject, prefix: str, state: State, budget: Iterator[int]) -> None:
    """Collects the tensors of a module and those in it. A module can be in many, so the work is what is bounded."""
    if prefix.count(".") > 32 or len(prefix) > NAME_LIMIT:
        raise RecursionError
    for name, value in module.attributes.items():
        if next(budget, None) is None:
            raise RecursionError
        if isinstance(value, Tensor):
            state[f"{prefix}{name}"] = value
        elif isinstance(value, ScriptObject):
            _walk(value, f"{prefix}{name}.", state, budget)
