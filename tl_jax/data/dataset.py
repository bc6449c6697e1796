"""Image data sets: sources and splits, resizing, split names, and stratified validation and test splits."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from tl_jax.utils.disk_cache import DiskCache, code_digest
from tl_jax.utils.download import cache_dir
from tl_jax.utils.errors import UserError
from tl_jax.utils.log import warn_once

TEST_FRACTIONS = {"third": 1 / 3, "fifth": 1 / 5}  # shares held out of data sets without a test split
DECODED_BYTES = 16 * 10**9  # limit of decoded images on disk; the least recently used sets are removed
WORKERS = min(16, os.cpu_count() or 1)  # threads; Pillow releases the GIL while decoding
CLASS = 4  # column of the class in a label of boxes
SPLIT_SEED = 0  # of held-out test splits: the same for every seed of the run


class EncodedImages:
    """Images uint8 (N, H, W, 3) that stay encoded on disk and are decoded on every read, by several threads.

    Attributes:
        decode: row -> image (H, W, 3).
        shape: (N, H, W, 3).
        key: identifies the images, for caches of values computed from them.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, decode: Callable[[int], np.ndarray], shape: tuple[int, ...], key: str):
        self.decode, self.shape, self.key = decode, shape, key

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        indices = np.arange(len(self))[rows]
        if not indices.ndim:
            return self.decode(int(indices))
        images = list(_pool().map(self.decode, indices.tolist()))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), self.dtype)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS)


