"""Sliced Wasserstein distance: one-dimensional optimal transport along random directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.transferability.registry import SETS, register_score
from tl_jax.utils.errors import UserError

DIRECTION_BLOCK = 16  # directions per block


def sliced_wasserstein(
    x1: _inputs.Array, x2: _inputs.Array, key: jax.Array, projections: int = 256, order: float = 2.0
) -> float:
    """Return the sliced Wasserstein distance of two datasets (Bonneel et al. 2015).

    It is the mean over directions of W_p^p between the projections of both datasets, to the power 1 / p, in units of
    the features. In one dimension W_p^p is the integral of ``|F^-1(t) - G^-1(t)|^p`` over quantiles, computed exactly
    for any two sizes. Only the random directions make it an estimate; one key always gives the same directions.
    Computed in double precision, at a cost of (N1 + N2) D per direction.

    Args:
        x1: (N1, D) float.
        x2: (N2, D) float, from the same layer of the same network.
        key: random key of the directions.
        projections: number of directions.
        order: p, at least 1.

    Raises:
        UserError: The shapes do not match, values are not finite, there are no directions, or the order is below 1.
    """
    a, b = _inputs.feature_pair(x1, x2)
    if projections < 1:
        raise UserError(f"projections={projections}: out of range; it must be at least 1")
    if not 1 <= order < float("inf"):
        raise UserError(f"order={order}: out of range; it must be finite and at least 1")
    directions = np.asarray(random_directions(key, projections, a.shape[1]))
    origin = a.mean(0)
    with jax.enable_x64(True):
        sides = jnp.asarray(a - origin[None]), jnp.asarray(b - origin[None])
        return float(sliced_wasserstein_from(*sides, jnp.asarray(directions), order=float(order)))


def random_directions(key: jax.Array, count: int, features: int) -> jax.Array:
    """Return random unit vectors (P, D), uniform on the sphere."""
    x = jax.random.normal(key, (count, features), jnp.float32)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _quantile_steps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each interval between jumps of either quantile function the two sorted indices, and its length.

    Quantile functions are steps with jumps at multiples of 1 / n and 1 / m, which are integers in units of 1 / (n m).
    """
    jumps = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
    return jumps[:-1] // m, jumps[:-1] // n, np.diff(jumps) / (n * m)


@functools.partial(jax.jit, static_argnames="order")
def sliced_wasserstein_from(a: jax.Array, b: jax.Array, directions: jax.Array, *, order: float) -> jax.Array:
    """Return ``sliced_wasserstein`` of (N1, D) and (N2, D) features along directions (P, D)."""
    i, j, lengths = _quantile_steps(len(a), len(b))

    def line_distance(direction: jax.Array) -> jax.Array:
        direction = direction.astype(a.dtype)
        direction = direction / jnp.linalg.norm(direction)
        p, q = (jnp.sort(jnp.matmul(x, direction, precision="highest")) for x in (a, b))
        return (jnp.abs(p[i] - q[j]) ** order * lengths).sum()

    return jax.lax.map(line_distance, directions, batch_size=DIRECTION_BLOCK).mean() ** (1 / order)


register_score("sliced_wasserstein", SETS)(lambda x1, y1, x2, y2, key: sliced_wasserstein(x1, x2, key))
