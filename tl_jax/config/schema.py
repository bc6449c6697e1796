"""Checking a configuration against a table of fields: unknown names, wrong types, values out of range."""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tl_jax.utils.errors import UserError, nearest


class Field(NamedTuple):
    """One field; ``low`` and ``high`` are inclusive limits of numbers.

    ``choices`` may be a function, for names that are added after this was made, such as models of the user's own.
    """

    default: Any
    doc: str
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    low: float | None = None
    high: float | None = None


def flatten_config(config: Any, fields: Mapping[str, Field], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested configuration by dotted path; a dict that is itself a field is not entered."""
    values = {}
    for key, value in config.items():
        path = prefix + key
        if isinstance(value, ConfigDict) and path not in fields:
            values.update(flatten_config(value, fields, path + "."))
        else:
            values[path] = value
    return values


def check_known(path: str, fields: Mapping[str, Field], prefix: str = "config.") -> None:
    """Refuse a path that is no field, with the nearest one or the fields of its group."""
    if path not in fields:
        group = path.rpartition(".")[0]
        siblings = [field for field in fields if field.rpartition(".")[0] == group]
        matches = difflib.get_close_matches(path, fields, n=1, cutoff=0.85)
        advice = f"did you mean {matches[0]!r}?" if matches else f"choose one of {', '.join(siblings or fields)}"
        raise UserError(f"unknown field {prefix}{path}; {advice}")


def check_value(name: str, value: Any, field: Field) -> None:
    """Refuse a value of the wrong type or out of range; ``name`` is the field's full name."""
    default = field.default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        types = (int, float) if isinstance(default, float) else int
        if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"{name}={value!r} is not a finite number ({field.doc})")
        if field.low is not None and value < field.low:
            raise UserError(f"{name}={value} must be at least {field.low:g} ({field.doc})")
        if field.high is not None and value > field.high:
            raise UserError(f"{name}={value} must be at most {field.high:g} ({field.doc})")
    elif isinstance(default, tuple):
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{name}={value!r} is not a tuple ({field.doc})")
    elif not isinstance(value, (type(default), ConfigDict) if isinstance(default, dict) else type(default)):
        raise UserError(f"{name}={value!r} is not of type {type(default).__name__} ({field.doc})")
    choices = field.choices() if callable(field.choices) else field.choices
    if choices and value not in choices:
        raise UserError(f"{name}={value!r} is unknown; {nearest(str(value), choices)}")
