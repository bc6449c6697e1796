"""Reader of PyTorch's ``.pth`` files, of both formats, without PyTorch and without running code in them.

The state dict may be the whole file, or an entry of a training checkpoint.
"""

import functools
import io
import math
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.pretrained.convert import format_names
from tl_jax.pretrained.unpickle import Budget, PickleMachine, Skipped, Storage, Tensor, refusal_error
from tl_jax.utils.errors import UserError

# In order of preference: averaged weights first, as in timm (``use_ema=True``).
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
STATE_DICT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "backbone",
)
# Entries that are never a network.
TRAINING_KEYS = re.compile(r".*(optim|sched|scaler|callbacks|loops|queue).*|amp", re.IGNORECASE)
_MAX_DEPTH = 3  # of nested entries: {"ema": {"module": {...}}}
_TENSOR_CLASSES = re.compile(r"torch\..*(rebuild|Tensor|Parameter).*")  # tensor classes, which must not be skipped
_KIND_NOTES = {"_rebuild_qtensor": " (a quantized tensor)", "_rebuild_sparse_tensor": " (a sparse tensor)"}


def find_state_dict(path: Path, tree: Any, budget: Budget) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the network by name, and notes about what was used and skipped.

    Args:
        path: the file, for messages.
        tree: content of the pickle.
        budget: limit of inspected items, since nested dictionaries may repeat one object many times.

    Raises:
        UserError: There is no state dict, or several without a usual name, an unsupported kind of tensor, or more items
            than the budget allows.
    """
    entries = {"/".join(keys): entry for keys, entry in _entries(tree, budget)}
    if not entries:
        raise _no_state_dict(path, tree, budget)
    sizes = {name: sum(map(_tensor_like, entry.values())) for name, entry in entries.items()}
    name = _preferred_entry(path, sizes)
    entry = entries[name]
    tensors = {key: value for key, value in entry.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in entry.items():
        if isinstance(value, Skipped) and _TENSOR_CLASSES.fullmatch(value.name):
            raise refusal_error(path, f"{str(key)[:80]!r}, a {_describe(value)}")
    notes = []
    alternatives = _alternatives(name, entries, tree)
    left_out = f"; dropped: {alternatives}" if alternatives else ""
    if name:
        ema = ", the averaged weights" if name.split("/")[0] in EMA_KEYS else ""
        notes.append(f"{path.name}: used {name!r}{ema}{left_out}")
    elif left_out:
        notes.append(f"{path.name}: used the tensors at the top level{left_out}")
    if skipped := [str(key) for key in entry if key not in tensors and not isinstance(entry[key], Mapping)]:
        notes.append(f"{path.name}: skipped {_quote_names(skipped)}, which are not tensors")
    return tensors, tuple(notes)


def _alternatives(name: str, entries: Mapping[str, dict[Any, Any]], tree: Any) -> str:
    """Return the names of alternatives: other state dicts, tensors at the top level, averages."""
    others = [entry_name for entry_name in entries if entry_name not in ("", name)]
    if name and "" in entries:
        others += [str(key) for key, value in entries[""].items() if _tensor_like(value)]
    if isinstance(tree, dict):
        others += [
            key
            for key in EMA_KEYS
            if isinstance(tree.get(key), Skipped) or (key in tree and key not in _top_keys(entries))
        ]
    return _quote_names(others) if others else ""


def _top_keys(names: Iterable[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def _entries(tree: Any, budget: Budget, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield the mappings that hold tensors by name, each with its keys."""
    if not isinstance(tree, dict) or (keys and TRAINING_KEYS.fullmatch(keys[-1])):
        return
    budget.spend(len(tree) + sum(map(len, keys)))
    if any(isinstance(key, str) and _tensor_like(value) for key, value in tree.items()):
        yield keys, tree
    if len(keys) < _MAX_DEPTH:
        for key, value in tree.items():
            if isinstance(key, str):
                yield from _entries(value, budget, (*keys, key))


def _tensor_like(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Skipped) and bool(_TENSOR_CLASSES.fullmatch(value.name)))


