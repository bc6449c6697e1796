"""Arrays on disk by key: made once, memory-mapped, and the ones used longest ago make room."""

import contextlib
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tl_jax.utils.download import locked
from tl_jax.utils.errors import UserError

DAY = 86400.0  # seconds
HERE = Path(__file__).parent
_told: set[Path] = set()  # folders of which was said that they cannot be written


@functools.cache
def code_digest(*rooms: str) -> str:
    """Return a hash of the code in packages of tl_jax: what a changed function makes must not meet what it made."""
    files = sorted(path for room in rooms for path in (HERE / room).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class Shelf(NamedTuple):
    """A folder of arrays by key.

    Attributes:
        folder: where they are.
        max_bytes: that they may take together; those used longest ago make room.
    """

    folder: Path
    max_bytes: int

    def get(self, key: str, shape: tuple[int, ...], dtype: Any, make: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
        """Return the array of ``key``, memory-mapped; ``make`` yields its rows, some at a time, if it is not there.

        Where the folder cannot be written, or the disk is full, that is said, and the array is made in memory.
        """
        path = self.folder / f"{key}.npy"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path))
            except UserError as error:
                return self._in_memory(dtype, make, error)
            try:
                if not _there(path, shape, dtype):
                    self._write(path, shape, dtype, make)
                os.utime(path)  # used just now
            except OSError as error:
                return self._in_memory(dtype, make, error)
        return np.load(path, mmap_mode="r", allow_pickle=False).view(dtype)

    def _in_memory(self, dtype: Any, make: Callable[[], Iterator[np.ndarray]], why: Exception) -> np.ndarray:
        if self.folder not in _told:  # once is enough: the other arrays meet the same disk
            _told.add(self.folder)
            tqdm.write(f"not kept for the next run: {why}; set $TL_JAX_CACHE to a folder with room", file=sys.stderr)
        return np.concatenate([np.asarray(rows, dtype) for rows in make()])

    def _write(self, path: Path, shape: tuple[int, ...], dtype: Any, make: Callable[[], Iterator[np.ndarray]]) -> None:
        dtype = np.dtype(dtype)
        stored = dtype if dtype.kind in "fiu" else np.dtype(f"u{dtype.itemsize}")  # the format has no bfloat16
        self._make_room(int(np.prod(shape)) * dtype.itemsize)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in make():
                    file.write(np.ascontiguousarray(rows, dtype).tobytes())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Delete the arrays used longest ago until ``wanted`` bytes fit, and what a killed process left."""
        for leftover in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > DAY:
                    leftover.unlink()
        kept = sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept) + wanted
        for path in kept:
            if total <= self.max_bytes:
                break
            total -= path.stat().st_size
            path.unlink(missing_ok=True)  # who has it open keeps it


def _there(path: Path, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether an array is there; one with a damaged header, or cut short, is made again."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        return found.shape == tuple(shape) and found.dtype.itemsize == np.dtype(dtype).itemsize
    except Exception:  # of many kinds, by the byte that is wrong
        return False
