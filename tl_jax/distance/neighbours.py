"""Nearest neighbours: how well features tell classes apart without anything being fitted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.distance import checks
from tl_jax.errors import UserError, nearest

METRICS = ("cosine", "euclidean")
BLOCK = 2**24  # numbers that a block of queries may take beside the features: 64 MiB


def knn(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    queries: np.ndarray | jax.Array,
    k: int = 5,
    metric: str = "cosine",
) -> jax.Array:
    """Return for each query the class that most of its ``k`` nearest examples have (Cover and Hart 1967), int (M,).

    Of classes with equally many of them the one whose nearest member is closest wins; of examples equally far, the
    earlier is the nearer. Distances are float32. Queries are taken in blocks, so that memory is N D + M D and 64 MiB.

    Args:
        features: (N, D) float, the examples.
        labels: (N,) int in [0, K), their classes.
        queries: (M, D) float.
        k: neighbours that vote, from 1 to N.
        metric: "cosine", by the angle between the vectors as they are (a zero vector is at a right angle to all), or
            "euclidean".

    Raises:
        UserError: shapes that do not belong together, values that are not finite, a single class, no such metric, or
            more neighbours than examples.
    """
    x, y, _ = checks.labelled(features, labels)
    shape = np.shape(queries)
    if len(shape) != 2 or shape[1] != x.shape[1]:
        raise UserError(f"queries are (M, {x.shape[1]}) as the features are, not {shape}; take them from one network")
    q = jnp.asarray(checks.real(queries, "queries", checks.LARGEST), jnp.float32)
    if metric not in METRICS:
        raise UserError(f"no metric {metric!r}; {nearest(metric, METRICS)}")
    if not 1 <= k <= len(x):
        raise UserError(f"k={k} must be from 1 to {len(x)}, the number of examples")
    return _vote(x, y, q, int(k), metric)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _vote(x: jax.Array, y: jax.Array, queries: jax.Array, k: int, metric: str) -> jax.Array:
    if metric == "cosine":
        x, queries, offset = _unit(x), _unit(queries), jnp.zeros(len(x))
    else:
        # |x - q|^2 = |q|^2 - 2 (q x - |x|^2 / 2), of which the first is the same for all x. Far from the origin the
        # difference of the others would be lost in rounding.
        scale = _exponent(jnp.abs(x).max())
        x, queries = jnp.ldexp(x, -scale), jnp.ldexp(queries, -scale)
        mean = x.mean(0)
        x, queries = x - mean[None], queries - mean[None]
        offset = (x**2).sum(1) / 2

    def one(query: jax.Array) -> jax.Array:
        likeness = jnp.matmul(query, x.T, precision="highest") - offset
        classes = y[jax.lax.top_k(likeness, k)[1]]
        votes = (classes[:, None] == classes[None]).sum(1)
        return classes[votes.argmax()]  # of equal votes argmax takes the first, which is that of the nearest

    return jax.lax.map(one, queries, batch_size=max(1, BLOCK // (len(x) + k * k)))


def _exponent(size: jax.Array) -> jax.Array:
    """Return the exponent by which numbers are scaled, exactly, so that squares of tiny ones do not vanish."""
    return jnp.where(size < 1e-9, jnp.frexp(size)[1], 0)


def _unit(x: jax.Array) -> jax.Array:
    """Return the rows of ``x`` at length one; zero stays zero."""
    x = jnp.ldexp(x, -_exponent(jnp.abs(x).max(1, keepdims=True)))
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), jnp.finfo(x.dtype).tiny)