def _preferred_entry(path: Path, sizes: Mapping[str, int]) -> str:
    """Return the name of the entry to use: averaged weights, a usual name, or the only entry.

    Averages of parameters alone, without BatchNorm statistics, are skipped: they have fewer tensors than the network.
    """
    candidates = [top for top in (*EMA_KEYS, *STATE_DICT_KEYS) if top in _top_keys(sizes)]
    max_plain = max((sizes[name] for name in sizes if name.split("/")[0] in STATE_DICT_KEYS), default=0)
    for top in candidates:
        sizes_within = {name: size for name, size in sizes.items() if name.split("/")[0] == top}
        max_size = max(sizes_within.values())
        if top in EMA_KEYS and max_size < max_plain:
            continue
        largest = [name for name, size in sizes_within.items() if size == max_size]
        if len(largest) == 1:
            return largest[0]
        nested = {name.partition("/")[2]: max_size for name in largest}
        return f"{top}/{_preferred_entry(path, nested)}" if "" not in nested else top
    largest_entry = max(sizes, key=lambda name: sizes[name])
    if 10 * (sum(sizes.values()) - sizes[largest_entry]) <= sizes[largest_entry]:  # the others are queues or counters
        return largest_entry
    raise _ambiguous_error(path, list(sizes))


def _ambiguous_error(path: Path, names: list[str]) -> UserError:
    return UserError(
        f"{path}: holds several state dicts ({_quote_names(names)}); save one of them alone: "
        f'torch.save(torch.load(FILE)["{names[0].split("/")[0]}"], NEW_FILE)'
    )


def _no_state_dict(path: Path, tree: Any, budget: Budget) -> UserError:
    """Return the error for a file without named tensors; it names an unsupported class, if there is one."""
    skipped = next(_find_skipped(tree, budget), None)
    if skipped:
        return refusal_error(path, _describe(skipped))
    return UserError(f"{path}: holds no state dict; save it with torch.save(model.state_dict(), path)")


def _find_skipped(tree: Any, budget: Budget, depth: int = 0) -> Iterator[Skipped]:
    if isinstance(tree, Skipped):
        yield tree
    elif isinstance(tree, dict) and depth < _MAX_DEPTH:
        budget.spend(len(tree))
        for value in tree.values():
            yield from _find_skipped(value, budget, depth + 1)


def _describe(skipped: Skipped) -> str:
    return skipped.name + _KIND_NOTES.get(skipped.name.rpartition(".")[2], "")


def _quote_names(names: list[str]) -> str:
    return format_names([repr(name[:80]) for name in names])


_MAGIC = 0x1950A86A20F9469CFC6C  # starts every file of the format before torch 1.6
_MAX_RANK = 64  # limit of NumPy
# Errors that a damaged byte can cause in a parser. MemoryError is not one of them.
PARSE_ERRORS = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
PARSE_ERRORS += (struct.error, zipfile.BadZipFile, zlib.error)


