"""Labels as files spell them become classes: which spellings are one class, and in which order classes stand."""

import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from tl_jax.errors import UserError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
MAX_DECIMALS = 20  # classes that are decimal fractions; with more, and few examples of each, they are measurements
MIN_EXAMPLES = 5  # of such a class on average


class Labels(NamedTuple):
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
        """Return the class of a label, or None if there is no such class."""
        return self.indices.get(_value(label, self.numeric)) if not self.numeric or is_number(label) else None


def make_labels(labels: Sequence[str], where: object, first: str = "") -> Labels:
    """Return the classes of labels: numbers by their value, other names in alphabetical order.

    If all labels are numbers, they are compared by their values, and the shortest spelling is the name. Other labels
    are compared letter by letter, in Unicode's composed form (NFC).

    Args:
        labels: of all N examples of the training split.
        where: file they are from, for messages.
        first: name of the class that comes first, if it is there.

    Raises:
        UserError: "nan" among numbers, or so many decimal fractions that the labels are quantities, not classes.
    """
    cleaned = [clean_label(label) for label in labels]
    spelled = set(cleaned)
    numeric = all(map(is_number, spelled))
    gaps = {label for label in spelled if label.lower() == "nan"}
    if gaps and len(spelled) > len(gaps) and all(map(is_number, spelled - gaps)):
        line = f"{sum(label in gaps for label in cleaned):,} labels are {min(gaps)!r} where the others are numbers"
        raise UserError(f"{where}: {line}; fill them in, or remove these examples")
    names: dict[Hashable, str] = {}
    for label in sorted(spelled, key=lambda label: (len(label), label)):
        names.setdefault(_value(label, numeric), label)
    if numeric:
        _check_quantities(len(cleaned), names, where)
    order = sorted(names, key=lambda value: (names[value] != first, value))
    return Labels(tuple(names[value] for value in order), {value: i for i, value in enumerate(order)}, numeric)


def clean_label(label: str) -> str:
    """Return a label without blanks around it, in Unicode's composed form: "cafe" + accent is "café"."""
    return unicodedata.normalize("NFC", label.strip())


def is_number(label: str) -> bool:
    """Whether a label is a decimal number; other digits, such as "²", are names."""
    return NUMBER.fullmatch(label.strip()) is not None


def _value(label: str, numeric: bool) -> Hashable:
    return Decimal(label.strip()) if numeric else clean_label(label)


def _check_quantities(examples: int, names: Iterable[Hashable], where: object) -> None:
    values = [value for value in names if isinstance(value, Decimal)]
    fractions = [value for value in values if value != value.to_integral_value()]
    if fractions and len(values) > MAX_DECIMALS and len(values) * MIN_EXAMPLES > examples:
        raise UserError(
            f"{where}: {examples:,} examples have {len(values):,} different numbers as labels, such as "
            f"{fractions[0]}: these are quantities, not classes; round them to a few classes, or choose another label"
        )
