"""Centered kernel alignment (CKA): similarity of the features of two networks or layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.utils.errors import UserError


def linear_cka(x1: _inputs.Array, x2: _inputs.Array, debiased: bool = False) -> float:
    """Return the linear CKA of two sets of features of the same examples, in [0, 1].

    It is ``|X1' X2|^2 / (|X1' X1| |X2' X2|)`` for centered features and Frobenius norms (Kornblith et al. 2019,
    arXiv:1905.00414, section 3). It is invariant to rotation and isotropic scaling; features that differ only by these
    have CKA 1. The estimate is biased, as in the paper: with few examples and many features it is too high, even for
    independent features. The debiased estimate uses the unbiased HSIC of Song et al. 2012 for each of the three terms,
    as in Nguyen et al. 2021 (arXiv:2010.15327). It is about zero for independent features, and can be negative.
    Computed in double precision, at a cost of N (D1 + D2) min(N, D1 + D2).

    Args:
        x1: (N, D1) float.
        x2: (N, D2) float; row i belongs to the same example as row i of ``x1``.
        debiased: use the unbiased estimate, which needs at least 4 examples.

    Raises:
        UserError: The shapes do not match, values are not finite, or features are constant.
    """
    first, second = np.shape(x1), np.shape(x2)
    if len(first) != 2 or len(second) != 2 or first[0] != second[0] or 0 in first + second:
        raise UserError(
            f"linear_cka: wrong shapes {first} and {second}; pass (N, D1) and (N, D2) of the same N examples"
        )
    a, b = _inputs.feature_matrix(x1, "x1"), _inputs.feature_matrix(x2, "x2")
    if debiased and len(a) < 4:
        raise UserError(f"debiased: {len(a)} examples are too few; pass at least 4, or debiased=False")
    for x, name in ((a, "features x1"), (b, "features x2")):
        if (x == x[:1]).all():
            raise UserError(f"{name}: constant over all {len(x)} examples; pass more examples, or another layer's")
    with jax.enable_x64(True):
        value = float(cka_from(jnp.asarray(a), jnp.asarray(b), debiased))
    if not value == value:
        raise UserError(f"debiased: a layer's HSIC with itself is zero for {len(a)} examples; pass more of them")
    return value


@functools.partial(jax.jit, static_argnums=2)
def cka_from(a: jax.Array, b: jax.Array, debiased: bool) -> jax.Array:
    """Return ``linear_cka`` of (N, D1) and (N, D2) features; NaN if a debiased HSIC is zero up to rounding."""
    a, b = _center_and_scale(a), _center_and_scale(b)
    if len(a) < max(a.shape[1], b.shape[1]):
        # |A' B|^2 is the inner product of A A' and B B', which are smaller here.
        k, m = _product(a, a.T), _product(b, b.T)
        cross, norm1, norm2 = (k * m).sum(), (k**2).sum(), (m**2).sum()
    else:
        cross, norm1, norm2 = ((_product(p.T, q) ** 2).sum() for p, q in ((a, b), (a, a), (b, b)))
    if not debiased:
        return jnp.clip(cross / jnp.sqrt(norm1 * norm2), 0, 1)
    u, v = (a**2).sum(1), (b**2).sum(1)
    norm1, norm2 = _unbiased_hsic(norm1, u, u), _unbiased_hsic(norm2, v, v)
    # A zero HSIC is rounding noise.
    rounding = 1e-12 if a.dtype == jnp.float64 else 1e-5
    degenerate = (norm1 <= rounding * (u**2).sum()) | (norm2 <= rounding * (v**2).sum())
    return jnp.where(degenerate, jnp.nan, jnp.clip(_unbiased_hsic(cross, u, v) / jnp.sqrt(norm1 * norm2), -1, 1))


def _unbiased_hsic(cross: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    """Return n (n - 3) times the unbiased HSIC from tr(K L) of centered features and the diagonals of K and L.

    The diagonals are set to zero, so the row sums of K, which are zero for centered features, become -u.
    """
    n = len(u)
    diagonal_product = (u * v).sum()
    return cross - diagonal_product + u.sum() * v.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonal_product


def _center_and_scale(x: jax.Array) -> jax.Array:
    """Center ``x`` and scale it so that fourth powers neither underflow nor overflow."""
    x = x - x[:1]  # reduces the rounding error of a mean far from zero
    x = x - x.mean(0, keepdims=True)
    return x / jnp.abs(x).max()


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
