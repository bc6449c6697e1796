"""Scale images with more than 8 bits by one linear range per data set, so that equal values stay equal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.utils.errors import UserError
from tl_jax.utils.log import warn_once

ValueRange = tuple[float, float]  # the value that becomes 0, and the one that becomes 255


def parse_range(values: Sequence[Any]) -> ValueRange | None:
    """Return the range in ``config.data.range``; None for ``()``.

    Raises:
        UserError: it is not a pair of finite numbers in increasing order.
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
    """Scale values linearly to uint8 of the same shape: ``low`` and below to 0, ``high`` and above to 255."""
    low, high = value_range
    share = (np.asarray(values, np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


def find_range(name: str, arrays: Iterable[np.ndarray]) -> ValueRange:
    """Return the minimum and maximum over all arrays.

    Raises:
        UserError: a value is not finite.
    """
    limits = [(float(values.min()), float(values.max())) for values in arrays if values.size]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if not np.isfinite([low, high]).all():
        raise UserError(f"{name}: images have values that are not finite ({low:g} to {high:g}); replace them")
    return low, high if high > low else low + 1.0  # a constant data set is black


def print_range(name: str, count: int, value_range: ValueRange, stated: bool, others: int = 0) -> None:
    """Report how images with more than 8 bits are scaled, and that ``others`` with 8 bits are not."""
    low, high = value_range
    source = "from data.range" if stated else "minimum and maximum of the data; set data.range to change it"
    images = "1 image has" if count == 1 else f"{count:,} images have"
    scaled = f"values {low:g} to {high:g} become 0 to 255 ({source})"
    unscaled = f"; {others:,} with 8 bits are not scaled" if others else ""
    warn_once(f"{name}: {images} more than 8 bits; {scaled}{unscaled}")


def range_from_facts(facts: Mapping[str, Any]) -> ValueRange | None:
    """Return the value range in the facts of a run, see ``Dataset.facts``; None for images of 8 bits."""
    return tuple(facts["value_range"]) if facts.get("value_range") else None


def check_range_unchanged(folder: object, old_facts: Mapping[str, Any], new_facts: Mapping[str, Any]) -> None:
    """Refuse a value range that differs from that of a run, given its facts and those of the data.

    Raises:
        UserError: the data have changed, so that the same image would get other values.
    """
    old, new = range_from_facts(old_facts), range_from_facts(new_facts)
    if old and old != new:
        raise UserError(
            f"{folder}: the run scaled images of more than 8 bits from the range {old}, but the data now have "
            f"{new or 'none'}; restore the data of the run"
        )


def refuse_unused_range(name: str) -> None:
    """Refuse a configured range that no image needs."""
    raise UserError(f"{name}: config.data.range has no effect, as all images have 8 bits; leave it at ()")
