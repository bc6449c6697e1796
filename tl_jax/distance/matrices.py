"""Symmetric matrices of scatter: what the scores ask of them, in double precision, singular ones included."""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

REGULAR = 1e3  # a pivot of this many times the rounding of a correlation matrix still means something


def tolerance(size: int | jax.Array) -> jax.Array:
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
