"""Floating-point operations of a function, including loops."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core

ELEMENTWISE = ("add", "sub", "mul")  # one operation per output element


def count_flops(function: Any, *args: Any) -> float:
    """Return the FLOPs of one call of a jitted function, counted by XLA before optimization; NaN if it cannot.

    XLA counts the body of a loop once. Here the products and sums in a loop are multiplied by its iterations.
    """
    traced = function.trace(*args)
    once = (traced.lower().cost_analysis() or {}).get("flops", math.nan)
    return once + _jaxpr_flops(traced.jaxpr.jaxpr, loops=True) - _jaxpr_flops(traced.jaxpr.jaxpr, loops=False)


def _jaxpr_flops(jaxpr: core.Jaxpr, loops: bool) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name, sizes = eqn.primitive.name, [math.prod(_shape(v)) for v in eqn.outvars if hasattr(v.aval, "shape")]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * sizes[0] * math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, outputs = _shape(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * sizes[0] * math.prod(kernel) / kernel[outputs]
        elif name in ELEMENTWISE:
            total += sizes[0]
        repeats = eqn.params["length"] if name == "scan" and loops else 1
        total += repeats * sum(_jaxpr_flops(inner, loops) for inner in _inner_jaxprs(eqn.params.values()))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(values: Any) -> Iterator[core.Jaxpr]:
    """Yield the functions among the parameters of a primitive."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner_jaxprs(value)
