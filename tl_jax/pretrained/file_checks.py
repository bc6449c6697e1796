"""What no weight file may do, checked before its content is believed or handed to a library in C."""

import mmap
import struct
from pathlib import Path

import numpy as np

from tl_jax.utils.errors import UserError

_MAX_CHILDREN, _MAX_RANK = 64, 8  # of a tree's node, of an array: more than Keras' files have
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def check_numeric(path: Path, key: str, dtype: np.dtype) -> None:
    """Raise ``UserError`` when the array ``key`` holds text, objects or records."""
    if dtype.kind not in "biufc":
        raise UserError(f"{path}: {key!r} holds {' '.join(str(dtype).split())}, not numbers; save it as float32")


def is_hdf5(content: bytes) -> bool:
    """Tell whether ``content`` starts as HDF5 does."""
    return content.startswith(_SIGNATURE)


def check_hdf5(content: bytes | mmap.mmap) -> None:
    """Raise ``ValueError`` for HDF5 in which libhdf5 would go round for ever: in heaps, where names lie, or in trees.

    They are looked for everywhere. Whatever else has their signature is passed over, as is what libhdf5 refuses.
    """
    head = content[:16]
    sizes = head[13:15] if head[8:9] in (b"\0", b"\1") else head[9:11]  # of an address and a length
    if not is_hdf5(head) or sizes != b"\x08\x08":
        raise ValueError("it does not start as Keras' HDF5 does")
    checks = ((b"GCOL\1", _check_global_heap), (b"HEAP\0", _check_local_heap), (b"TREE", _check_tree))
    for signature, check in checks:
        start, covered = content.find(signature), 0
        while 0 <= start <= len(content) - 32 and covered <= len(content):
            covered += check(content, start)
            start = content.find(signature, start + 1)
        if covered > len(content):
            raise ValueError("more heaps or trees than there is room for")


def _check_global_heap(content: bytes | mmap.mmap, start: int) -> int:
    """Follow the entries of text of variable length, each of which has its length; return the heap's own."""
    (size,) = struct.unpack_from("<Q", content, start + 8)
    position, end = start + 16, start + size
    if end > len(content):
        return 0
    while position + 16 <= end:
        index, length = struct.unpack_from("<H6xQ", content, position)
        step = 16 + (length + 7) // 8 * 8 if index else length  # index 0 is the free space, header included
        if step < 16 or position + step > end:
            raise ValueError("a heap does not add up")
        position += step
    return size


def _check_local_heap(content: bytes | mmap.mmap, start: int) -> int:
    """Follow the free places among a group's names, each with the offset of the next, the last 1; return its length."""
    size, free, data = struct.unpack_from("<QQQ", content, start + 8)
    if data + size > len(content):
        return 0
    visited: set[int] = set()
    while free != 1 and free + 16 <= size:
        if free in visited:
            raise ValueError("a heap is free in a circle")
        visited.add(free)
        (free,) = struct.unpack_from("<Q", content, data + free)
    return size


def _check_tree(content: bytes | mmap.mmap, start: int) -> int:
    """Look whether a node leads to lower ones only, and return its length, or less.

    libhdf5 before 2.0 follows others until its stack overflows. A node has keys and addresses by turns. The keys of
    groups have 8 bytes; those of chunks depend on the array's rank, which the node does not tell: so that one counts
    for which most of the addresses are those of nodes.
    """
    kind, level, used = struct.unpack_from("<BBH", content, start + 4)
    if not level or used > _MAX_CHILDREN:
        return 0
    for key in (8,) if kind == 0 else range(24, 24 + 8 * _MAX_RANK, 8):
        offsets = range(start + 24 + key, min(start + 24 + used * (key + 8), len(content) - 7), key + 8)
        children = [struct.unpack_from("<Q", content, offset)[0] for offset in offsets]
        levels = [content[child + 5] for child in children if content[child : child + 4] == b"TREE"]
        if (kind == 0 or 2 * len(levels) >= used) and any(child_level >= level for child_level in levels):
            raise ValueError("a tree goes round in a circle")
    return 16 * used + 24
