"""Images of more than 8 bits: one linear range for a whole data set, so that equal values stay equal in all images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.utils.errors import UserError
from tl_jax.utils.log import warn_once

ValueRange = tuple[float, float]  # the value that becomes 0, and the one that becomes 255


def parse_range(values: Sequence[Any]) -> ValueRange | None:
    """Return the range that ``config.data.range`` states, None for ``()``.

    Raises:
        UserError: it is not a pair of finite numbers, the smaller one first.
    """
    if not len(values):
        return None
    try:
        low, high = map(float, values)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise UserError(
            f"config.data.range={tuple(values)!r} is no pair (low, high) with low below high; write two numbers"
        )
    return low, high


def to_uint8(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Return values as uint8 of the same shape: ``low`` and less is 0, ``high`` and more 255, linear in between."""
    low, high = value_range
    share = (np.asarray(values, np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


def find_range(name: str, arrays: Iterable[np.ndarray]) -> ValueRange:
    """Return the least and the largest value of all arrays.

    Raises:
        UserError: a value is not finite.
    """
    limits = [(float(values.min()), float(values.max())) for values in arrays if values.size]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if not np.isfinite([low, high]).all():
        raise UserError(f"{name}: images have values that are not finite ({low:g} to {high:g}); replace them")
    return low, high if high > low else low + 1.0  # a set that has one value is black


def print_range(name: str, count: int, value_range: ValueRange, stated: bool, others: int = 0) -> None:
    """Say in one line how images of more than 8 bits are scaled, and that ``others`` with 8 bits are not."""
    low, high = value_range
    source = "as data.range states" if stated else "the data's smallest and largest value; data.range sets others"
    images = "1 image has" if count == 1 else f"{count:,} images have"
    scaled = f"values {low:g} to {high:g} become 0 to 255 ({source})"
    unscaled = f"; {others:,} with 8 bits stay as they are" if others else ""
    warn_once(f"{name}: {images} more than 8 bits; {scaled}{unscaled}")


def range_from_facts(facts: Mapping[str, Any]) -> ValueRange | None:
    """Return the range that the facts of a run state, see ``Dataset.facts``; None for images of 8 bits."""
    return tuple(facts["value_range"]) if facts.get("value_range") else None


def check_range_unchanged(folder: object, old_facts: Mapping[str, Any], new_facts: Mapping[str, Any]) -> None:
    """Refuse a range that is not the one of a run, given its facts and those of the data as they are now.

    Raises:
        UserError: the data have changed, so that the same image would get other values.
    """
    old, new = range_from_facts(old_facts), range_from_facts(new_facts)
    if old and old != new:
        raise UserError(
            f"{folder}: the run scaled images of more than 8 bits from the range {old}, and the data now have "
            f"{new or 'none'}; restore the data of the run"
        )


def refuse_unused_range(name: str) -> None:
    """Refuse a stated range that no image needs."""
    raise UserError(f"{name}: config.data.range has no effect, all images have 8 bits; leave it at ()")