def check_file(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a ``Path``. Raises UserError unless it is a readable file."""
    path = Path(path)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UserError(f"{path}: file not found, or not readable; check the path and its permissions")
    return path


def damaged_error(path: Path, reason: object) -> UserError:
    """Return the error for a damaged file; ``reason`` is shortened to one line."""
    text = " ".join(str(reason).split())[:200] or type(reason).__name__
    return UserError(f"{path}: damaged or truncated ({text}); download it or export it again")


class Contents(NamedTuple):
    """Content of a file: its arrays by name, and notes about what was used and dropped."""

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``read_checkpoint``."""
    return read_checkpoint(path).arrays


def read_checkpoint(path: str | os.PathLike[str]) -> Contents:
    """Return the tensors of a state dict saved by ``torch.save``, in its order; tied tensors share memory.

    In a training checkpoint, the state dict is chosen by ``find_state_dict``. The arrays are read-only.

    Raises:
        UserError: The file is damaged, big-endian, or holds no tensors in plain containers.
    """
    path = check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4:
                raise ValueError(f"{len(head)} bytes")
            return _read_zip(path) if head == b"PK\x03\x04" else _read_stream(path, file.fileno())
    except PARSE_ERRORS as error:
        raise damaged_error(path, error) from error


def _read_zip(path: Path) -> Contents:
    """Read the format of torch 1.6 and later: a zip of ``NAME/data.pkl`` and one ``NAME/data/KEY`` per storage."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if not names:
            raise UserError(f"{path}: a zip, but not of torch.save (no data.pkl); save the model's state_dict() alone")
        root = names[0].removesuffix("data.pkl")
        # PyTorch never compresses, so the members cannot exceed the file size.
        if sum(max(info.file_size, info.compress_size) for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members exceed its size")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise _big_endian(path)
        machine = PickleMachine(path)
        tree = machine.run(io.BytesIO(archive.read(f"{root}data.pkl")))
        return _arrays(path, tree, machine.budget, lambda key: archive.read(f"{root}data/{key}"))


def _read_stream(path: Path, fileno: int) -> Contents:
    """Read the format before torch 1.6: five pickles, then the element count and elements of each storage."""
    with mmap.mmap(fileno, 0, access=mmap.ACCESS_READ) as stream:  # unlike a file's, read(n) never allocates more
        if stream[257:262] == b"ustar":
            raise UserError(f"{path}: a tar of torch 0.1; load it and save it again with a current PyTorch")
        machine = PickleMachine(path)
        magic = machine.run(stream)
        if isinstance(magic, Skipped):  # pickle.dump of an object
            raise refusal_error(path, magic.name)
        if magic != _MAGIC:
            raise ValueError("not a file of torch.save")
        machine.run(stream)  # the format version; only one exists
        if not machine.run(stream)["little_endian"]:
            raise _big_endian(path)
        tree = machine.run(stream)
        spans: dict[str, tuple[int, int]] = {}
        keys = machine.run(stream)
        start = stream.tell()
        for key in keys:
            if not isinstance(key, str):  # hashing a deep tuple would overflow the C stack
                raise ValueError("a storage key is not text")
            (numel,) = struct.unpack_from("<q", stream, start)
            end = start + 8 + numel * machine.storages[key].dtype.itemsize
            if not start < end <= len(stream) or numel != machine.storages[key].numel:
                raise ValueError(f"storage {key} does not fit")
            spans[key] = (start + 8, end)
            start = end
        return _arrays(path, tree, machine.budget, lambda key: stream[slice(*spans[key])])


def _big_endian(path: Path) -> UserError:
    return UserError(f"{path}: written by a big-endian machine; load it and save it again on a little-endian one")


def _arrays(path: Path, tree: Any, budget: Budget, load: Callable[[str], bytes]) -> Contents:
    """Return the state dict within ``tree`` as arrays; ``load`` returns the bytes of a storage, once each."""
    tensors, notes = find_state_dict(path, tree, budget)
    load = functools.cache(load)
    # A boolean is 0 or 1. Converted once, since thousands of tensors may share the bytes.
    load_bool = functools.cache(lambda key: (np.frombuffer(load(key), np.uint8) != 0).tobytes())
    return Contents({key: _array(tensor, load, load_bool) for key, tensor in tensors.items()}, notes)


def _array(tensor: Tensor, load: Callable[[str], bytes], load_bool: Callable[[str], bytes]) -> np.ndarray:
    """Return the view of its storage that ``tensor`` describes. Raises ``ValueError`` if it does not fit."""
    storage, dtype, size, stride = tensor.storage, tensor.dtype, tensor.size, tensor.stride
    if not (isinstance(storage, Storage) and isinstance(dtype, np.dtype) and type(size) is type(stride) is tuple):
        raise ValueError("a tensor without storage, type or size")
    if len(size) != len(stride) or len(size) > _MAX_RANK:
        raise ValueError("a tensor of impossible rank")
    numbers = (storage.numel, storage.start, tensor.offset, *size, *stride)
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a tensor of impossible size")
    if math.prod(size) == 0:
        return np.zeros(size, dtype)
    num_elements = tensor.offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    storage_bytes = storage.numel * storage.dtype.itemsize
    # An expanded tensor (stride 0) may have any size, and copying it would allocate that.
    if max(num_elements, math.prod(size)) * dtype.itemsize > storage_bytes:
        raise ValueError("a tensor larger than its storage; if it was expanded, save tensor.contiguous()")
    content, start = (load_bool if dtype.kind == "b" else load)(storage.key), storage.start * storage.dtype.itemsize
    if start + storage_bytes > len(content):
        raise ValueError("a storage larger than its bytes")
    strides = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, content, start + tensor.offset * dtype.itemsize, strides)
