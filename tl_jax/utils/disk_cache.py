"""Cache arrays on disk by key: computed once, memory-mapped, and removed least recently used first."""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.utils.download import locked
from tl_jax.utils.errors import UserError
from tl_jax.utils.log import warn

DAY = 86400.0  # seconds
PACKAGE_DIR = Path(__file__).parents[1]
_warned_folders: set[Path] = set()  # folders with a warning already


@functools.cache
def code_digest(*packages: str) -> str:
    """Return a hash of the code in packages of tl_jax, so that changed code does not use old arrays."""
    files = sorted(path for package in packages for path in (PACKAGE_DIR / package).rglob("*.py"))
    if not files:
        raise ValueError(f"no code in {', '.join(packages)} below {PACKAGE_DIR}")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class DiskCache(NamedTuple):
    """A folder of arrays by key.

    Attributes:
        folder: folder of the arrays.
        max_bytes: limit of their total size; the least recently used ones are removed.
    """

    folder: Path
    max_bytes: int

    def get(
        self, key: str, shape: tuple[int, ...], dtype: Any, make_rows: Callable[[], Iterator[np.ndarray]]
    ) -> np.ndarray:
        """Return the array of ``key``, memory-mapped; ``make_rows`` yields its rows in chunks if it is not cached.

        If the folder cannot be written, or the disk is full, warn and return an array in memory.
        """
        path = self.folder / f"{key}.npy"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path))
            except UserError as error:
                return self._in_memory(dtype, make_rows, error)
            try:
                if not _is_cached(path, shape, dtype):
                    self._write(path, shape, dtype, make_rows)
                os.utime(path)  # marks it as used
            except OSError as error:
                return self._in_memory(dtype, make_rows, error)
        return np.load(path, mmap_mode="r", allow_pickle=False).view(dtype)

    def _in_memory(self, dtype: Any, make_rows: Callable[[], Iterator[np.ndarray]], error: Exception) -> np.ndarray:
        if self.folder not in _warned_folders:  # warn once per folder
            _warned_folders.add(self.folder)
            warn(f"not cached: {error}; set $TL_JAX_CACHE to a folder with free space")
        return np.concatenate([np.asarray(rows, dtype) for rows in make_rows()])

    def _write(
        self, path: Path, shape: tuple[int, ...], dtype: Any, make_rows: Callable[[], Iterator[np.ndarray]]
    ) -> None:
        dtype = np.dtype(dtype)
        stored = dtype if dtype.kind in "fiu" else np.dtype(f"u{dtype.itemsize}")  # the format has no bfloat16
        self._make_room(int(np.prod(shape)) * dtype.itemsize)
        partial = path.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in make_rows():
                    file.write(np.ascontiguousarray(rows, dtype).tobytes())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Delete the least recently used arrays until ``needed`` bytes fit, and files of killed processes."""
        for stale in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - stale.stat().st_mtime > DAY:
                    stale.unlink()
        cached = sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in cached) + needed
        for path in cached:
            if total <= self.max_bytes:
                break
            total -= path.stat().st_size
            path.unlink(missing_ok=True)  # open files remain readable


def _is_cached(path: Path, shape: tuple[int, ...], dtype: Any) -> bool:
    """Return whether an array is cached and intact."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array.shape == tuple(shape) and array.dtype.itemsize == np.dtype(dtype).itemsize
    except Exception:  # of any kind, for damaged files
        return False
