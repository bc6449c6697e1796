"""Outputs of frozen layers are computed once and kept on disk, under a name that is a hash of what they depend on."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl_jax import tree
from tl_jax.errors import UserError
from tl_jax.fetch import locked
from tl_jax.models.backbone import FEATURES

DAY = 86400.0  # seconds
HERE = Path(__file__).parents[1]
CODE = ("models", "data")  # whose files decide what comes out of frozen layers


def boundary(parts: Sequence[str], head_reads: str, mask: Any, still: frozenset[str], norms: frozenset[str]) -> str:
    """Return the endpoint up to which nothing changes in training.

    Args:
        parts: names of the network's parts from the input on.
        head_reads: what the head needs, ``Backbone.head_reads``.
        mask: tree of the parameters, true where a leaf trains.
        still, norms: paths of the BatchNorm layers that keep their statistics, and of all.

    Returns:
        "features" where all parts are frozen and the head needs no map; else the last part of those that are frozen
        from the input on, but none after the one that the head reads; "" where the first part changes.
    """
    trains = {path for path, moves in tree.flatten(mask).items() if moves} | (norms - still)
    frozen = ""
    for part in parts:
        if any(path.startswith((f"{part}/", f"adapter_{part}/")) for path in trains):
            return frozen
        frozen = part
        if part == head_reads:
            return frozen
    return FEATURES


def digest(*facts: Any) -> str:
    """Return a SHA-256 of arrays, trees of them, and whatever ``json`` can write."""
    sha = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, (np.ndarray, jax.Array)):
            array = np.ascontiguousarray(fact)
            sha.update(f"{array.dtype} {array.shape}".encode())
            sha.update(array)
        elif isinstance(fact, Mapping) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fact)):
            for path, leaf in sorted(tree.flatten(jax.device_get(fact)).items()):
                sha.update(path.encode() + digest(leaf).encode())
        else:
            sha.update(json.dumps(fact, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def code_digest() -> str:
    """Return a hash of the code that computes features: a changed layer must not meet what the old one left."""
    files = sorted(path for folder in CODE for path in (HERE / folder).glob("*.py"))
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

        Raises:
            UserError: the folder cannot be written, or the disk is full; nothing is left half-written.
        """
        path = self.folder / f"{key}.npy"
        with locked(path):
            if not path.is_file():
                self._write(path, shape, dtype, make)
            os.utime(path)  # used just now
        return np.load(path, mmap_mode="r", allow_pickle=False).view(dtype)

    def _write(self, path: Path, shape: tuple[int, ...], dtype: Any, make: Callable[[], Iterator[np.ndarray]]) -> None:
        dtype = np.dtype(dtype)
        stored = dtype if dtype.kind == "f" else np.dtype(f"u{dtype.itemsize}")  # the format has no bfloat16
        self._make_room(int(np.prod(shape)) * dtype.itemsize)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in make():
                    file.write(np.ascontiguousarray(rows, dtype).tobytes())
            part.replace(path)
        except OSError as error:
            raise UserError(
                f"cannot keep features in {self.folder} ({error.strerror or error}); free some space, set "
                "--config.cache.dir=FOLDER, or --config.cache.features=off"
            ) from error
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
