"""The pickle inside a weight file, read without running anything.

Pickle is a language whose programs can call any function, and Python's reader of it can be crashed or made to eat all
memory. This interpreter knows only the opcodes and the handful of names that weights need, each name bound to a
function of this file. Whatever else a file asks for, it is refused.
"""

import io
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import CheckpointError, UnsafeCheckpointError

FindStorage = Callable[[str, torch.dtype, int], Tensor]

# Limits that no published checkpoint comes near, optimizer state included.
_OPCODE_LIMIT = 2_000_000
NAME_LIMIT = 500

STORAGES = {
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


class ScriptObject:
    """A TorchScript module as its pickle describes it: a bag of attributes, and no code."""

    def __init__(self, *_: Any):
        self.attributes: dict[str, Any] = {}


def _empty() -> dict[str, Any]:  # and not `dict`, which takes what it is to hold
    return {}


def _first(value: Any, *_: Any) -> Any:
    return value


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor) or storage.dim() != 1 or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("not the parts of a tensor")
    if len(size) > 8 or any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError("not the size of a tensor")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    count = math.prod(size)
    if count > len(storage) or (count and last >= len(storage)):  # strides of 0 would make much of little
        raise ValueError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _empty,
    ("torch", "Size"): _first,
    ("torch", "device"): _first,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): _first,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_LITERALS |= {"BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


class Interpreter:
    """Runs a pickle's opcodes over plain values: nothing on its stack has methods that a pickle could reach."""

    def __init__(self, path: Path, storage: FindStorage):
        self.path = path
        self.find_storage = storage
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, program: io.BytesIO) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if number == _OPCODE_LIMIT:
                raise CheckpointError(f"{self.path}: its pickle is longer than any that describes weights")
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _EMPTY:
                self.stack.append(_EMPTY[opcode.name]())
            elif opcode.name in _TUPLES:
                self.stack.append(tuple(self._pop(_TUPLES[opcode.name])))
            else:
                self._step(opcode.name, argument)
        raise ValueError("no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "TUPLE":
                items = self._pop_marked()
                self.stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                self._extend(self._pop(1) if name == "APPEND" else self._pop_marked())
            case "SETITEM" | "SETITEMS":
                self._update(self._pop(2) if name == "SETITEM" else self._pop_marked())
            case "GLOBAL":
                stack.append(self._global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._global(*self._pop(2)))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                stack.append(self._call(*self._pop(2)))
            case "BUILD":
                self._build(stack.pop())
            case "POP":
                stack.pop()
            case "PROTO" | "FRAME":
                pass
            case _ if name in _CALLS:
                raise self._refusal(argument.replace(" ", ".") if name == "INST" else f"the opcode {name}")
            case _:
                raise ValueError("an opcode that weights do not need")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("not a list")
        self.stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError("not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples overflow the stack that hashes them, and huge integers can all be given the same hash.
            if not (len(key) <= NAME_LIMIT if type(key) is str else type(key) is int and abs(key) < 2**60):
                raise ValueError("a key that is no name")
            target[key] = value

    def _global(self, module: str, name: str) -> Any:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        if module.startswith("__torch__"):
            return ScriptObject
        if module == "torch" and name.endswith("Storage") and name not in STORAGES:
            raise CheckpointError(f"{self.path}: has a tensor in a {shown(name)}, which weights are not")
        if (module, name) not in _KNOWN:
            raise self._refusal(f"{module}.{name}")
        return _KNOWN[module, name]

    def _storage(self, identity: Any) -> Tensor:
        if (
            type(identity) is not tuple or len(identity) not in (5, 6) or any(identity[5:])
        ):  # the sixth: None, or a view
            raise ValueError("unknown persistent id")
        kind, dtype, key, _, count = identity[:5]
        if (type(kind), type(dtype), type(key), type(count)) != (str, torch.dtype, str, int) or kind != "storage":
            raise ValueError("unknown persistent id")
        return self.find_storage(key, dtype, count)

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple or len(arguments) > 8:
            raise ValueError("not the arguments of a function")
        return function(*arguments)  # nothing that can be called gets here but what _global gave

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, ScriptObject):
            target.attributes = state if type(state) is dict else {}
        elif type(target) is not dict:  # the state of an OrderedDict, `_metadata`, is of no use
            raise self._refusal(f"{type(target).__name__}.__setstate__")

    def _refusal(self, name: str) -> UnsafeCheckpointError:
        what = f"refused, because reading it would run {shown(name)}"
        return UnsafeCheckpointError(f"{self.path}: {what}; none of it was run")


def shown(name: str) -> str:
    """A name out of a file, fit for a line of a terminal."""
    return "".join(character if character.isprintable() else "?" for character in name[:100])
