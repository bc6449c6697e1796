"""Evaluation of a trained network on another labelled dataset: all its examples, with the run's classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.data.dataset import Dataset, Split
from tl_jax.tasks.run_record import relabel
from tl_jax.utils.errors import UserError, join_names

MAX_NAMES = 5  # class names per message


class Joined:
    """Lazy concatenation of arrays (N, ...), read by rows."""

    def __init__(self, arrays: Sequence[Any]):
        self._arrays, self._ends = arrays, np.cumsum([len(array) for array in arrays])
        self.shape, self.dtype = (int(self._ends[-1]), *arrays[0].shape[1:]), arrays[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        if numbers.ndim == 0:
            numbers = int(numbers)
            k = int(np.searchsorted(self._ends, numbers, side="right"))
            return self._arrays[k][numbers - (self._ends[k] - len(self._arrays[k]))]
        out = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._ends, numbers, side="right")
        for k in np.unique(owner):
            chosen = owner == k
            out[chosen] = self._arrays[k][numbers[chosen] - (self._ends[k] - len(self._arrays[k]))]
        return out


def all_examples(source: Dataset) -> Split:
    """Return the examples of all splits of a dataset as one."""
    splits = [split for split in (source.train, source.validation, source.test) if split and len(split.labels)]
    if len(splits) == 1:
        return splits[0]
    inputs: Any = Joined([split.inputs for split in splits])
    groups, files = ([getattr(split, name) for split in splits] for name in ("groups", "files"))
    return Split(
        inputs,
        _stack([split.labels for split in splits]),
        None if any(each is None for each in groups) else np.concatenate(groups),
        None if any(each is None for each in files) else np.concatenate(files),
    )


def _stack(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate labels (N, ...); boxes are padded to the same number per image."""
    if labels[0].ndim < 3:
        return np.concatenate(labels)
    most = max(each.shape[1] for each in labels)
    padding = [np.full((len(each), most - each.shape[1], each.shape[2]), -1.0, each.dtype) for each in labels]
    return np.concatenate([np.concatenate(pair, axis=1) for pair in zip(labels, padding, strict=True)])


def with_classes_of_run(source: Dataset, classes: Sequence[str], names: Mapping[str, str]) -> Dataset:
    """Return a dataset whose labels are indices of the run's classes.

    Args:
        source: another dataset; it may lack some classes.
        classes: class names of the run.
        names: maps class names of the dataset to those of the run, if they differ.

    Raises:
        UserError: The run lacks some classes; the message names them.
    """
    index, translated = {name: k for k, name in enumerate(classes)}, [names.get(name, name) for name in source.classes]
    if unknown := [name for name in translated if name not in index]:
        theirs, ours = (join_names([repr(name) for name in each], MAX_NAMES) for each in (unknown, classes))
        raise UserError(
            f"{source.name}: the classes {theirs} are not classes of the run ({ours}); map them, such as "
            f"classes={{{unknown[0]!r}: {classes[0]!r}}}"
        )
    order = np.asarray([index[name] for name in translated], np.int32)
    parts = {name: getattr(source, name) for name in ("train", "validation", "test")}
    parts = {name: part._replace(labels=relabel(part.labels, order)) for name, part in parts.items() if part}
    return source._replace(classes=tuple(classes), **parts)
