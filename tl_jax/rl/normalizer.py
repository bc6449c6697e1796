"""Observations brought to mean 0 and variance 1 by what has been seen so far."""

from typing import Any

import jax
import jax.numpy as jnp

LARGEST = 10.0  # that a normalised value may be, in deviations
Statistics = dict[str, jax.Array]


def init(shape: tuple[int, ...]) -> Statistics:
    """Return the statistics before anything was seen; they change nothing."""
    return {"count": jnp.zeros(()), "mean": jnp.zeros(shape), "var": jnp.ones(shape)}


def seen(stats: Statistics, x: jax.Array) -> Statistics:
    """Return the statistics with the observations (N, ...) in them (Chan, Golub and LeVeque 1979)."""
    n, mean, var = float(len(x)), x.mean(0), x.var(0)
    total = stats["count"] + n
    shift = mean - stats["mean"]
    squares = stats["var"] * stats["count"] + var * n + shift**2 * stats["count"] * n / total
    return {"count": total, "mean": stats["mean"] + shift * n / total, "var": squares / total}


def normalized(stats: Any, x: jax.Array) -> jax.Array:
    """Return the observations (N, ...) normalised; as they are where there are no statistics."""
    if not stats:
        return x
    scaled = (x - stats["mean"][None]) * jax.lax.rsqrt(stats["var"][None] + 1e-8)
    return jnp.clip(scaled, -LARGEST, LARGEST)
