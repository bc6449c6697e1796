"""Options of a network, which a user or a file of weights names: their types and ranges, before anything is built."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from tl_jax.utils.errors import UserError

MAX_INTEGER = 10_000_000  # of a whole number: words of a vocabulary, units of a layer
MAX_FLOAT = 100  # of other numbers: shares, multiples of a width
MAX_BLOCKS = 1_000  # of layers; a few hundred are the deepest networks, and each takes a moment to build


def check_options(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the values of options.

    Args:
        name: of the model, for the message.
        options: as given.
        defaults: values of the attributes of the model without them, which have the right types.

    Raises:
        UserError: names the option and says what it may be.
    """
    for option, value in options.items():
        if expected := _expectation(value, defaults[option]):
            given = repr(value) if isinstance(value, str | Real | None) else f"a {type(value).__name__}"
            raise UserError(f"model {name!r}: option {option} is {given}, not {expected}; correct it")
    merged = {**defaults, **options}
    if (count := count_blocks(merged)) > MAX_BLOCKS:
        raise UserError(f"model {name!r}: {count:,} blocks are more than {MAX_BLOCKS:,}; lower its depth")
    if "depths" in merged and len(merged["depths"]) != len(merged.get("widths", merged["depths"])):
        raise UserError(f"model {name!r}: depths={merged['depths']} and widths={merged['widths']} differ in length")


def count_blocks(options: Mapping[str, Any]) -> int:
    """Return the number of blocks of a network with these attributes."""
    stages = sum(stage[2] for stage in options.get("stages", ()))
    return sum(options.get("depths", ())) + sum(options.get("repeats", ())) + stages + options.get("depth", 0)


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number of this kind, and not True or False."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _expectation(value: Any, default: Any) -> str:
    """Return in words what a value should be, "" if it is of the kind of ``default`` and within its range."""
    match default:
        case bool():
            return "" if isinstance(value, bool) else "True or False"
        case int():
            fits = _is_number(value, Integral) and 0 <= value <= MAX_INTEGER
            return "" if fits else f"a whole number from 0 to {MAX_INTEGER:,}"
        case float():
            is_number = _is_number(value, Real) and math.isfinite(value)
            return "" if is_number and 0 <= value <= MAX_FLOAT else f"a number from 0 to {MAX_FLOAT}"
        case str():
            return "" if isinstance(value, str) else "a text"
        case tuple():
            valid_length = isinstance(value, tuple) and 0 < len(value) <= MAX_BLOCKS
            entry_errors = [_expectation(entry, default[0]) for entry in value] if valid_length else ["a sequence"]
            fits = not any(entry_errors) and (
                not isinstance(default[0], tuple) or {len(entry) for entry in value} == {len(default[0])}
            )
            return "" if fits else f"a tuple such as {default}"
        case _:
            return ""  # a type of computation
