"""Counts, means and scatter of labelled features: computed once, whatever number of scores is made from them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.distance import matrices
from tl_jax.distance.gram import BLOCK, PANELS, class_rates, over_blocks, scatters

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
    if single and not float(least_pivot(found.scatter)) > TRUST:
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


least_pivot = jax.jit(matrices.least_pivot)


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
