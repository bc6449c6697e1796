"""Safety checks of weight files, before their content is trusted or passed to a C library."""

import mmap
import struct
from pathlib import Path

import numpy as np

from tl_jax.utils.errors import UserError

_MAX_CHILDREN, _MAX_RANK = 64, 8  # of a tree node and of an array; Keras' files stay below
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def check_numeric(path: Path, key: str, dtype: np.dtype) -> None:
    """Raise ``UserError`` if the array ``key`` holds text, objects or records."""
    if dtype.kind not in "biufc":
        raise UserError(f"{path}: {key!r} holds {' '.join(str(dtype).split())}, not numbers; save it as float32")


def is_hdf5(content: bytes) -> bool:
    """Return whether ``content`` starts with the HDF5 signature."""
    return content.startswith(_SIGNATURE)


def check_hdf5(content: bytes | mmap.mmap) -> None:
    """Raise ``ValueError`` for HDF5 files whose heaps or trees would send libhdf5 into an endless loop.

    The whole file is searched for heaps and trees. Other bytes with their signature are skipped, as are structures that
    libhdf5 rejects itself.
    """
    head = content[:16]
    sizes = head[13:15] if head[8:9] in (b"\0", b"\1") else head[9:11]  # bytes per address and per length
    if not is_hdf5(head) or sizes != b"\x08\x08":
        raise ValueError("the header differs from Keras' HDF5")
    checks = ((b"GCOL\1", _check_global_heap), (b"HEAP\0", _check_local_heap), (b"TREE", _check_tree))
    for signature, check in checks:
        start, covered = content.find(signature), 0
        while 0 <= start <= len(content) - 32 and covered <= len(content):
            covered += check(content, start)
            start = content.find(signature, start + 1)
        if covered > len(content):
            raise ValueError("more heaps or trees than fit into the file")


def _check_global_heap(content: bytes | mmap.mmap, start: int) -> int:
    """Follow the variable-length text entries of a global heap by their lengths; return the length of the heap."""
    (size,) = struct.unpack_from("<Q", content, start + 8)
    position, end = start + 16, start + size
    if end > len(content):
        return 0
    while position + 16 <= end:
        index, length = struct.unpack_from("<H6xQ", content, position)
        step = 16 + (length + 7) // 8 * 8 if index else length  # index 0 is the free space, including its header
        if step < 16 or position + step > end:
            raise ValueError("inconsistent heap size")
        position += step
    return size


def _check_local_heap(content: bytes | mmap.mmap, start: int) -> int:
    """Follow the free list of a local heap, whose last offset is 1; return the length of the heap."""
    size, free, data = struct.unpack_from("<QQQ", content, start + 8)
    if data + size > len(content):
        return 0
    visited: set[int] = set()
    while free != 1 and free + 16 <= size:
        if free in visited:
            raise ValueError("cyclic free list in a heap")
        visited.add(free)
        (free,) = struct.unpack_from("<Q", content, data + free)
    return size


def _check_tree(content: bytes | mmap.mmap, start: int) -> int:
    """Check that a node leads only to lower nodes; return its length, or less.

    libhdf5 before 2.0 follows cycles until its stack overflows. A node alternates keys and addresses. Group keys have 8
    bytes; chunk keys depend on the array's rank, which the node does not store. So the rank is used for which most
    addresses are nodes.
    """
    kind, level, used = struct.unpack_from("<BBH", content, start + 4)
    if not level or used > _MAX_CHILDREN:
        return 0
    for key in (8,) if kind == 0 else range(24, 24 + 8 * _MAX_RANK, 8):
        offsets = range(start + 24 + key, min(start + 24 + used * (key + 8), len(content) - 7), key + 8)
        children = [struct.unpack_from("<Q", content, offset)[0] for offset in offsets]
        levels = [content[child + 5] for child in children if content[child : child + 4] == b"TREE"]
        if (kind == 0 or 2 * len(levels) >= used) and any(child_level >= level for child_level in levels):
            raise ValueError("cyclic tree")
    return 16 * used + 24
