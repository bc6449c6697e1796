"""Map labels to classes: equal spellings, the order of classes, and checks of label values."""

import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data.dataset import CLASS, Dataset, Split
from tl_jax.utils.errors import UserError

NUMBER_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
MAX_DECIMALS = 20  # classes that are decimal fractions; more of them, with few examples each, are measurements
MIN_EXAMPLES = 5  # average examples of such a class
MAX_LETTERS = 1000  # characters of a class name; longer ones are texts
MAX_CLASSES = 1_000_000  # classes that a file may declare without names


class LabelMap(NamedTuple):
    """The classes of a data set.

    Attributes:
        names: K class names.
        indices: value of a label -> class.
        numeric: whether all labels are numbers; "1", "1.0" and "01" are then one class.
    """

    names: tuple[str, ...]
    indices: Mapping[Hashable, int]
    numeric: bool

    def index(self, label: str) -> int | None:
        """Return the class of a label; None if there is none."""
        return self.indices.get(_label_value(label, self.numeric)) if not self.numeric or is_number(label) else None


def make_label_map(labels: Sequence[str], where: object, first: str = "") -> LabelMap:
    """Return the classes of labels: numbers by value, other names in alphabetical order.

    If all labels are numbers, equal values are one class, named by the shortest spelling. Other labels are compared in
    Unicode's composed form (NFC).

    Args:
        labels: labels of all N examples of the training split.
        where: their file, for messages.
        first: name of the class to put first, if it occurs.

    Raises:
        UserError: "nan" among numbers, too many decimal fractions, which are quantities, or names so long that they are
            texts.
    """
    cleaned = [clean_label(label) for label in labels]
    unique = set(cleaned)
    check_class_names(unique, where)
    numeric = all(map(is_number, unique))
    missing = {label for label in unique if label.lower() == "nan"}
    if missing and len(unique) > len(missing) and all(map(is_number, unique - missing)):
        line = f"{sum(label in missing for label in cleaned):,} labels are {min(missing)!r}, but the others are numbers"
        raise UserError(f"{where}: {line}; fill them in, or remove these examples")
    names: dict[Hashable, str] = {}
    for label in sorted(unique, key=lambda label: (len(label), label)):
        names.setdefault(_label_value(label, numeric), label)
    if numeric:
        _check_quantities(len(cleaned), names, where)
    order = sorted(names, key=lambda value: (names[value] != first, value))
    return LabelMap(tuple(names[value] for value in order), {value: i for i, value in enumerate(order)}, numeric)


def check_class_names(names: Iterable[str], where: object) -> None:
    """Refuse class names so long that they are texts; ``where`` is their location for the message."""
    long = [name for name in names if len(name) > MAX_LETTERS]
    if long:
        raise UserError(
            f"{where}: {len(long):,} labels have more than {MAX_LETTERS:,} characters, such as {min(long)[:20]!r}...: "
            "these are texts, not classes; choose the field or column with the classes"
        )


def class_indices(
    values: Any, classes: int, where: object, allow_missing: bool = False, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return labels (N,) or (N, 1) as int32 (N,), checked to be in [0, K); a cast alone would wrap them.

    Args:
        values: integers of any type.
        classes: K.
        where: their file, or data set and split, for messages.
        allow_missing: whether -1 is allowed for an unpublished label.
        rows: (N,) example of each label; None for one label per example.

    Raises:
        UserError: another shape or type, or a label out of range; it gives the first one, and their number.
    """
    labels = np.asarray(values)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels of type {labels.dtype} {labels.shape}; give each example one integer from 0 to "
            f"{classes - 1}"
        )
    invalid = np.flatnonzero((labels < (-1 if allow_missing else 0)) | (labels >= classes))
    if len(invalid):
        more = f" ({len(invalid):,} of {len(labels):,} labels are out of range)" if len(invalid) > 1 else ""
        row = invalid[0] if rows is None else rows[invalid[0]]
        raise UserError(
            f"{where}: example {row} has the label {labels[invalid[0]]}, but the {classes:,} classes are 0 to "
            f"{classes - 1:,}{more}; correct the labels, or the class names"
        )
    return labels.astype(np.int32)


def check_dataset(dataset: Dataset) -> Dataset:
    """Return a data set after checking that all its labels are in [0, K).

    Raises:
        UserError: a label of an example, a tag of a word or the class of a box is out of range.
    """
    for name in ("train", "validation", "test"):
        split: Split | None = getattr(dataset, name)
        if split is None or not len(split.labels):
            continue
        where, labels, rows = f"{dataset.name}, {name}", split.labels, None
        if labels.dtype == object:  # one tag per word
            rows = np.repeat(np.arange(len(labels)), [len(tags) for tags in labels])
            labels = np.concatenate([np.zeros(0, np.int32), *labels])
        elif labels.ndim == 3:  # boxes
            rows = np.repeat(np.arange(len(labels)), labels.shape[1])
            labels = labels[..., CLASS].astype(np.int64).reshape(-1)
        class_indices(labels, len(dataset.classes), where, split.labels.ndim == 3, rows)
    return dataset


def clean_label(label: str) -> str:
    """Return a label without surrounding blanks, in Unicode's composed form: "cafe" + accent is "café"."""
    return unicodedata.normalize("NFC", label.strip())


def is_number(label: str) -> bool:
    """Return whether a label is a decimal number; other digits, such as "²", are names."""
    return NUMBER_PATTERN.fullmatch(label.strip()) is not None


def _label_value(label: str, numeric: bool) -> Hashable:
    return Decimal(label.strip()) if numeric else clean_label(label)


def _check_quantities(examples: int, names: Iterable[Hashable], where: object) -> None:
    values = [value for value in names if isinstance(value, Decimal)]
    fractions = [value for value in values if value != value.to_integral_value()]
    if fractions and len(values) > MAX_DECIMALS and len(values) * MIN_EXAMPLES > examples:
        raise UserError(
            f"{where}: {examples:,} examples have {len(values):,} different numbers as labels, such as "
            f"{fractions[0]}, so they are quantities; round them to a few classes, or choose another label"
        )
