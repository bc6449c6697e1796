"""Statistics that scores share: class counts, means and scatter, computed once, and PSD linear algebra.

Scatter is summed over blocks of rows in double precision, or as single-precision products with double-precision sums.
Linear algebra is in double precision, and singular matrices are allowed.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

REGULAR = 1e3  # a pivot of this many times the rounding of a correlation matrix still means something


def tolerance(size: int | jax.Array) -> jax.Array | np.floating:
    """Return the share of the largest eigenvalue at which others are rounding, of a sum of ``size`` products."""
    return 4 * jnp.finfo(jnp.float64).eps * size


def half_logdet(a: jax.Array) -> jax.Array:
    """Return half the log-determinant of I + a, where ``a`` (M, M) has no negative eigenvalue."""
    factor = jax.lax.linalg.cholesky(a + jnp.eye(len(a), dtype=a.dtype), symmetrize_input=False)
    return jnp.log(jnp.diagonal(factor)).sum()


def correlation(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a scatter (M, M) as correlations, and the factors (M,) that made them; a feature of no variance has 0.

    Such a feature is left with a correlation of 1 with itself and 0 with others, so that it cannot make ``a`` singular.
    """
    variance = jnp.diagonal(a)
    scale = jnp.where(variance > 0, jax.lax.rsqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    scaled = a * scale[:, None] * scale[None]
    ones = jnp.eye(len(a), dtype=bool)
    return jnp.where(ones, 1.0, scaled), scale


def least_pivot(a: jax.Array) -> jax.Array:
    """Return the least share of a feature's variance that the features before it leave unexplained, NaN for none."""
    return (jnp.diagonal(jnp.linalg.cholesky(correlation(a)[0])) ** 2).min()


def quadratic(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return b' pinv(a) b for each column of ``b`` (M, K) in the range of ``a`` (M, M), (K,).

    In the range every inverse of ``a`` gives the same, so it is scaled to correlations first. Cholesky's factor does
    where it exists, the eigenvectors of eigenvalues above rounding where it does not.
    """
    scaled, scale = correlation(a)
    u = b * scale[:, None]
    factor = jnp.linalg.cholesky(scaled)
    pivots = jnp.diagonal(factor) ** 2

    def regular():
        return (jsl.solve_triangular(factor, u, lower=True) ** 2).sum(0)

    def singular():
        values, vectors = jnp.linalg.eigh(scaled)
        keep = values > tolerance(len(a)) * values[-1]
        return ((vectors.T @ u) ** 2 * jnp.where(keep, 1 / jnp.where(keep, values, 1.0), 0.0)[:, None]).sum(0)

    # A factor of NaN compares as false.
    return jax.lax.cond(pivots.min() > REGULAR * tolerance(len(a)), regular, singular)


def solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return pinv(a) b for a positive semi-definite ``a`` (M, M) and ``b`` (M, K) in its range."""
    scaled, scale = correlation(a)
    u = b * scale[:, None]
    factor = jnp.linalg.cholesky(scaled)

    def regular():
        return jsl.cho_solve((factor, True), u)

    def singular():
        values, vectors = jnp.linalg.eigh(scaled)
        keep = values > tolerance(len(a)) * values[-1]
        return vectors @ (vectors.T @ u * jnp.where(keep, 1 / jnp.where(keep, values, 1.0), 0.0)[:, None])

    fine = (jnp.diagonal(factor) ** 2).min() > REGULAR * tolerance(len(a))
    return jax.lax.cond(fine, regular, singular) * scale[:, None]


BLOCK = 1024  # rows whose products are summed before the sum goes on in double precision
PANELS = 4  # strips of a scatter: what is below the diagonal's blocks is not computed, 3 / 8 of the work
DISTORTION = 1e-4  # of TransRate's coding rate


def over_blocks(function: Callable, n: int, block: int):
    """Return the sum over blocks of rows of ``function(index, there)``; ``there`` is 0 past the last row, else 1."""
    size = min(block, n)

    def body(total, start):
        place = start + jnp.arange(size)
        found = function(jnp.minimum(place, n - 1), (place < n).astype(jnp.float64))
        return jax.tree.map(jnp.add, total, found), None

    first = jax.eval_shape(function, jnp.zeros(size, int), jnp.zeros(size))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    return jax.lax.scan(body, zeros, jnp.arange(0, n, size))[0]


def scatters(
    rows: Callable,
    order: jax.Array,
    bounds: jax.Array,
    d: int,
    single: bool,
    rated: bool = False,
    counts: jax.Array | None = None,
    block: int = BLOCK,
    panels: int = PANELS,
) -> tuple[jax.Array, jax.Array]:
    """Return Z' Z (D, D) of all rows, and the coding rate of each group of them, zeros unless ``rated``.

    Args:
        rows: gives rows (B, D) of Z for their index (B,), times the second argument's 0 or 1 (B,).
        order: (N,) the rows, one group's beside each other.
        bounds: (G + 1,) where in ``order`` each group begins, and the end.
        d: D.
        single: products in float32.
        rated: whether groups are classes, of ``counts`` (G,), and their rates wanted.
        counts: (G,).
        block: rows of which products are taken at once.
        panels: strips of the scatter.
    """
    size, width = min(block, len(order)), -(-d // panels)
    edges = list(range(0, d, width))
    zeros = [jnp.zeros((min(width, d - i), d - i)) for i in edges]

    def strips(place, end):
        there = place < end
        z = rows(order[jnp.minimum(place, len(order) - 1)], there.astype(jnp.float64))
        z = z.astype(jnp.float32) if single else z
        return [_product(z[:, i : i + width].T, z[:, i:]).astype(jnp.float64) for i in edges]

    def group(total, g):
        start, end = bounds[g], bounds[g + 1]

        def body(j, sums):
            return jax.tree.map(jnp.add, sums, strips(start + j * size + jnp.arange(size), end))

        own = jax.lax.fori_loop(0, (end - start + size - 1) // size, body, zeros)
        if rated:
            assert counts is not None
            rate = half_logdet(_whole(own) / (jnp.maximum(counts[g], 1e-300) * DISTORTION))
        else:
            rate = jnp.zeros(())
        return jax.tree.map(jnp.add, total, own), rate

    total, rates = jax.lax.scan(group, zeros, jnp.arange(len(bounds) - 1))
    return _whole(total), rates


def _whole(strips: list[jax.Array]) -> jax.Array:
    """Return the symmetric matrix whose strips, from the diagonal's blocks on, are given."""
    d = strips[0].shape[1]
    upper = jnp.concatenate([jnp.pad(s, ((0, 0), (d - s.shape[1], 0))) for s in strips])
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def class_rates(rows, order, starts, counts, longest: int, single: bool) -> jax.Array:
    """Return the coding rate of each class (K,) from the products of its examples with each other."""

    def rate(c):
        place = starts[c] + jnp.arange(longest)
        there = (place < starts[c + 1]).astype(jnp.float64)
        z = rows(order[jnp.minimum(place, len(order) - 1)], there)
        z = z.astype(jnp.float32) if single else z
        return half_logdet(_product(z, z.T).astype(jnp.float64) / (jnp.maximum(counts[c], 1e-300) * DISTORTION))

    return jax.lax.map(rate, jnp.arange(len(counts)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


EXACT = 2**33  # products, N D^2, up to which all are double: about a tenth of a second
TRUST = 1e-3  # share of each feature's variance that others leave open where single products keep scores to 1e-5


class Moments(NamedTuple):
    """What scores read of features (N, D) with labels in [0, K); all float64, sums over examples by their weights.

    Where D > N the scatter is that of examples, Z Z' (N, N) for the centred features Z, and else Z' Z (D, D); M is the
    lesser of N and D. Weights w enter as rows of Z times sqrt(w). A class without examples has the overall mean.

    Attributes:
        counts: (K,) sums of weights.
        mean: (D,).
        means: (K, D) of classes.
        variances: (K, D) within classes, divided by their counts.
        fourth: () sum of |z|^4 over the rows of Z, each once for its weight.
        scatter: (M, M).
        targets: (M, K) the classes as the scatter sees them: Z' Y for one-hot Y, or sqrt(w) Y where D > N.
        shift: (M,) Z times the mean where D > N, with which the scatter of features not centred follows; else zeros.
        rates: (K,) the coding rate of each class, for TransRate alone; () where nobody asked.
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
    def number(self) -> jax.Array:
        """The number of examples, N, or the sum of their weights."""
        return self.counts.sum()

    def between(self) -> jax.Array:
        """Return the scatter of the class means (D, D)."""
        off = self.means - self.mean[None]
        return (off * self.counts[:, None]).T @ off

    def uncentred(self) -> tuple[jax.Array, jax.Array]:
        """Return the scatter (M, M) of the features as they are, F' F or F F', and the classes (M, K) for it."""
        if not self.wide:
            whole = self.scatter + self.number * self.mean[:, None] * self.mean[None]
            return whole, (self.counts[:, None] * self.means).T
        root = self.targets.sum(1)
        cross = self.shift[:, None] * root[None]
        return self.scatter + cross + cross.T + (self.mean**2).sum() * root[:, None] * root[None], self.targets


def of(x: jax.Array, y: jax.Array, classes: int, rates: bool = False) -> Moments:
    """Return the moments of (N, D) features for scores; call it under ``jax.enable_x64(True)``.

    Where N D^2 is large, products of centred features are float32 in blocks of rows, whose sums are added in float64:
    2.5 times as fast, and entries of the scatter are off by some 1e-8 of their features' variances. Where features
    are so nearly linearly dependent that this would show, everything is done again in float64.

    Args:
        x: (N, D) float.
        y: (N,) int in [0, classes).
        classes: K.
        rates: whether TransRate will ask for the classes' coding rates.
    """
    longest = longest_class(x, y, classes) if rates else None
    single = large(x)
    weights = jnp.ones(len(x))
    found = moments(x, y, weights, classes=classes, longest=longest, single=single)
    if single and not float(compiled_least_pivot(found.scatter)) > TRUST:
        found = moments(x, y, weights, classes=classes, longest=longest, single=False)
    return found


def longest_class(x: jax.Array, y: jax.Array, classes: int) -> int:
    """Return ``longest`` for ``moments``: in steps, so that not every set of labels compiles anew."""
    longest = -(-int(jnp.bincount(y, length=classes).max()) // 64) * 64
    return len(x) if longest >= min(x.shape) else longest


def large(x: jax.Array) -> bool:
    """Return whether products of features (N, D) may be float32."""
    n, d = x.shape
    return d <= n and n * d * d > EXACT


compiled_least_pivot = jax.jit(least_pivot)


@functools.partial(jax.jit, static_argnames=("classes", "longest", "single", "block", "panels"))
def moments(
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
    """Return the moments of (N, D) features; ``vmap`` over ``weights`` (N,) is a bootstrap.

    Args:
        x: (N, D) float.
        y: (N,) int in [0, classes).
        weights: (N,) float64, how often each example counts.
        classes: K.
        longest: the coding rates of classes are wanted, and none has more examples than this; None for no rates.
        single: products in float32.
        block: rows of which products are taken at once.
        panels: strips of the scatter.
    """
    n, d = x.shape
    counts, origin, centre, means = _means(x, y, weights, classes, block)
    order = jnp.argsort(y, stable=True)
    starts = jnp.searchsorted(y[order], jnp.arange(classes + 1))

    def rows(index: jax.Array, there: jax.Array) -> jax.Array:
        z = (x[index].astype(jnp.float64) - origin[None]) - centre[None]
        return z * jnp.sqrt(weights[index] * there)[:, None]

    mean = origin + centre
    if d > n:
        z = rows(jnp.arange(n), jnp.ones(n))
        scatter, targets = z @ z.T, jnp.sqrt(weights)[:, None] * jax.nn.one_hot(y, classes, dtype=jnp.float64)
        shift = z @ mean
    # Classes with more examples than features take their rates from their own scatters, which add up to the whole.
    apart = d <= n and longest is not None and longest >= d
    bounds = starts if apart else jnp.array([0, n])
    if d <= n:
        scatter, rates = scatters(rows, order, bounds, d, single, apart, counts, block, panels)
        targets, shift = ((means - mean[None]) * counts[:, None]).T, jnp.zeros(d)
    if longest is None:
        rates = jnp.zeros(())
    elif not apart:
        rates = class_rates(rows, order, starts, counts, longest, single)
    variances, fourth = _spread(x, y, weights, counts, origin, centre, means, block)
    return Moments(counts, mean, means, variances, fourth, scatter, targets, shift, rates)


def _means(x: jax.Array, y: jax.Array, weights: jax.Array, classes: int, block: int) -> tuple[jax.Array, ...]:
    """Return counts (K,), an origin (D,), the mean as seen from it (D,), and class means (K, D)."""
    # From the first example a feature which is the same for all is exactly zero, whatever its value.
    origin = x[0].astype(jnp.float64)
    counts = jax.ops.segment_sum(weights, y, classes)

    def sums(index, there):
        z = (x[index].astype(jnp.float64) - origin[None]) * (weights[index] * there)[:, None]
        return jax.ops.segment_sum(z, y[index], classes)

    total = over_blocks(sums, len(x), block)
    centre = total.sum(0) / counts.sum()
    filled = counts > 0
    means = jnp.where(filled[:, None], total / jnp.where(filled, counts, 1.0)[:, None], centre[None])
    return counts, origin, centre, means + origin[None]


def _spread(x, y, weights, counts, origin, centre, means, block) -> tuple[jax.Array, jax.Array]:
    """Return the variances within classes (K, D) and the sum of fourth powers of centred lengths."""

    def sums(index, there):
        w, z = weights[index] * there, x[index].astype(jnp.float64) - origin[None]
        within = (z - (means - origin[None])[y[index]]) ** 2 * w[:, None]
        lengths = ((z - centre[None]) ** 2).sum(1)
        return jax.ops.segment_sum(within, y[index], len(counts)), (w * lengths**2).sum()

    within, fourth = over_blocks(sums, len(x), block)
    return within / jnp.where(counts > 0, counts, 1.0)[:, None], fourth
