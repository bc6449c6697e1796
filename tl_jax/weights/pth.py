"""Read PyTorch's ``.pth`` files, of both formats, without PyTorch and without running anything that they carry."""

import functools
import io
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.errors import UserError
from tl_jax.weights.checkpoint import state_dict
from tl_jax.weights.unpickle import Budget, Machine, Skipped, Storage, Tensor, refusal

_MAGIC = 0x1950A86A20F9469CFC6C  # opens every file of the format before torch 1.6
_RANKS = 64  # dimensions of NumPy's arrays
# What a mangled byte can provoke in a parser. A MemoryError is no such thing and stays what it is.
DAMAGE = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
DAMAGE += (struct.error, zipfile.BadZipFile, zlib.error)


def existing(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a ``Path``; raise ``UserError`` unless it is a file that can be read."""
    path = Path(path)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UserError(f"{path}: no such file, or not readable; check the path and its permissions")
    return path


def damaged(path: Path, reason: object) -> UserError:
    """Return the error for a file whose bytes make no sense; ``reason`` is squeezed into its one line."""
    text = " ".join(str(reason).split())[:200] or type(reason).__name__
    return UserError(f"{path}: damaged or cut short ({text}); download it or export it again")


class Contents(NamedTuple):
    """What a file holds: its arrays by name, and what was taken and left out of it, a line each."""

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``read_checkpoint``."""
    return read_checkpoint(path).arrays


def read_checkpoint(path: str | os.PathLike[str]) -> Contents:
    """Return the tensors of a state dict saved by ``torch.save``, in its order; tied tensors share memory.

    Of the checkpoint of a training run the state dict in it is taken, as ``checkpoint.state_dict`` says. The arrays are
    read-only.

    Raises ``UserError`` when the file is damaged, big-endian, or holds no tensors in plain containers.
    """
    path = existing(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4:
                raise ValueError(f"{len(head)} bytes")
            return _read_zip(path) if head == b"PK\x03\x04" else _read_stream(path, file.fileno())
    except DAMAGE as error:
        raise damaged(path, error) from error


def _read_zip(path: Path) -> Contents:
    """Read the format of torch 1.6 and later: a zip of ``NAME/data.pkl`` and one ``NAME/data/KEY`` per storage."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if not names:
            raise UserError(f"{path}: a zip, but not of torch.save (no data.pkl); save the model's state_dict() alone")
        root = names[0].removesuffix("data.pkl")
        # PyTorch stores and never compresses, so no member may claim more bytes than the file has.
        if sum(max(info.file_size, info.compress_size) for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members claim more bytes than it has")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise _big_endian(path)
        machine = Machine(path)
        tree = machine.run(io.BytesIO(archive.read(f"{root}data.pkl")))
        return _arrays(path, tree, machine.budget, lambda key: archive.read(f"{root}data/{key}"))


def _read_stream(path: Path, fileno: int) -> Contents:
    """Read the format before torch 1.6: five pickles, then for each storage its element count and its elements."""
    with mmap.mmap(fileno, 0, access=mmap.ACCESS_READ) as stream:  # its read(n), unlike a file's, never allocates more
        if stream[257:262] == b"ustar":
            raise UserError(f"{path}: a tar of torch 0.1; load it and save it again with a current PyTorch")
        machine = Machine(path)
        magic = machine.run(stream)
        if isinstance(magic, Skipped):  # pickle.dump of an object
            raise refusal(path, magic.name)
        if magic != _MAGIC:
            raise ValueError("it is not a file of torch.save")
        machine.run(stream)  # the version of the format: there was only ever one
        if not machine.run(stream)["little_endian"]:
            raise _big_endian(path)
        tree = machine.run(stream)
        spans: dict[str, tuple[int, int]] = {}
        keys = machine.run(stream)
        start = stream.tell()
        for key in keys:
            if not isinstance(key, str):  # hashing a deep tuple would overflow the C stack
                raise ValueError("a storage whose key is no text")
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
    """Return the state dict within ``tree`` as arrays; ``load`` gives the bytes of a storage and is asked once each."""
    tensors, notes = state_dict(path, tree, budget)
    load = functools.cache(load)
    # A boolean is 0 or 1. The bytes are turned once, since thousands of tensors may share them.
    truth = functools.cache(lambda key: (np.frombuffer(load(key), np.uint8) != 0).tobytes())
    return Contents({key: _array(tensor, load, truth) for key, tensor in tensors.items()}, notes)


def _array(tensor: Tensor, load: Callable[[str], bytes], truth: Callable[[str], bytes]) -> np.ndarray:
    """Return the view of its storage that ``tensor`` describes, or raise ``ValueError`` where it does not fit."""
    storage, dtype, size, stride = tensor.storage, tensor.dtype, tensor.size, tensor.stride
    if not (isinstance(storage, Storage) and isinstance(dtype, np.dtype) and type(size) is type(stride) is tuple):
        raise ValueError("a tensor without storage, type or size")
    if len(size) != len(stride) or len(size) > _RANKS:
        raise ValueError("a tensor of impossible rank")
    numbers = (storage.numel, storage.start, tensor.offset, *size, *stride)
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a tensor of impossible size")
    if math.prod(size) == 0:
        return np.zeros(size, dtype)
    reach = tensor.offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    room = storage.numel * storage.dtype.itemsize
    # An expanded tensor (stride 0) may be as large as it likes, and whoever copies it would allocate all of that.
    if max(reach, math.prod(size)) * dtype.itemsize > room:
        raise ValueError("a tensor larger than its storage; if it was expanded, save tensor.contiguous()")
    content, start = (truth if dtype.kind == "b" else load)(storage.key), storage.start * storage.dtype.itemsize
    if start + room > len(content):
        raise ValueError("a storage larger than its bytes")
    strides = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, content, start + tensor.offset * dtype.itemsize, strides)
