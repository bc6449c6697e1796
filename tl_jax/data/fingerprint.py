"""Fingerprints of data: a hash of a split's examples, and a stamp of the files of a data set.

The fingerprint does not depend on the location of the files or the order of the classes.
"""

import contextlib
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tl_jax.data.dataset import Split, is_encoded, parse_split
from tl_jax.data.detection import CLASS
from tl_jax.data.walker import is_within

SAMPLED_BYTES = 64 * 10**6  # of images in memory, evenly spaced: hashing a large data set would delay each start
CHUNK_TEXTS = 1000  # texts per step


def fingerprint(split: Split, classes: Sequence[str], folder: str = "", name: str = "") -> str:
    """Return the SHA-256 of a split as hexadecimal digits.

    It covers the labels by class name, the groups, and the examples: the names of files, relative to ``folder``, and
    their sizes; the texts; or the pixels of images in memory (above 64 MB, of evenly spaced ones). For images decoded
    from a prepared data set, it covers only ``name`` and their number, since decoders may round differently.

    Args:
        split: N examples.
        classes: K names; labels beyond them, such as those of test people, count as numbers.
        folder: folder of the data; "" for the common folder of the files.
        name: name of the data set.
    """
    sha = hashlib.sha256()
    for piece in (*_label_bytes(split.labels, classes), *_group_bytes(split), *_example_bytes(split, folder, name)):
        sha.update(len(piece).to_bytes(8, "little") + piece)
    return sha.hexdigest()


def relative_names(files: Sequence[str] | np.ndarray, folder: str = "") -> list[str]:
    """Return the names of files relative to ``folder``, or to their common folder."""
    if not len(files):
        return []
    root = os.path.expanduser(folder)
    root = os.path.join(os.path.dirname(root) if os.path.isfile(root) else root, "") if folder else ""
    if not root or not all(file.startswith(root) for file in files):
        files = [os.path.realpath(file) for file in files]
        root = os.path.join(os.path.realpath(root), "") if root else ""
        if not root or not all(file.startswith(root) for file in files):
            root = os.path.join(os.path.commonpath([os.path.dirname(file) for file in files]), "")
    return [unicodedata.normalize("NFC", file[len(root) :].lstrip(os.sep)).replace(os.sep, "/") for file in files]


def _label_bytes(labels: np.ndarray, classes: Sequence[str]) -> Iterator[bytes]:
    """Yield the labels, with the rank of a class among the sorted names instead of its number."""
    rank = np.empty(len(classes), np.int64)
    rank[sorted(range(len(classes)), key=classes.__getitem__)] = np.arange(len(classes))
    yield _json_bytes(sorted(classes))
    if labels.dtype == object:
        yield _json_bytes([len(tags) for tags in labels])
        labels = np.concatenate([np.zeros(0, np.int64), *labels])
    if labels.ndim == 3:  # boxes: drop padding rows, whose number depends on other splits
        for rows in labels:
            boxes = np.round(rows[rows[:, CLASS] >= 0].astype(np.float64), 2) + 0.0
            boxes[:, CLASS] = rank[boxes[:, CLASS].astype(np.int64)]
            yield boxes.astype("<f8").tobytes()
        return
    known = not len(labels) or labels.max() < len(classes)
    yield (rank[labels] if known else labels).astype("<i8").tobytes()


def _group_bytes(split: Split) -> Iterator[bytes]:
    if split.groups is not None:
        yield _json_bytes([str(group) for group in split.groups])


def _example_bytes(split: Split, folder: str, name: str) -> Iterator[bytes]:
    images = split.inputs
    count = len(split.labels)
    if split.files is not None:
        yield _json_bytes(relative_names(split.files, folder))
        yield _json_bytes([os.stat(file).st_size for file in split.files])
        return
    if images.dtype == object:
        for first in range(0, count, CHUNK_TEXTS):
            yield _json_bytes(np.asarray(images[np.arange(first, min(first + CHUNK_TEXTS, count))], object).tolist())
        return
    yield _json_bytes(list(images.shape))
    if ":" in name or is_encoded(images):  # a prepared data set with a version in its name
        yield _json_bytes(name)
        return
    max_images = max(1, SAMPLED_BYTES // max(1, int(np.prod(images.shape[1:]))))
    yield np.ascontiguousarray(
        images[np.unique(np.linspace(0, count - 1, min(count, max_images)).astype(int))]
    ).tobytes()


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def folder_stamp(data_dir: str) -> str:
    """Return a hash of all paths, sizes and times below ``data_dir``, which changes if a file does.

    Args:
        data_dir: folder, or file, of the data; for a file, all files next to it count.
    """
    top = os.path.expanduser(data_dir)
    top = os.path.dirname(top) or "." if os.path.isfile(top) else top
    sha, visited, folders, root = hashlib.sha256(), set(), [top], os.path.realpath(top)
    while folders:
        folder = folders.pop()
        if (real := os.path.realpath(folder)) in visited:  # visited by a link
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir():
                        if not entry.is_symlink() or _is_followed(entry.path, top, root):
                            folders.append(entry.path)
                    else:
                        with contextlib.suppress(OSError):  # a broken link
                            stat = entry.stat()
                            sha.update(repr((entry.path, stat.st_size, stat.st_mtime_ns)).encode(errors="replace"))
        except OSError:  # reading the files reports it
            continue
    return sha.hexdigest()


def _is_followed(link: str, top: str, root: str) -> bool:
    """Return whether a link to a folder is followed: not to a folder above, nor, below class folders, outside the data.

    Those could include entire disks. With ``data.outside`` they are read, but their changes are noticed only at the
    next start.
    """
    real, folder = os.path.realpath(link), os.path.dirname(link)
    laid_out = folder == top or (os.path.dirname(folder) == top and _is_layout_folder(os.path.basename(folder)))
    return is_within(real, root) or (laid_out and not is_within(root, real))


def _is_layout_folder(name: str) -> bool:
    return parse_split(name) is not None or name in ("images", "annotations")