class Subset:
    """Rows of an array that is not copied, for example on disk; a subset of a subset refers to the same array."""

    def __init__(self, array: "np.ndarray | EncodedImages | Subset", indices: np.ndarray):
        nested = isinstance(array, Subset)
        self.array: np.ndarray | EncodedImages = array.array if nested else array
        self.indices: np.ndarray = array.indices[indices] if nested else indices
        self.shape, self.dtype = (len(self.indices), *self.array.shape[1:]), self.array.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.array[self.indices[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def slice_images(images: "np.ndarray | EncodedImages", first: int, stop: int) -> "np.ndarray | Subset":
    """Return the images from ``first`` up to ``stop``, without a copy."""
    return Subset(images, np.arange(first, stop)) if isinstance(images, EncodedImages) else images[first:stop]


class Split(NamedTuple):
    """A split of N examples.

    Attributes:
        inputs: images uint8 (N, H, W, 3), RGB, indexed as ``inputs[rows]``; or texts, pairs of texts or lists of words,
            object (N,).
        labels: int32 (N,) in [0, K); boxes float32 (N, M, 6), or tags int32 (W,) for each list of words.
        groups: (N,) group names, such as patients; None if unknown.
        files: (N,) file of each example; None if there are no files.
    """

    inputs: "Images"
    labels: np.ndarray
    groups: np.ndarray | None = None
    files: np.ndarray | None = None


def path_array(files: Sequence[Path]) -> np.ndarray:
    """Return the paths of N files as an object array (N,) of str, for ``Split.files``."""
    return np.asarray([str(file) for file in files], object)


Images = np.ndarray | EncodedImages | Subset


def is_encoded(images: Images) -> bool:
    """Return whether images are decoded on every read."""
    return isinstance(images.array if isinstance(images, Subset) else images, EncodedImages)


class Dataset(NamedTuple):
    """A data set before its validation split is held out.

    Attributes:
        name: name of the data set, with its version if there is one.
        train: training split.
        test: test split.
        classes: K class names.
        test_origin: source of the test split.
        validation: validation split, if the data set has one of its own.
        value_range: values that become 0 and 255, for images with more than 8 bits; else None.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    test_origin: str = "test"
    validation: Split | None = None
    value_range: tuple[float, float] | None = None

    def facts(self) -> dict[str, Any]:
        """Return the facts that a run needs to read other images alike; {} for images of 8 bits."""
        return {"value_range": list(self.value_range)} if self.value_range else {}


def cached_array(
    files: Iterable[str | Path],
    options: Any,
    shape: tuple[int, ...],
    dtype: Any,
    make: Callable[[], Iterator[np.ndarray]],
) -> np.ndarray:
    """Return the yields of ``make``, cached on disk until ``options`` or the sizes or times of the files change."""
    return DiskCache(cache_dir() / "decoded", DECODED_BYTES).get(_cache_key(files, options), shape, dtype, make)


def cached_or_encoded(
    files: Iterable[str | Path],
    shape: tuple[int, ...],
    make: Callable[[], Iterator[np.ndarray]],
    decode: Callable[[int], np.ndarray],
    max_bytes: float,
    options: tuple[Any, ...] = (),
) -> np.ndarray | EncodedImages:
    """Return uint8 images, either decoded once and cached on disk, or decoded on every read.

    Args:
        files: files of the images.
        shape: (N, H, W, 3).
        make: yields the images in order, in batches.
        decode: row -> image, for a data set above ``max_bytes``.
        max_bytes: size limit of a decoded data set.
        options: anything else that the images depend on.
    """
    all_options = "pictures", shape, *options
    if int(np.prod(shape)) <= max_bytes:
        return cached_array(files, all_options, shape, np.uint8, make)
    return EncodedImages(decode, shape, _cache_key(files, all_options))


def _cache_key(files: Iterable[str | Path], options: Any) -> str:
    try:
        stamps = [(str(path), stat.st_size, stat.st_mtime_ns) for path in files for stat in [os.stat(path)]]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); restore or remove it") from error
    return hashlib.sha256(repr((code_digest("data"), stamps, options)).encode()).hexdigest()


def fit_image(image: np.ndarray, size: int | tuple[int, int], mode: str = "crop") -> np.ndarray:
    """Resize an image to a square of side ``size``, or to (width, height).

    Args:
        image: uint8 (h, w, 3).
        size: size of the result in pixels.
        mode: "crop" for a centre crop, "pad" for black borders, "stretch" to change the aspect ratio.
    """
    sides = (size, size) if isinstance(size, int) else size
    pil_image, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
    if mode == "stretch":
        return np.asarray(pil_image.resize(sides, bilinear))
    return np.asarray({"crop": ImageOps.fit, "pad": ImageOps.pad}[mode](pil_image, sides, bilinear))


def hold_out(
    name: str, labels: np.ndarray, classes: tuple[str, ...], share: str, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of train and test, ascending, fixed and stratified by class.

    Args:
        name: name of the data set, for messages.
        labels: (N,), in a fixed order.
        classes: K class names.
        share: key of ``TEST_FRACTIONS`` for the test split; "" to keep all rows in train.
        groups: (N,) groups, each of which stays in one split; classes are then stratified as closely as possible.

    Raises:
        UserError: a class has too few examples, or groups, to hold any out.
    """
    if not share:
        return np.arange(len(labels)), np.arange(0)
    min_count = round(1 / TEST_FRACTIONS[share])
    for label in np.unique(labels):
        in_class = labels == label
        count = int(in_class.sum()) if groups is None else len(np.unique(groups[in_class]))
        if count < min_count:
            what = "examples" if groups is None else "groups"
            other = "" if groups is None else ", or change config.data.group ('none' for no groups)"
            raise UserError(
                f"{name}: no test split, and class {classes[label]!r} has {count} {what}, fewer than the {min_count} "
                f"needed to hold out a {share}; add some, remove the class, or add a test split{other}"
            )
    options = "held out", share, labels.tolist(), groups if groups is None else groups.tolist(), version("scikit-learn")
    in_test = cached_array((), options, labels.shape, bool, lambda: iter([_test_mask(labels, share, groups)]))
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _test_mask(labels: np.ndarray, share: str, groups: np.ndarray | None) -> np.ndarray:
    """Return the mask (N,) of the test rows of ``hold_out``."""
    from sklearn.model_selection import (
        StratifiedGroupKFold,
        train_test_split,
    )  # takes 1.4 s, unless cached

    if groups is not None:
        folds = StratifiedGroupKFold(round(1 / TEST_FRACTIONS[share]), shuffle=True, random_state=SPLIT_SEED)
        test = next(iter(folds.split(labels, labels, groups)))[1]
    else:
        test = train_test_split(
            np.arange(len(labels)),
            test_size=TEST_FRACTIONS[share],
            random_state=SPLIT_SEED,
            stratify=labels,
            shuffle=True,
        )[1]
    return np.isin(np.arange(len(labels)), test)


def split_test(name: str, full: Split, classes: tuple[str, ...], share: str = "third") -> Dataset:
    """Hold out a fixed test split from a data set without one, see ``hold_out``."""
    rows = hold_out(name, full.labels, classes, share)
    splits = (Split(full.inputs[r], full.labels[r]) for r in rows)
    return Dataset(name, *splits, classes=classes, test_origin=f"a {share} held out")


MAX_FLIPS = 20_000  # groups tried per search, over all attempts
MAX_ATTEMPTS = 16


def select_rows(split: Split, rows: np.ndarray) -> Split:
    """Return rows of a split, without copying images."""
    if len(rows) == len(split.labels) and (rows == np.arange(len(rows))).all():
        return split
    groups, files = (None if array is None else array[rows] for array in (split.groups, split.files))
    return Split(Subset(split.inputs, rows), split.labels[rows], groups, files)


def split_validation(train: Split, share: float, seed: int, classes: Sequence[str] = ()) -> tuple[Split, Split]:
    """Return (train, validation) with a random ``share`` in [0, 1) of the examples in the second.

    Classes are stratified to one example, as with ``train_test_split(stratify=labels)`` of scikit-learn. Classes with a
    single example stay in train, with a warning. Groups are not split, and classes are stratified as closely
    as they allow. Examples without a class (boxes, tagged words, plain texts) are sampled at random.

    Args:
        train: split to divide.
        share: validation share.
        seed: random seed.
        classes: K class names, for messages.

    Raises:
        UserError: ``share`` is above 0 but gives no example, or nothing can be held out.
    """
    n, labels = len(train.labels), _strata(train)
    rng = np.random.default_rng((seed, 1))
    if not share:
        return train, select_rows(train, np.empty(0, int))
    if train.groups is not None:
        held_out = _draw_groups(labels, train.groups, share, rng)
        _report_single(labels, train.groups, classes)
        return select_rows(train, np.flatnonzero(~held_out)), select_rows(train, np.flatnonzero(held_out))
    order, count = rng.permutation(n), round(share * n)
    if not count:
        raise UserError(f"config.data.validation={share}: no example of {n}; raise it, or set it to 0")
    rows = _stratified_rows(order, labels, count, reserve=1)
    if not len(rows):
        raise UserError(
            f"no class of the {n} training examples has two, so none can be held out; set config.data.validation=0, "
            "or add examples"
        )
    _report_single(labels, np.arange(n), classes)
    return select_rows(train, np.setdiff1d(np.arange(n), rows)), select_rows(train, rows)


def subsample_train(train: Split, examples: int, per_class: int, classes: int, seed: int) -> Split:
    """Keep ``examples`` random examples, stratified by class, or ``per_class`` random ones of each of K classes.

    0 keeps all; at most one of the two may be set.

    Raises:
        UserError: there are too few examples.
    """
    order = np.random.default_rng((seed, 2)).permutation(len(train.labels))
    if examples:
        if examples > len(order):
            raise UserError(f"config.data.train_examples={examples}, but only {len(order)} are available; lower it")
        return select_rows(train, _stratified_rows(order, _strata(train), examples))
    if per_class:
        by_class = [order[train.labels[order] == k][:per_class] for k in range(classes)]
        scarce = [k for k, rows in enumerate(by_class) if len(rows) < per_class]
        if scarce:
            raise UserError(
                f"config.data.per_class={per_class}, but class {scarce[0]} has {len(by_class[scarce[0]])}; lower it"
            )
        order = np.concatenate(by_class)
    return select_rows(train, np.sort(order))


def subsample_test(test: Split, examples: int) -> Split:
    """Return ``examples`` of the test split, stratified by class and the same for every seed; 0 keeps all.

    They are not the first rows, because files may be sorted by class.
    """
    n = len(test.labels)
    if not examples or examples >= n:
        return test
    order = np.random.default_rng((SPLIT_SEED, 3)).permutation(n)
    return select_rows(test, _stratified_rows(order, _strata(test), examples))


def _strata(split: Split) -> np.ndarray:
    """Return the class of each example (N,); 0 for all examples without one class, as with boxes or tags."""
    labels = split.labels
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else np.zeros(len(labels), np.int32)


def _stratified_rows(order: np.ndarray, labels: np.ndarray, count: int, reserve: int = 0) -> np.ndarray:
    """Return ``count`` rows, ascending: the first of each class in ``order``, stratified.

    Remainders after rounding go to the classes with the largest ones, as in scikit-learn. ``reserve`` examples of each
    class are never selected.
    """
    present, class_index, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    exact = count * counts / len(order)
    quotas = np.minimum(np.floor(exact).astype(int), counts - reserve)
    first = np.full(len(present), len(order))
    np.minimum.at(first, class_index, np.arange(len(order)))  # ties by the random order
    for k in np.lexsort((first, -np.round(exact - np.floor(exact), 9))):
        if quotas.sum() < count and quotas[k] < counts[k] - reserve:
            quotas[k] += 1
    rank = np.empty(len(order), int)  # rank of an example within its class
    by_class = np.argsort(class_index, kind="stable")
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < quotas[class_index]])


