"""Statistics shared by scores: class counts, means and scatter, computed once, and linear algebra of PSD matrices.

Scatter is summed over blocks of rows in double precision, or as single-precision products with double-precision sums.
Linear algebra is in double precision and allows singular matrices. Without 64-bit support enabled by the caller,
everything is in single precision.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

MIN_PIVOT_FACTOR = 1e3  # a significant pivot exceeds the rounding of a correlation matrix by this factor


def widest() -> Any:
    """Return the widest enabled float dtype: float64 under ``jax.enable_x64``, else float32."""
    return jnp.result_type(float)


def rank_tolerance(size: int | jax.Array) -> jax.Array | np.floating:
    """Return the fraction of the largest eigenvalue below which others are rounding, for sums of ``size`` products."""
    return 4 * jnp.finfo(widest()).eps * size


def half_logdet(a: jax.Array) -> jax.Array:
    """Return half the log-determinant of I + a, for ``a`` (M, M) without negative eigenvalues."""
    factor = jax.lax.linalg.cholesky(a + jnp.eye(len(a), dtype=a.dtype), symmetrize_input=False)
    return jnp.log(jnp.diagonal(factor)).sum()


def to_correlation(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a scatter (M, M) as correlations, and the scale factors (M,); features without variance have factor 0.

    Such a feature has correlation 1 with itself and 0 with others, so it cannot make ``a`` singular.
    """
    variance = jnp.diagonal(a)
    scale = jnp.where(variance > 0, jax.lax.rsqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    scaled = a * scale[:, None] * scale[None]
    diagonal = jnp.eye(len(a), dtype=bool)
    return jnp.where(diagonal, 1.0, scaled), scale


def min_pivot(a: jax.Array) -> jax.Array:
    """Return the smallest fraction of a feature's variance unexplained by the features before it; NaN if singular."""
    return (jnp.diagonal(jnp.linalg.cholesky(to_correlation(a)[0])) ** 2).min()


def quadratic_form(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return b' pinv(a) b for each column of ``b`` (M, K) in the range of ``a`` (M, M), (K,).

    In the range every generalized inverse gives the same result, so ``a`` is first scaled to correlations. The Cholesky
    factor is used if it exists, otherwise the eigenvectors with eigenvalues above rounding.
    """
    scaled, scale = to_correlation(a)
    u = b * scale[:, None]
    factor = jnp.linalg.cholesky(scaled)
    pivots = jnp.diagonal(factor) ** 2

    def regular():
        return (jsl.solve_triangular(factor, u, lower=True) ** 2).sum(0)

    def singular():
        values, vectors = jnp.linalg.eigh(scaled)
        keep = values > rank_tolerance(len(a)) * values[-1]
        return ((vectors.T @ u) ** 2 * jnp.where(keep, 1 / jnp.where(keep, values, 1.0), 0.0)[:, None]).sum(0)

    # Comparisons with a NaN factor are false.
    return jax.lax.cond(pivots.min() > MIN_PIVOT_FACTOR * rank_tolerance(len(a)), regular, singular)


def solve_psd(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return pinv(a) b for a positive semi-definite ``a`` (M, M) and ``b`` (M, K) in its range."""
    scaled, scale = to_correlation(a)
    u = b * scale[:, None]
    factor = jnp.linalg.cholesky(scaled)

    def regular():
        return jsl.cho_solve((factor, True), u)

    def singular():
        values, vectors = jnp.linalg.eigh(scaled)
        keep = values > rank_tolerance(len(a)) * values[-1]
        return vectors @ (vectors.T @ u * jnp.where(keep, 1 / jnp.where(keep, values, 1.0), 0.0)[:, None])

    is_regular = (jnp.diagonal(factor) ** 2).min() > MIN_PIVOT_FACTOR * rank_tolerance(len(a))
    return jax.lax.cond(is_regular, regular, singular) * scale[:, None]


BLOCK = 1024  # rows per block whose products are summed before the sum continues in double precision
PANELS = 4  # strips of a scatter; skipping the blocks below the diagonal saves 3 / 8 of the work
DISTORTION = 1e-4  # of TransRate's coding rate
MIN_COUNT = 1e-30  # count of a class without examples, whose rate is then zero


def sum_over_blocks(function: Callable, n: int, block: int):
    """Sum ``function(index, valid)`` over blocks of rows; ``valid`` is 0 past the last row, else 1."""
    size = min(block, n)

    def body(total, start):
        rows = start + jnp.arange(size)
        block_sum = function(jnp.minimum(rows, n - 1), (rows < n).astype(widest()))
        return jax.tree.map(jnp.add, total, block_sum), None

    shapes = jax.eval_shape(function, jnp.zeros(size, int), jnp.zeros(size))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(body, zeros, jnp.arange(0, n, size))[0]


def sum_scatters(
    rows: Callable,
    order: jax.Array,
    bounds: jax.Array,
    d: int,
    single: bool,
    with_rates: bool = False,
    counts: jax.Array | None = None,
    block: int = BLOCK,
    panels: int = PANELS,
) -> tuple[jax.Array, jax.Array]:
    """Return Z' Z (D, D) of all rows, and the coding rate of each group of rows, zeros unless ``with_rates``.

    Args:
        rows: function (index (B,), valid (B,) of 0 or 1) -> rows (B, D) of Z, multiplied by ``valid``.
        order: (N,) row indices, sorted by group.
        bounds: (G + 1,) start of each group in ``order``, and the end.
        d: D.
        single: whether products are float32.
        with_rates: whether groups are classes whose rates are needed.
        counts: (G,) class counts.
        block: rows per block.
        panels: strips of the scatter.
    """
    size, width = min(block, len(order)), -(-d // panels)
    edges = list(range(0, d, width))
    zeros = [jnp.zeros((min(width, d - i), d - i)) for i in edges]

    def strips(positions, end):
        valid = positions < end
        z = rows(order[jnp.minimum(positions, len(order) - 1)], valid.astype(widest()))
        z = z.astype(jnp.float32) if single else z
        return [_product(z[:, i : i + width].T, z[:, i:]).astype(widest()) for i in edges]

    def group(total, g):
        start, end = bounds[g], bounds[g + 1]

        def body(j, sums):
            return jax.tree.map(jnp.add, sums, strips(start + j * size + jnp.arange(size), end))

        group_strips = jax.lax.fori_loop(0, (end - start + size - 1) // size, body, zeros)
        if with_rates:
            assert counts is not None
            rate = half_logdet(_symmetric_matrix(group_strips) / (jnp.maximum(counts[g], MIN_COUNT) * DISTORTION))
        else:
            rate = jnp.zeros(())
        return jax.tree.map(jnp.add, total, group_strips), rate

    total, rates = jax.lax.scan(group, zeros, jnp.arange(len(bounds) - 1))
    return _symmetric_matrix(total), rates


def _symmetric_matrix(strips: list[jax.Array]) -> jax.Array:
    """Return the symmetric matrix with the given strips, which start at the diagonal blocks."""
    d = strips[0].shape[1]
    upper = jnp.concatenate([jnp.pad(s, ((0, 0), (d - s.shape[1], 0))) for s in strips])
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def class_coding_rates(rows, order, starts, counts, longest: int, single: bool) -> jax.Array:
    """Return the coding rate of each class (K,) from the Gram matrix of its examples."""

    def rate(c):
        positions = starts[c] + jnp.arange(longest)
        valid = (positions < starts[c + 1]).astype(widest())
        z = rows(order[jnp.minimum(positions, len(order) - 1)], valid)
        z = z.astype(jnp.float32) if single else z
        return half_logdet(_product(z, z.T).astype(widest()) / (jnp.maximum(counts[c], MIN_COUNT) * DISTORTION))

    return jax.lax.map(rate, jnp.arange(len(counts)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


MAX_EXACT_PRODUCTS = 2**33  # N D^2 up to which all products are double, about a tenth of a second
# Smallest unexplained fraction of each feature's variance for which single-precision products keep scores to 1e-5.
MIN_TRUSTED_PIVOT = 1e-3


class Moments(NamedTuple):
    """Weighted statistics of features (N, D) with labels in [0, K), from which scores are computed; all float64.

    If D > N the scatter is that of examples, Z Z' (N, N) for centered features Z; otherwise it is Z' Z (D, D). M is
    min(N, D). Weights w multiply the rows of Z by sqrt(w). A class without examples has the overall mean.

    Attributes:
        counts: (K,) sums of weights.
        mean: (D,).
        means: (K, D) class means.
        variances: (K, D) within-class variances, divided by the class counts.
        fourth: () weighted sum of |z|^4 over the rows of Z.
        scatter: (M, M).
        targets: (M, K) class indicators in the basis of the scatter: Z' Y for one-hot Y, or sqrt(w) Y if D > N.
        shift: (M,) Z times the mean if D > N, which gives the scatter of uncentered features; else zeros.
        rates: (K,) coding rate of each class, for TransRate; () if not requested.
    """

    counts: jax.Array
    mean: jax.Array
    means: jax.Array
    variances: jax.Array
    fourth: jax.Array
    scatter: jax.Array
    targets: jax.Array
    shift: jax.Array
    rates: jax.Array

    @property
    def wide(self) -> bool:
        """Whether the scatter is that of examples."""
        return self.scatter.shape[-1] < self.mean.shape[-1]

    @property
    def num_examples(self) -> jax.Array:
        """Number of examples N, or the sum of their weights."""
        return self.counts.sum()

    def between(self) -> jax.Array:
        """Return the between-class scatter (D, D)."""
        centered = self.means - self.mean[None]
        return (centered * self.counts[:, None]).T @ centered

    def uncentred(self) -> tuple[jax.Array, jax.Array]:
        """Return the scatter (M, M) of the uncentered features, F' F or F F', and its class indicators (M, K)."""
        if not self.wide:
            scatter = self.scatter + self.num_examples * self.mean[:, None] * self.mean[None]
            return scatter, (self.counts[:, None] * self.means).T
        root = self.targets.sum(1)
        cross = self.shift[:, None] * root[None]
        return self.scatter + cross + cross.T + (self.mean**2).sum() * root[:, None] * root[None], self.targets


def compute_moments(x: jax.Array, y: jax.Array, classes: int, rates: bool = False) -> Moments:
    """Return the moments of (N, D) features for scores. Call it under ``jax.enable_x64(True)``.

    If N D^2 is large, products of centered features are float32 in blocks of rows, and block sums are added in float64.
    This is 2.5 times as fast, with errors of about 1e-8 of the features' variances. If the features are so nearly
    linearly dependent that this would matter, everything is repeated in float64.

    Args:
        x: (N, D) float.
        y: (N,) int in [0, classes).
        classes: K.
        rates: whether to compute the classes' coding rates, for TransRate.
    """
    max_size = max_class_size(x, y, classes) if rates else None
    single = allows_single(x)
    weights = jnp.ones(len(x))
    moments = weighted_moments(x, y, weights, classes=classes, longest=max_size, single=single)
    if single and not float(compiled_min_pivot(moments.scatter)) > MIN_TRUSTED_PIVOT:
        moments = weighted_moments(x, y, weights, classes=classes, longest=max_size, single=False)
    return moments


def max_class_size(x: jax.Array, y: jax.Array, classes: int) -> int:
    """Return ``longest`` for ``weighted_moments``, rounded up so that fewer label sets need compilation."""
    longest = -(-int(jnp.bincount(y, length=classes).max()) // 64) * 64
    return len(x) if longest >= min(x.shape) else longest


def allows_single(x: jax.Array) -> bool:
    """Return whether products of features (N, D) may be float32."""
    n, d = x.shape
    return d <= n and n * d * d > MAX_EXACT_PRODUCTS


compiled_min_pivot = jax.jit(min_pivot)


@functools.partial(jax.jit, static_argnames=("classes", "longest", "single", "block", "panels"))
def weighted_moments(
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array,
    *,
    classes: int,
    longest: int | None = None,
    single: bool = False,
    block: int = BLOCK,
    panels: int = PANELS,
) -> Moments:
    """Return the moments of (N, D) features; ``vmap`` over ``weights`` (N,) for a bootstrap.

    Args:
        x: (N, D) float.
        y: (N,) int in [0, classes).
        weights: (N,) float64 weight of each example.
        classes: K.
        longest: upper bound of the class size, if coding rates are needed; None for no rates.
        single: whether products are float32.
        block: rows per block.
        panels: strips of the scatter.
    """
    n, d = x.shape
    counts, origin, center, means = _class_means(x, y, weights, classes, block)
    order = jnp.argsort(y, stable=True)
    starts = jnp.searchsorted(y[order], jnp.arange(classes + 1))

    def rows(index: jax.Array, valid: jax.Array) -> jax.Array:
        z = (x[index].astype(widest()) - origin[None]) - center[None]
        return z * jnp.sqrt(weights[index] * valid)[:, None]

    mean = origin + center
    if d > n:
        z = rows(jnp.arange(n), jnp.ones(n))
        scatter, targets = z @ z.T, jnp.sqrt(weights)[:, None] * jax.nn.one_hot(y, classes, dtype=widest())
        shift = z @ mean
    # If classes may have more examples than features, rates come from class scatters, which sum to the total.
    by_class = d <= n and longest is not None and longest >= d
    bounds = starts if by_class else jnp.array([0, n])
    if d <= n:
        scatter, rates = sum_scatters(rows, order, bounds, d, single, by_class, counts, block, panels)
        targets, shift = ((means - mean[None]) * counts[:, None]).T, jnp.zeros(d)
    if longest is None:
        rates = jnp.zeros(())
    elif not by_class:
        rates = class_coding_rates(rows, order, starts, counts, longest, single)
    variances, fourth = _class_variances(x, y, weights, counts, origin, center, means, block)
    return Moments(counts, mean, means, variances, fourth, scatter, targets, shift, rates)


def _class_means(x: jax.Array, y: jax.Array, weights: jax.Array, classes: int, block: int) -> tuple[jax.Array, ...]:
    """Return counts (K,), an origin (D,), the mean relative to it (D,), and class means (K, D)."""
    # Relative to the first example, a constant feature is exactly zero.
    origin = x[0].astype(widest())
    counts = jax.ops.segment_sum(weights, y, classes)

    def sums(index, valid):
        z = (x[index].astype(widest()) - origin[None]) * (weights[index] * valid)[:, None]
        return jax.ops.segment_sum(z, y[index], classes)

    total = sum_over_blocks(sums, len(x), block)
    center = total.sum(0) / counts.sum()
    filled = counts > 0
    means = jnp.where(filled[:, None], total / jnp.where(filled, counts, 1.0)[:, None], center[None])
    return counts, origin, center, means + origin[None]


def _class_variances(x, y, weights, counts, origin, center, means, block) -> tuple[jax.Array, jax.Array]:
    """Return the within-class variances (K, D) and the sum of fourth powers of centered norms."""

    def sums(index, valid):
        w, z = weights[index] * valid, x[index].astype(widest()) - origin[None]
        within = (z - (means - origin[None])[y[index]]) ** 2 * w[:, None]
        lengths = ((z - center[None]) ** 2).sum(1)
        return jax.ops.segment_sum(within, y[index], len(counts)), (w * lengths**2).sum()

    within, fourth = sum_over_blocks(sums, len(x), block)
    return within / jnp.where(counts > 0, counts, 1.0)[:, None], fourth
