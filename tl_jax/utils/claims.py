"""Check the sizes that a file declares before memory is allocated; read the arrays of NumPy's zip files."""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

_MAX_COMPRESSION = 64  # no real weights or images are compressed more than by this factor
_MIN_CLAIM = 1 << 24  # bytes that any file may declare
# Errors from damaged zip files of arrays; some come from headers, which are Python literals.
NPZ_ERRORS = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def max_claim(path: Path) -> int:
    """Return the number of bytes that the file may declare, given its size and compression."""
    return max(_MIN_CLAIM, _MAX_COMPRESSION * path.stat().st_size)


def check_claim(path: Path, claimed: int, source: str) -> None:
    """Raise ``ValueError`` if ``source`` declares far more bytes than the file has."""
    if claimed > max_claim(path):
        raise ValueError(f"{source} declare {claimed} bytes, far more than it has")


def check_zip(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise ``ValueError`` if the members declare more than the file has, compressed or not."""
    members = archive.infolist()
    if sum(member.compress_size for member in members) > path.stat().st_size:  # zipfile would allocate it
        raise ValueError("its members declare more bytes than it has")
    check_claim(path, sum(member.file_size for member in members), "its members")


def npz_members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Yield the name and the member of each array of an npz file; raise ``ValueError`` if it declares too much."""
    check_zip(path, archive)
    keys: set[str] = set()
    for member in archive.infolist():
        key = member.filename.removesuffix(".npy")
        if key in keys:
            raise ValueError(f"{key!r} occurs twice; save each array under its own name")
        keys.add(key)
        yield key, member


def read_npy(
    key: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, check_dtype: Callable[[str, np.dtype], None]
) -> np.ndarray:
    """Return the array of a member; raise ``ValueError`` if its length is wrong, or it holds objects.

    Args:
        key: name of the array.
        archive, member: see ``npz_members``.
        check_dtype: raises an error for a dtype that is not allowed.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{key} has a compression that numpy does not write")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key} has .npy version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        check_dtype(key, dtype)
        # NumPy allocates by the header before it reads.
        if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{key} does not have the length in its header")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