def _draw_groups(labels: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return the mask of held-out examples (N,): entire groups, such that the class shares are close to ``share``.

    Groups are added and removed in random order as long as that brings the shares closer; the best of several attempts
    is returned.
    """
    names, group_index = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"all {len(groups)} training examples are of one group ({names[0]}), so none can be held out; set "
            "config.data.validation=0, add groups, or change config.data.group ('none' for no groups)"
        )
    present, label = np.unique(labels, return_inverse=True)
    totals = np.bincount(label)
    pairs, counts = np.unique(group_index * len(present) + label, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(names) + 1) * len(present))
    content = [(pairs[a:b] % len(present), counts[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
    best, lowest_cost = None, np.inf
    for _ in range(int(np.clip(MAX_FLIPS // len(names), 1, MAX_ATTEMPTS))):
        selected, cost = _try_draw(content, totals, share, rng)
        if cost < lowest_cost:
            best, lowest_cost = selected, cost
    assert best is not None
    return best[group_index]


def _try_draw(
    content: Sequence[tuple[np.ndarray, np.ndarray]], totals: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return the mask of selected groups (G,), and the distance of the classes from their shares.

    Args:
        content: classes of each group, and its number of examples of each.
        totals: number of examples of each class (K,).
        share: target share of each class.
        rng: random generator of the order.
    """
    selected, selected_counts = np.zeros(len(content), bool), np.zeros(len(totals))
    order = rng.permutation(len(content))

    def change(group: int) -> float:
        """Return the change of cost from flipping a group; infinity if a class would have no training example."""
        group_classes, counts = content[group]
        new = selected_counts[group_classes] - counts if selected[group] else selected_counts[group_classes] + counts
        if (new >= totals[group_classes]).any():
            return np.inf
        return float(
            (
                ((new / totals[group_classes]) - share) ** 2
                - ((selected_counts[group_classes] / totals[group_classes]) - share) ** 2
            ).sum()
        )

    def flip(group: int) -> None:
        group_classes, counts = content[group]
        selected_counts[group_classes] += -counts if selected[group] else counts
        selected[group] = not selected[group]

    for _ in range(4):
        before = selected.copy()
        for group in order.tolist():
            if change(group) < -1e-12:
                flip(group)
        if (selected == before).all():
            break
    if not selected.any():  # all groups exceed the share: the best one
        changes = np.asarray([change(group) for group in order.tolist()])
        if not np.isfinite(changes).any():
            raise UserError(
                "every group of the training examples is the only one of some class, so none can be held out; set "
                "config.data.validation=0, add groups, or change config.data.group ('none' for no groups)"
            )
        flip(int(order[changes.argmin()]))
    return selected, float(((selected_counts / totals - share) ** 2).sum())


def _report_single(labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> None:
    """Warn about classes that stay in train because they have a single example, or group."""
    pairs = np.unique(np.stack([labels, np.unique(groups, return_inverse=True)[1]]), axis=1)
    present, counts = np.unique(pairs[0], return_counts=True)
    single = present[counts == 1]
    if len(single) and len(present) > 1:
        names = [str(classes[k]) if len(classes) > k else f"class {k}" for k in single[:3]]
        what = "example" if len(groups) == len(np.unique(groups)) else "group"
        warn_once(
            f"{len(single)} of {len(present)} classes have a single training {what} ({', '.join(names)}"
            f"{', ...' if len(single) > 3 else ''}), which stays in train, so validation does not cover them"
        )


T = TypeVar("T")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
SPLIT_BY_NAME = {name: split for split, names in SPLIT_NAMES.items() for name in names}
ALL_SPLIT_NAMES = ", ".join(SPLIT_BY_NAME)  # for messages


def parse_split(name: str) -> str | None:
    """Return the split that ``name`` denotes, ignoring case: "train", "validation", "test", or None."""
    return SPLIT_BY_NAME.get(name.strip().lower())


def find_splits(names: Iterable[str], where: object) -> dict[str, str]:
    """Return split -> name for the splits among ``names``, in the order train, validation, test.

    Args:
        names: names of folders, files without suffix, or arrays; other names are ignored.
        where: their location, for messages.

    Raises:
        UserError: two names denote the same split, such as ``val`` and ``dev``.
    """
    by_split: dict[str, str] = {}
    for name in sorted(names):
        split = parse_split(name)
        if split is None:
            continue
        if split in by_split:
            raise UserError(
                f"{where}: {by_split[split]!r} and {name!r} both denote the {split} split; rename or merge one of them"
            )
        by_split[split] = name
    return {split: by_split[split] for split in SPLIT_NAMES if split in by_split}


def with_test_split(splits: Mapping[str, T]) -> dict[str, T]:
    """Return the splits; without a test split, the validation split becomes the test split."""
    validation_only = "validation" in splits and "test" not in splits
    return {"test" if validation_only and split == "validation" else split: value for split, value in splits.items()}
