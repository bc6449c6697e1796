"""A pickle machine for PyTorch's files that imports nothing and calls only its own functions.

A pickle is a program, and Python's unpickler calls whatever it names. This machine builds plain containers and
describes tensors without allocating them. Objects of any other class (``argparse.Namespace``, NumPy scalars, paths,
dates) become ``Skipped``, which holds only the class name; they are never built.
"""

import functools
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tl_jax.utils.errors import UserError

_DTYPES = {name: np.dtype(name) for name in "float64 float32 float16 complex64 complex128 bool uint8 int8".split()}
_DTYPES |= {name: np.dtype(name) for name in "int64 int32 int16 uint64 uint32 uint16".split()}
_DTYPES |= {name: np.dtype(getattr(ml_dtypes, name)) for name in "bfloat16 float8_e4m3fn float8_e5m2".split()}
_KINDS = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"}
_KINDS |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Untyped": "uint8"}
_KINDS |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}
_CONSTANTS: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_CONSTANTS |= {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
_LITERALS = set("INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING".split())
_LITERALS |= set("UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split())
# Items that may be copied per opcode (real files need two or three), and initially.
_ITEMS_PER_OPCODE, _INITIAL_ITEMS = 16, 1_000_000
_MAX_KEY = 2**60  # a larger integer may share its hash with others
_MAX_MEMO = 2**32  # limit of pickle's memo
_MAX_NAME = 500  # characters of a module and class name


class Storage(NamedTuple):
    """``numel`` elements of the storage ``key``, from element ``start`` on."""

    key: str
    dtype: np.dtype
    numel: int
    start: int = 0


@dataclass
class Tensor:
    """A view of a storage, with offset and stride in elements of ``dtype``. No field is checked yet."""

    storage: Any = None
    offset: Any = 0
    size: Any = ()
    stride: Any = ()
    dtype: Any = None


class Skipped(NamedTuple):
    """Placeholder for an object or class that is not built; ``name`` is the class name."""

    name: str


def refusal_error(path: Path, what: str) -> UserError:
    """Return the error for content ``what`` of a pickle that is not allowed."""
    what = " ".join(what.split())[:200]
    return UserError(
        f"{path}: refused to load {what}, only tensors in plain containers are allowed; "
        "save the model's state_dict() alone, as .pth or .safetensors"
    )


class Budget:
    """Limit of the items that may be copied or inspected, since an object stored once may be used any number of times.

    Without it, a 0.2 MB pickle with one list and many calls on it expands to gigabytes.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, _INITIAL_ITEMS

    def earn(self) -> None:
        """Allow more items, for an opcode that was read."""
        self._left += _ITEMS_PER_OPCODE

    def spend(self, items: int) -> None:
        """Raise ``UserError`` if more items are requested than the opcodes allow."""
        self._left -= items
        if self._left < 0:
            raise UserError(
                f"{self._path}: refused to load it, it needs far more work than its size allows; "
                "download the file again, or save the model's state_dict() alone"
            )


class _Call(NamedTuple):
    """One of our functions that a pickle may call, under the name of PyTorch's own."""

    run: Callable[..., Any]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *flags: Any, dtype: Any = None) -> Tensor:
    # flags: requires_grad, hooks, and lazy negation or conjugation.
    if len(flags) > 2 and flags[2]:
        raise ValueError("a tensor with lazy negation or conjugation")
    return Tensor(storage, offset, size, stride, storage.dtype if dtype is None else dtype)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *flags: Any
) -> Any:
    return _tensor(storage, offset, size, stride, grad, hooks, *flags, dtype=dtype)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _set_items(target: Any, items: list[Any], budget: Budget) -> Any:
    """Put the alternating keys and values of ``items`` into the dictionary ``target``."""
    if len(items) % 2 or not isinstance(target, dict | Skipped):
        raise ValueError(f"items set on {type(target).__name__}")
    if isinstance(target, Skipped):
        return target
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys name no tensor. Hashing a deep tuple would overflow the C stack, and colliding numbers would make
        # insertion quadratic.
        if isinstance(key, str):
            budget.spend(1 + len(key) // 64)  # equal keys are compared character by character
            target[key] = value
        elif key is None or (isinstance(key, int) and abs(key) < _MAX_KEY):
            target[key] = value
    return target


def _check_sequence(items: Any) -> Any:
    if not isinstance(items, list | tuple):
        raise ValueError(f"items of {type(items).__name__}")
    return items


def _ordered_dict(budget: Budget, pairs: Any = ()) -> Any:
    # Python 2 pickles an OrderedDict as a list of pairs, Python 3 fills an empty one.
    return _set_items(
        OrderedDict(),
        [item for key, value in map(_check_sequence, _check_sequence(pairs)) for item in (key, value)],
        budget,
    )


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *_: {},
    "torch.Size": lambda size=(): tuple(_check_sequence(size)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}


# Objects of protocols 4 and 5 that need no class: opcode -> number of items it pops.
_SKIPPED = {"EMPTY_SET": 0, "BYTEARRAY8": 0, "NEWOBJ_EX": 3}


class PickleMachine:
    """Runs the pickles of the file ``path`` (for messages only) and records the storages that they use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budget = Budget(path)
        self.storages: dict[str, Storage] = {}
        self._calls = {**_CALLS, "collections.OrderedDict": functools.partial(_ordered_dict, self.budget)}

    def run(self, stream: Any) -> Any:
        """Return the object of the pickle at the position of ``stream``, and advance past it.

        An object of a class that is not allowed is returned as ``Skipped``. Raises ``UserError`` for an opcode or call
        that is not allowed, or for work beyond the budget. A malformed pickle raises ``ValueError``, ``TypeError``,
        ``LookupError`` or ``AttributeError``. Time and memory are proportional to the stream.
        """
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for code, argument, _ in pickletools.genops(stream):
            self.budget.earn()
            if code.name in _LITERALS:
                self.stack.append(argument)
            elif code.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[code.name]())
            elif code.name not in ("PROTO", "FRAME", "STOP"):
                self._step(code.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "TUPLE" | "LIST":
                items = self._since_mark()
                self.stack.append(tuple(items) if name == "TUPLE" else items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "DICT":
                items = self._since_mark()
                self.stack.append(_set_items({}, items, self.budget))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._since_mark()
                if isinstance(self.stack[-1], list):
                    self.stack[-1].extend(items)
                elif not isinstance(self.stack[-1], Skipped):  # a deque, or a subclass of list
                    raise ValueError(f"items appended to {type(self.stack[-1]).__name__}")
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._since_mark()
                _set_items(self.stack[-1], items, self.budget)
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if not 0 <= argument < _MAX_MEMO:
                    raise ValueError("an object with an impossible number")
                self.memo[argument] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(self._resolve_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(self._resolve_global(*self._pop(2)))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(self._call(*self._pop(2)))
            case "BUILD":
                self._build(*self._pop(1))
            case "EMPTY_SET" | "BYTEARRAY8" | "NEWOBJ_EX":
                self._pop(_SKIPPED[name])
                self.stack.append(Skipped(f"pickle opcode {name}"))
            case "ADDITEMS" | "FROZENSET":
                self._since_mark()
                if name == "FROZENSET":
                    self.stack.append(Skipped(f"pickle opcode {name}"))
            case "BINPERSID":
                self.stack.append(self._storage(*self._pop(1)))
            case _:
                raise self._refusal(f"pickle opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("pickle stack underflow")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _refusal(self, what: str) -> UserError:
        return refusal_error(self.path, what)

    def _resolve_global(self, module: Any, name: Any) -> Any:
        """Return the placeholder or function for a global of the pickle; nothing is imported."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global name is not a string")
        if len(module) + len(name) > _MAX_NAME:
            raise ValueError("a global name is too long")
        self.budget.spend(len(module) + len(name))
        if (full := f"{module}.{name}") in self._calls:
            return _Call(self._calls[full])
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module in ("torch", "torch.cuda", "torch.storage"):
            if (kind := name.removesuffix("Storage")) != name and kind in _KINDS:
                return Storage("", _DTYPES[_KINDS[kind]], 0)
            if (kind := name.removesuffix("Tensor")) != name and kind in _KINDS:
                return _Call(lambda: Tensor())  # torch 0.1 pickles an empty tensor, which BUILD then describes
        return Skipped(full)

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Skipped):
            return function
        if not isinstance(function, _Call) or type(arguments) is not tuple:
            raise self._refusal(f"a call of {type(function).__name__}")
        self.budget.spend(len(arguments))
        self.budget.spend(sum(len(argument) for argument in arguments if isinstance(argument, list | tuple)))
        return function.run(*arguments)

    def _build(self, state: Any) -> None:
        """Apply a state to the object on top: torch 0.1 describes tensors this way; other states are ignored."""
        target = self.stack[-1]
        if isinstance(target, Tensor) and target.storage is None:
            self.budget.spend(len(_check_sequence(state)))
            target.__dict__.update(vars(_tensor(*state)))
        elif not isinstance(target, Tensor | OrderedDict | Skipped):
            raise self._refusal(f"state set on {type(target).__name__}")

    def _storage(self, identity: Any) -> Any:
        """Return the storage of a persistent id: ("storage", type, key, device, numel[, (view key, start, numel)]).

        Before torch 1.6 module classes also had one, ("module", class, file, source); these are skipped.
        """
        if isinstance(identity, tuple) and identity[:1] == ("module",) and isinstance(identity[1], Skipped):
            return identity[1]
        self.budget.spend(len(_check_sequence(identity)))
        tag, kind, key, _, numel, *view = identity
        if tag != "storage" or not isinstance(kind, Storage) or not isinstance(key, str):
            raise self._refusal(f"a persistent object tagged {tag if isinstance(tag, str) else type(tag).__name__}")
        self.budget.spend(len(key) // 64)
        root = self.storages.setdefault(key, Storage(key, kind.dtype, numel))
        if view and view[0] is not None:
            _, start, numel = view[0]
            return Storage(key, root.dtype, numel, start)
        return Storage(key, kind.dtype, numel)
