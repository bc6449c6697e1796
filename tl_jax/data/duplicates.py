"""Find identical images: across splits, which invalidates a test, or with different classes."""

import contextlib
import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tl_jax.data.dataset import WORKERS, cached_array
from tl_jax.utils.log import warn_once

SPLIT_PAIRS = (("train", "test"), ("train", "validation"), ("validation", "test"))
END_BYTES = 4096  # bytes from either end of a file, which distinguish nearly all files
SAMPLE_BYTES = 256  # bytes of an array's row, likewise
CHUNK_ROWS = 4096  # rows per step


def report_duplicate_files(name: str, files: Mapping[str, Sequence[Path]], labels: Mapping[str, np.ndarray]) -> None:
    """Warn about splits that share images, byte for byte, and about training images with two labels.

    Files are compared by size first. Only files of equal size are read, and the result is cached.

    Args:
        name: name of the data set.
        files: N files of each split ("train", "test", "validation").
        labels: int (N,) of each split; empty to compare no labels.
    """
    all_files = [file.absolute() for split_files in files.values() for file in split_files]
    root = os.path.commonpath([file.parent for file in all_files])
    names = {split: [os.path.relpath(file, root) for file in split_files] for split, split_files in files.items()}
    with contextlib.suppress(OSError):  # decoding reports all unreadable files
        _report(name, _by_split(_first_equal_files(all_files), files), names, labels)


def report_duplicate_rows(name: str, arrays: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> None:
    """Do the same as ``report_duplicate_files`` for arrays (N, ...) of images."""
    if len({(array.shape[1:], array.dtype) for array in arrays.values()}) > 1:
        return
    rows = [row for array in arrays.values() for row in array]
    _, checksum_ids, counts = np.unique(
        np.concatenate([_row_checksums(array) for array in arrays.values()]), return_inverse=True, return_counts=True
    )
    same, candidates = np.arange(len(rows)), np.flatnonzero(counts[checksum_ids] > 1)
    same[candidates] = candidates[
        _first_equal([rows[row] for row in candidates.tolist()], [lambda row: _hash([row.tobytes()])])
    ]
    names = {split: [f"{split} image {i}" for i in range(len(array))] for split, array in arrays.items()}
    _report(name, _by_split(same, arrays), names, labels)


def _report(
    name: str,
    same: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
) -> None:
    for first, second in SPLIT_PAIRS:
        if first not in same or second not in same:
            continue
        rows = np.flatnonzero(np.isin(same[second], same[first]))
        if len(rows):
            other = int(np.argmax(same[first] == same[second][rows[0]]))
            warn_once(
                f"{name}: {len(rows)} of {len(same[second])} {second} images are also in {first}, byte for byte, such "
                f"as {names[second][rows[0]]} and {names[first][other]}; remove them from one of the two splits"
            )
    if "train" in labels and (rows := _contradicting_rows(same["train"], labels["train"])):
        pair = " and ".join(names["train"][row] for row in rows[:2])
        warn_once(
            f"{name}: {len(rows)} identical images have different classes, such as {pair}; keep each in one class"
        )


def _contradicting_rows(same: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return the rows of identical images with different labels, grouped."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(same.tolist()):
        rows[image].append(row)
    return [
        row
        for members in rows.values()
        if len(members) > 1 and len(set(labels[members].tolist())) > 1
        for row in members
    ]


def _by_split(same: np.ndarray, splits: Mapping[str, Sized]) -> dict[str, np.ndarray]:
    ends = itertools.accumulate(len(items) for items in splits.values())
    return {split: same[end - len(items) : end] for (split, items), end in zip(splits.items(), ends, strict=True)}


def _first_equal_files(files: Sequence[Path]) -> np.ndarray:
    """Return for each of N files the first with the same bytes, int64 (N,)."""
    sizes = np.asarray([os.stat(file).st_size for file in files])
    _, size_ids, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[size_ids] > 1)
    same = np.arange(len(files))
    if len(candidates):
        paths = [files[row].absolute() for row in candidates.tolist()]
        first = cached_array(
            paths, "copies", candidates.shape, np.int64, lambda: iter([_first_equal(paths, (_hash_ends, _hash_file))])
        )
        same[candidates] = candidates[first]
    return same


def _row_checksums(array: np.ndarray) -> np.ndarray:
    """Return a checksum uint64 (N,) of each row of an array (N, ...)."""
    flat = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    flat = flat[:, :: max(1, flat.shape[1] // SAMPLE_BYTES)]
    weights = np.random.default_rng(0).integers(1 << 63, size=flat.shape[1], dtype=np.uint64)
    return np.concatenate(
        [flat[i : i + CHUNK_ROWS].astype(np.uint64) @ weights for i in range(0, len(flat), CHUNK_ROWS)]
    )


def _first_equal(items: Sequence, stages: Iterable[Callable]) -> np.ndarray:
    """Return the index of the first equal item for each item; later stages only compare items equal so far."""
    groups = [list(range(len(items)))]
    for stage in stages:
        finer: list[list[int]] = []
        rows = [row for group in groups for row in group]
        with ThreadPoolExecutor(WORKERS) as pool:
            keys = dict(zip(rows, pool.map(stage, [items[row] for row in rows]), strict=True))
        for group in groups:
            by_key: dict[object, list[int]] = defaultdict(list)
            for row in group:
                by_key[keys[row]].append(row)
            finer += [members for members in by_key.values() if len(members) > 1]
        groups = finer
    same = np.arange(len(items))
    for group in groups:
        same[group] = group[0]
    return same


def _hash_ends(file: Path) -> bytes:
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(END_BYTES)
        stream.seek(max(0, size - END_BYTES))
        return _hash([size.to_bytes(8, "big"), first, stream.read(END_BYTES)])


def _hash_file(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _hash(pieces: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join(pieces)).digest()
