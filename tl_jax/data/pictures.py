"""What a data set is once it is read, and what its readers share: fitting pictures and holding out a test part."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tl_jax.errors import UserError
from tl_jax.fetch import cache_dir
from tl_jax.shelf import Shelf, code_digest

SHARES = {"third": 1 / 3, "fifth": 1 / 5}  # held out of sets that come without a test part
DECODED_BYTES = 16 * 10**9  # of decoded pictures kept on disk; the sets used longest ago make room
WORKERS = min(16, os.cpu_count() or 1)  # threads; Pillow decodes without the interpreter's lock
CLASS = 4  # column of a label that is boxes
SPLIT_SEED = 0  # of that cut: the same test part whatever the seed of the run


class Encoded:
    """Pictures uint8 (N, H, W, 3) that stay encoded on disk and are decoded, by several threads, when they are read.

    Attributes:
        decode: row -> picture (H, W, 3).
        shape: (N, H, W, 3).
        key: names the pictures, for what is computed of them and kept.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, decode: Callable[[int], np.ndarray], shape: tuple[int, ...], key: str):
        self.decode, self.shape, self.key = decode, shape, key

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(len(self))[rows]
        if not chosen.ndim:
            return self.decode(int(chosen))
        pictures = list(_pool().map(self.decode, chosen.tolist()))
        return np.stack(pictures) if pictures else np.empty((0, *self.shape[1:]), self.dtype)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS)


class Rows:
    """Some rows of an array that stays where it is, on disk perhaps; the rows of rows are rows of the same array."""

    def __init__(self, array: "np.ndarray | Encoded | Rows", chosen: np.ndarray):
        inner = isinstance(array, Rows)
        self.array: np.ndarray | Encoded = array.array if inner else array
        self.chosen: np.ndarray = array.chosen[chosen] if inner else chosen
        self.shape, self.dtype = (len(self.chosen), *self.array.shape[1:]), self.array.dtype

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.array[self.chosen[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def between(images: "np.ndarray | Encoded", first: int, stop: int) -> "np.ndarray | Rows":
    """Return the pictures from ``first`` up to ``stop``, without a copy."""
    return Rows(images, np.arange(first, stop)) if isinstance(images, Encoded) else images[first:stop]


class Split(NamedTuple):
    """Pictures uint8 (N, H, W, 3), RGB, read by rows as ``images[rows]``, and labels int32 (N,) in [0, K).

    ``groups`` (N,) names what each belongs to, a patient say, where that is known; ``files`` (N,) the file of each, if
    the images are files.
    """

    images: "Pictures"
    labels: np.ndarray
    groups: np.ndarray | None = None
    files: np.ndarray | None = None


def as_names(files: Sequence[Path]) -> np.ndarray:
    """Return the paths of N files as an object array (N,) of str, for ``Split.files``."""
    return np.asarray([str(file) for file in files], object)


Pictures = np.ndarray | Encoded | Rows


def encoded(images: Pictures) -> bool:
    """Whether pictures are decoded at each reading."""
    return isinstance(images.array if isinstance(images, Rows) else images, Encoded)


class Source(NamedTuple):
    """A data set before any part is cut for validation.

    Attributes:
        name: of the set, with its version where it has one.
        train, test: its parts.
        classes: K names.
        tested: where the test part comes from.
        validation: a part for choosing, where the set brings one beside the others.
        value_range: of images with more than 8 bits, the values that became 0 and 255; None where there are none.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    tested: str = "test"
    validation: Split | None = None
    value_range: tuple[float, float] | None = None

    def facts(self) -> dict[str, Any]:
        """Return what else a run must know to read other images as it has read these; nothing for 8 bits."""
        return {"value_range": list(self.value_range)} if self.value_range else {}


def kept(
    files: Iterable[str | Path],
    about: Any,
    shape: tuple[int, ...],
    dtype: Any,
    make: Callable[[], Iterator[np.ndarray]],
) -> np.ndarray:
    """Return what ``make`` yields, kept on disk as long as the files' sizes and times, and ``about``, stay the same."""
    return Shelf(cache_dir() / "decoded", DECODED_BYTES).get(_key(files, about), shape, dtype, make)


def kept_or_encoded(
    files: Iterable[str | Path],
    shape: tuple[int, ...],
    make: Callable[[], Iterator[np.ndarray]],
    decode: Callable[[int], np.ndarray],
    most_bytes: float,
    how: tuple[Any, ...] = (),
) -> np.ndarray | Encoded:
    """Return pictures uint8, decoded once and kept on disk, or decoded each time they are read.

    Args:
        files: that hold them.
        shape: (N, H, W, 3).
        make: yields them in order, some at a time.
        decode: row -> picture, for a set of more than ``most_bytes``.
        most_bytes: that a decoded set may take.
        how: what the pictures depend on beside the files.
    """
    about = "pictures", shape, *how
    if int(np.prod(shape)) <= most_bytes:
        return kept(files, about, shape, np.uint8, make)
    return Encoded(decode, shape, _key(files, about))


def _key(files: Iterable[str | Path], about: Any) -> str:
    try:
        stamps = [(str(path), found.st_size, found.st_mtime_ns) for path in files for found in [os.stat(path)]]
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}); restore or remove it") from error
    return hashlib.sha256(repr((code_digest("data"), stamps, about)).encode()).hexdigest()


