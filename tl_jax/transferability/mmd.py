"""Pairwise distances between datasets: maximum mean discrepancy and energy distance."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import SETS, register_score
from tl_jax.utils.errors import UserError, nearest

KERNELS = ("poly", "rbf")
MEDIAN_SAMPLE = 4096  # examples for the median bandwidth
TILE = 1024  # examples per side of a tile of pairs in memory
MAX_DOUBLE_PRODUCTS = 2**38  # multiplications above which products are float32

PairFunction = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # of x.y, |x|^2, |y|^2 and a scale


def mmd(x1: _inputs.Array, x2: _inputs.Array, kernel: str = "poly", bandwidth: float | None = None) -> float:
    """Return the unbiased squared maximum mean discrepancy of two datasets (Gretton et al. 2012, equation 3).

    It is the mean of k(x, x') over pairs of different examples within each dataset, minus twice the mean over pairs
    between them. Being unbiased, it can be negative, as it is for equal datasets. Computed in double precision; above
    ``MAX_DOUBLE_PRODUCTS`` multiplications, products are float32, and their errors average out. The cost is
    D (N1 + N2)^2, the memory that of both datasets in float64.

    Args:
        x1: (N1, D) float.
        x2: (N2, D) float, from the same layer of the same network.
        kernel: "poly", (x.y / D + 1)^3 (as in KID, Binkowski et al. 2018, arXiv:1801.01401), or "rbf",
            ``exp(-|x - y|^2 / (2 s^2))``.
        bandwidth: s of "rbf"; None for the median distance between two examples of the union, of which at most
            ``MEDIAN_SAMPLE``, evenly spaced, are used.

    Raises:
        UserError: The shapes do not match, values are not finite, a dataset has one example, the kernel is unknown, or
            the median is zero.
    """
    if kernel not in KERNELS:
        raise UserError(f"unknown kernel {kernel!r}; {nearest(kernel, KERNELS)}")
    a, b = _inputs.feature_pair(x1, x2, min_rows=2)
    if bandwidth is not None and not bandwidth > 0:
        raise UserError(f"bandwidth={bandwidth}: out of range; it must be above 0")
    if kernel == "rbf":
        a, b = _center_pair(a, b)
        scale = bandwidth or _median_distance(np.concatenate([a, b]))
        if not scale:
            raise UserError("bandwidth: the median distance is zero, since most examples are equal; pass bandwidth")
    else:
        scale = a.shape[1]
    with jax.enable_x64(True):
        return float(mmd_from(*_as_products(a, b), kernel=kernel, scale=scale))


def mmd_from(a: jax.Array, b: jax.Array, *, kernel: str, scale: float | jax.Array) -> jax.Array:
    """Return ``mmd`` of (N1, D) and (N2, D) features; ``scale`` is D for "poly", the bandwidth for "rbf"."""
    n, m, kernel_function = len(a), len(b), _cubic_kernel if kernel == "poly" else _gaussian_kernel
    within1 = _sum_over_pairs(kernel_function, scale, a) / (n * (n - 1))
    within2 = _sum_over_pairs(kernel_function, scale, b) / (m * (m - 1))
    return within1 + within2 - 2 * _sum_over_pairs(kernel_function, scale, a, b) / (n * m)


def energy(x1: _inputs.Array, x2: _inputs.Array) -> float:
    """Return the energy distance of two datasets, ``2 E|x - y| - E|x - x'| - E|y - y'|`` (Szekely and Rizzo 2013).

    Means are over all pairs, including those of an example with itself (the V-statistic). So it is nonnegative, and
    zero only for equal datasets. It has the units of the features; SciPy's ``energy_distance`` is its square root.
    Cost, memory and precision are those of ``mmd``.

    Args:
        x1: (N1, D) float.
        x2: (N2, D) float, from the same layer of the same network.

    Raises:
        UserError: The shapes do not match, or values are not finite.
    """
    with jax.enable_x64(True):
        return float(energy_from(*_as_products(*_center_pair(*_inputs.feature_pair(x1, x2)))))


def energy_from(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``energy`` of (N1, D) and (N2, D) features near the origin."""
    n, m = len(a), len(b)
    within = _sum_over_pairs(_distance, 1.0, a) / n**2 + _sum_over_pairs(_distance, 1.0, b) / m**2
    return jnp.maximum(0.0, 2 * _sum_over_pairs(_distance, 1.0, a, b) / (n * m) - within)


def _as_products(a: np.ndarray, b: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return both datasets for products in float64, or in float32 if there are too many products."""
    pairs = max(len(a), len(b)) ** 2
    dtype = np.float64 if pairs * a.shape[1] < MAX_DOUBLE_PRODUCTS else np.float32
    return jnp.asarray(a, dtype), jnp.asarray(b, dtype)


def _center_pair(a: Any, b: Any) -> tuple[Any, Any]:
    """Center both datasets at the mean of their means, to reduce rounding in differences of squares."""
    origin = (a.mean(0) + b.mean(0)) / 2
    return a - origin[None], b - origin[None]


def _cubic_kernel(products, _, __, scale):
    return (products / scale + 1) ** 3


def _gaussian_kernel(products, x, y, scale):
    return jnp.exp(-_squared_distance(products, x, y) / (2 * scale**2))


def _distance(products, x, y, _):
    return jnp.sqrt(_squared_distance(products, x, y))


def _squared_distance(products, x, y):
    """Return |x - y|^2, with values at the level of rounding set to zero, since the square root would amplify them."""
    squared = x + y - 2 * products
    return jnp.where(squared > 8 * jnp.finfo(products.dtype).eps * (x + y), squared, 0)


def _median_distance(x: np.ndarray) -> float:
    """Return the median distance between rows of ``x`` (N, D), of which at most ``MEDIAN_SAMPLE`` are used."""
    x = x[np.linspace(0, len(x) - 1, min(len(x), MEDIAN_SAMPLE)).round().astype(int)]
    squares = (x**2).sum(1)
    with jax.enable_x64(True):
        products, row, column = map(jnp.asarray, (x @ x.T, squares[:, None], squares[None]))
        distances = np.asarray(_distance(products, row, column, 1))
    return float(np.median(distances[np.triu_indices(len(x), 1)]))


def _sum_over_pairs(
    function: PairFunction, scale: float | jax.Array, x: jax.Array, y: jax.Array | None = None
) -> jax.Array:
    """Sum ``function`` over pairs of a row of ``x`` and a row of ``y``, or of two different rows of ``x``."""
    same = y is None
    y = x if y is None else y
    n, m, tile = len(x), len(y), min(TILE, max(len(x), len(y)))
    rows, columns = (-(-len(side) // tile) for side in (x, y))
    tiles = np.array([(i, j) for i in range(rows) for j in range(i if same else 0, columns)], np.int32)
    padded = (jnp.pad(side, ((0, -len(side) % tile), (0, 0))) for side in (x, y))
    return _sum_tiles(*padded, n, m, tiles, scale, function, same, tile)


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _sum_tiles(x, y, n, m, tiles, scale, function: PairFunction, same: bool, tile: int) -> jax.Array:
    """Return the sum over ``tiles`` (T, 2) of the grid of pairs; within one dataset, half of the grid suffices."""

    def add_tile(total, corner):
        i, j = corner * tile
        a, b = (jax.lax.dynamic_slice_in_dim(side, k, tile) for side, k in ((x, i), (y, j)))
        row, column = i + jnp.arange(tile)[:, None], j + jnp.arange(tile)[None]
        products = jnp.matmul(a, b.T, precision="highest").astype(_statistics.widest())
        squares = [(side.astype(_statistics.widest()) ** 2).sum(1) for side in (a, b)]
        values = function(products, squares[0][:, None], squares[1][None], scale)
        counts = (row < n) & (column < m)
        weight = 1.0
        if same:
            counts, weight = counts & (row != column), jnp.where(i == j, 1.0, 2.0)
        return total + weight * jnp.where(counts, values, 0).sum(), None

    return jax.lax.scan(add_tile, jnp.zeros((), _statistics.widest()), tiles)[0]


register_score("mmd", SETS)(lambda x1, y1, x2, y2, key: mmd(x1, x2))
register_score("mmd_rbf", SETS)(lambda x1, y1, x2, y2, key: mmd(x1, x2, "rbf"))
register_score("energy", SETS)(lambda x1, y1, x2, y2, key: energy(x1, x2))
