"""Models by name: pure Flax linen modules with named layers that return ``(output, endpoints)``."""

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from tl_jax.config.options import Options, option
from tl_jax.models import (  # registers the networks
    convnext,  # noqa: F401
    efficientnet,  # noqa: F401
    inception,  # noqa: F401
    mobilenet,  # noqa: F401
    resnet,  # noqa: F401
    vgg,  # noqa: F401
    vit,  # noqa: F401
)
from tl_jax.models.bert import Bert
from tl_jax.models.registry import MODELS, register_model
from tl_jax.utils.errors import UserError, nearest

register_model("bert", Bert, inputs="texts")  # each file defines its sizes as options
register_model("distilbert", Bert, {"depth": 6, "types": 0, "pooler": "relu", "head_dropout": 0.2}, inputs="texts")

POLICY = "policy"  # network of a reinforcement learner; its environment determines inputs and outputs

# Limits of options from users or weight files.
MAX_INTEGER = 10_000_000  # integers, such as vocabulary size or layer width
MAX_FLOAT = 100  # floats, such as rates and width multipliers
MAX_BLOCKS = 1_000  # the deepest networks have a few hundred blocks, and each takes time to build


def names(inputs: str = "images") -> tuple[str, ...]:
    """Return the sorted names of the networks for images or texts that ``create`` supports."""
    return tuple(sorted(name for name, entry in MODELS.items() if entry.inputs == inputs))


@dataclasses.dataclass(frozen=True)
class ModelConfig(Options):
    """Network settings."""

    name: str = option("resnet50", "network", lambda: (*names(), *names("texts"), POLICY))
    num_classes: int = option(0, "outputs of the head; 0: the number of classes of the data", low=0)
    endpoint: str = option("", "stage on which the new head sits, such as stage3; empty for the last")
    channels: int = option(3, "input channels; 1 converts images to grayscale", low=1, high=3)
    dtype: str = option("float32", "computation dtype; parameters are always float32", ("float32", "bfloat16"))
    options: Mapping[str, Any] = option({}, "further attributes of the model class, by name")


def create(name: str, num_classes: int, **options: Any) -> Any:
    """Return a linen module; ``apply(variables, x, train=False)`` returns ``(logits, endpoints)``.

    Args:
        name: one of ``names()`` or ``names("texts")``.
        num_classes: K; 0 builds the model without a head, and its first output is ``features`` (N, D).
        **options: attributes of the model class, such as ``layout``, ``endpoint`` or ``dtype``.

    Raises:
        UserError: The name, option or layout is unknown, or a value has the wrong type or is out of range.
    """
    entry = MODELS[name]
    cls, fixed = entry.cls, entry.options
    option_names = {f.name for f in dataclasses.fields(cls)} - {"parent", "name", "num_classes"}
    for given in options:
        if given not in option_names:
            raise UserError(f"model {name!r} has no option {given!r}; {nearest(given, option_names)}")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)} | dict(fixed)
    check_options(name, {"num_classes": num_classes, **options}, {**defaults, "num_classes": 0})
    layout = options.get("layout")
    if layout is not None and layout not in cls.layouts:
        raise UserError(f"model {name!r} has no layout {layout!r}; {nearest(layout, cls.layouts)}")
    return cls(num_classes=num_classes, **{**fixed, **options})


def num_blocks(name: str, options: Mapping[str, Any]) -> int:
    """Return the number of blocks of ``create(name, ..., **options)``."""
    entry = MODELS[name]
    defaults = {field.name: field.default for field in dataclasses.fields(entry.cls)}
    return count_blocks({**defaults, **entry.options, **options})


def model_options(name: str, model: Any) -> dict[str, Any]:
    """Return the options with which ``create(name, ...)`` gives ``model``, without the computation dtype."""
    default_model = create(name, model.num_classes)
    skipped = {"parent", "name", "num_classes", "dtype"}
    values = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in skipped}
    return {key: value for key, value in values.items() if value != getattr(default_model, key)}


def check_options(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the values of options.

    Args:
        name: name of the model, for the message.
        options: given values.
        defaults: default values of the model's attributes, which have the right types.

    Raises:
        UserError: A value is invalid; the message names the option and the valid values.
    """
    for key, value in options.items():
        if expected := _expectation(value, defaults[key]):
            given = repr(value) if isinstance(value, str | Real | None) else f"a {type(value).__name__}"
            raise UserError(f"model {name!r}: option {key} is {given}, not {expected}; correct it")
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
    """Return whether a value is a number of this type, excluding booleans."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _expectation(value: Any, default: Any) -> str:
    """Describe the valid values; "" if a value has the type of ``default`` and is in range."""
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
            return ""  # a computation dtype


__all__ = ["POLICY", "check_options", "create", "model_options", "names", "num_blocks", "register_model"]