def fit(image: np.ndarray, size: int | tuple[int, int], how: str = "crop") -> np.ndarray:
    """Fill a square of side ``size``, or (width, height), with a picture, so that differing ones stack.

    Args:
        image: uint8 (h, w, 3).
        size: of what is returned.
        how: "crop" takes the centre, "pad" the whole between black borders, "stretch" the whole, distorted.
    """
    sides = (size, size) if isinstance(size, int) else size
    picture, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
    if how == "stretch":
        return np.asarray(picture.resize(sides, bilinear))
    return np.asarray({"crop": ImageOps.fit, "pad": ImageOps.pad}[how](picture, sides, bilinear))


def held_out(
    name: str, labels: np.ndarray, classes: tuple[str, ...], share: str, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of train and test, ascending and the same at every call; classes keep their shares.

    Args:
        name: of the set, for the message.
        labels: (N,), in an order that does not change.
        classes: K names.
        share: key into ``SHARES``, of the test part.
        groups: (N,), what each belongs to; none is then in both, and classes keep their shares as far as that goes.

    Raises:
        UserError: a class is too small for one of its pictures, or groups, to be held out.
    """
    least = round(1 / SHARES[share])
    for label in np.unique(labels):
        own = labels == label
        count = int(own.sum()) if groups is None else len(np.unique(groups[own]))
        if count < least:
            what = "examples" if groups is None else "groups"
            other = "" if groups is None else ", or group otherwise (config.data.group, 'none' for no groups)"
            raise UserError(
                f"{name} has no test part, and its class {classes[label]!r} has {count} of the {least} {what} that "
                f"it takes to hold out a {share}; add some, leave out the class, bring a test part{other}"
            )
    about = "held out", share, labels.tolist(), groups if groups is None else groups.tolist(), version("scikit-learn")
    tested = kept((), about, labels.shape, bool, lambda: iter([_tested(labels, share, groups)]))
    return np.flatnonzero(~tested), np.flatnonzero(tested)


def _tested(labels: np.ndarray, share: str, groups: np.ndarray | None) -> np.ndarray:
    """Return which rows (N,) the test part of ``held_out`` has."""
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split  # takes 1.4 s, which second starts save

    if groups is not None:
        folds = StratifiedGroupKFold(round(1 / SHARES[share]), shuffle=True, random_state=SPLIT_SEED)
        test = next(iter(folds.split(labels, labels, groups)))[1]
    else:
        test = train_test_split(
            np.arange(len(labels)), test_size=SHARES[share], random_state=SPLIT_SEED, stratify=labels, shuffle=True
        )[1]
    return np.isin(np.arange(len(labels)), test)


def cut_test(name: str, everything: Split, classes: tuple[str, ...], share: str = "third") -> Source:
    """Cut a test part, the same at every call, from a set that has none: see ``held_out``."""
    rows = held_out(name, everything.labels, classes, share)
    parts = (Split(everything.images[r], everything.labels[r]) for r in rows)
    return Source(name, *parts, classes=classes, tested=f"a {share} held out")
