"""How alike two networks, or two layers, see the same examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.utils.errors import UserError


def linear_cka(x1: _inputs.Array, x2: _inputs.Array, debiased: bool = False) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same examples, in [0, 1].

    It is ``|X1' X2|^2 / (|X1' X1| |X2' X2|)`` for centred features and Frobenius norms (Kornblith et al. 2019,
    arXiv:1905.00414, section 3). Rotations and one factor for all features change nothing; features which differ by
    these alone have 1. As the paper's, the estimate is biased: with few examples for many features it is too high,
    independent ones included. Debiased, each of the three terms is the unbiased HSIC of Song et al. 2012, as in Nguyen
    et al. 2021 (arXiv:2010.15327): about zero where the features are independent, and then often below. In double
    precision. Its cost is N (D1 + D2) min(N, D1 + D2).

    Args:
        x1: (N, D1) float.
        x2: (N, D2) float, row i of the same example as row i of ``x1``.
        debiased: use the unbiased estimate; it needs 4 examples or more.

    Raises:
        UserError: other shapes, values that are not finite, or features that are the same for all examples.
    """
    first, second = np.shape(x1), np.shape(x2)
    if len(first) != 2 or len(second) != 2 or first[0] != second[0] or 0 in first + second:
        raise UserError(
            f"linear_cka takes features (N, D1) and (N, D2) of the same N examples, not {first} and {second}"
        )
    a, b = _inputs.feature_matrix(x1, "x1"), _inputs.feature_matrix(x2, "x2")
    if debiased and len(a) < 4:
        raise UserError(f"debiased needs 4 examples or more, not {len(a)}; pass more, or debiased=False")
    for x, name in ((a, "features x1"), (b, "features x2")):
        if (x == x[:1]).all():
            raise UserError(f"the {name} are the same for all {len(x)} examples; pass more, or another layer's")
    with jax.enable_x64(True):
        value = float(cka_from(jnp.asarray(a), jnp.asarray(b), debiased))
    if not value == value:
        raise UserError(f"{len(a)} examples leave the debiased HSIC of a layer with itself at zero; pass more of them")
    return value


@functools.partial(jax.jit, static_argnums=2)
def cka_from(a: jax.Array, b: jax.Array, debiased: bool) -> jax.Array:
    """Return ``linear_cka`` of (N, D1) and (N, D2) features; NaN where their debiased HSIC is zero but for rounding."""
    a, b = _center_and_scale(a), _center_and_scale(b)
    if len(a) < max(a.shape[1], b.shape[1]):
        # |A' B|^2 is the inner product of A A' and B B', which are the smaller matrices here.
        k, m = _product(a, a.T), _product(b, b.T)
        cross, norm1, norm2 = (k * m).sum(), (k**2).sum(), (m**2).sum()
    else:
        cross, norm1, norm2 = ((_product(p.T, q) ** 2).sum() for p, q in ((a, b), (a, a), (b, b)))
    if not debiased:
        return jnp.clip(cross / jnp.sqrt(norm1 * norm2), 0, 1)
    u, v = (a**2).sum(1), (b**2).sum(1)
    norm1, norm2 = _unbiased_hsic(norm1, u, u), _unbiased_hsic(norm2, v, v)
    # Of a zero, rounding is left.
    rounding = 1e-12 if a.dtype == jnp.float64 else 1e-5
    degenerate = (norm1 <= rounding * (u**2).sum()) | (norm2 <= rounding * (v**2).sum())
    return jnp.where(degenerate, jnp.nan, jnp.clip(_unbiased_hsic(cross, u, v) / jnp.sqrt(norm1 * norm2), -1, 1))


def _unbiased_hsic(cross: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    """Return n (n - 3) times the unbiased HSIC from tr(K L) of centred features and the diagonals of K and L.

    The diagonals count as zero there, so that the row sums of K, which are zero for centred features, become -u.
    """
    n = len(u)
    diagonal_product = (u * v).sum()
    return cross - diagonal_product + u.sum() * v.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonal_product


def _center_and_scale(x: jax.Array) -> jax.Array:
    """Return ``x`` with means of zero, on a scale at which fourth powers neither vanish nor overflow."""
    x = x - x[:1]  # a mean far from zero is only as exact as its digits are there
    x = x - x.mean(0, keepdims=True)
    return x / jnp.abs(x).max()


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
