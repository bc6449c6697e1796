"""H-scores: fraction of the features' variance between classes."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import MOMENTS, register_score


def h_score(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return trace(pinv(cov f) cov E[f|y]), both with 1 / (n - 1) (Bao et al. 2019, arXiv:2212.10082).

    It is the sum over classes of the fraction of the class indicator that centered features explain, so it is between 0
    and K - 1. Eigenvalues of cov f below rounding count as 0.

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: The shapes do not match, features are not finite, labels are not class indices, or there is only one
            class.
    """
    with jax.enable_x64(True):
        return float(h_score_from(_statistics.compute_moments(*_inputs.score_inputs(features, labels))))


def regularized_h_score(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return (1 - a) trace(inv(S_a) cov E[f|y]) with Ledoit-Wolf shrinkage a (Ibrahim et al. 2022, arXiv:2110.06893).

    S_a = (1 - a) S + a trace(S) / D I, where S is cov f with 1 / n, as in Ledoit and Wolf 2004 and scikit-learn;
    cov E[f|y] has 1 / (n - 1).

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: As ``h_score``.
    """
    with jax.enable_x64(True):
        return float(regularized_h_score_from(_statistics.compute_moments(*_inputs.score_inputs(features, labels))))


@register_score("h_score", MOMENTS)
@jax.jit
def h_score_from(m: _statistics.Moments) -> jax.Array:
    """Return ``h_score`` from moments."""
    inverse_counts = 1 / jnp.where(m.counts > 0, m.counts, 1.0)
    if not m.wide:
        return (_statistics.quadratic_form(m.scatter, m.targets) * inverse_counts).sum()
    # Z = U S V' gives trace(V S^-2 V' Z' H Z) = trace(U' H U), where H averages within classes.
    values, vectors = jnp.linalg.eigh(m.scatter)
    keep = values > _statistics.rank_tolerance(len(m.mean)) * values[-1]
    return jnp.where(keep[:, None], (vectors.T @ m.targets) ** 2 * inverse_counts[None], 0.0).sum()


@register_score("regularized_h_score", MOMENTS)
@jax.jit
def regularized_h_score_from(m: _statistics.Moments) -> jax.Array:
    """Return ``regularized_h_score`` from moments."""
    n, d = m.num_examples, len(m.mean)
    inverse_counts = 1 / jnp.where(m.counts > 0, m.counts, 1.0)
    a, mean_eigenvalue = shrinkage(m)
    if not m.wide:
        shrunk = (1 - a) / n * m.scatter + a * mean_eigenvalue * jnp.eye(d)
        return (1 - a) * (_statistics.quadratic_form(shrunk, m.targets) * inverse_counts).sum() / (n - 1)
    values, vectors = jnp.linalg.eigh(m.scatter)
    keep = values > _statistics.rank_tolerance(d) * values[-1]
    share = jnp.where(keep, values / jnp.where(keep, (1 - a) / n * values + a * mean_eigenvalue, 1.0), 0.0)
    return (1 - a) * ((vectors.T @ m.targets) ** 2 * inverse_counts[None] * share[:, None]).sum() / (n - 1)


def shrinkage(m: _statistics.Moments) -> tuple[jax.Array, jax.Array]:
    """Return the Ledoit-Wolf shrinkage, the weight of the identity, and the identity's factor trace(S) / D."""
    n, d = m.num_examples, len(m.mean)
    mean_eigenvalue = jnp.trace(m.scatter) / (n * d)
    squares = (m.scatter**2).sum() / n**2
    dispersion = (squares - d * mean_eigenvalue**2) / d
    noise = (m.fourth / n - squares) / (d * n)
    # If S is a multiple of the identity, as for D = 1, the difference of the sums is rounding noise.
    is_spherical = dispersion <= 1e-14 * squares
    a = jnp.clip(noise, 0.0, dispersion) / jnp.where(is_spherical, 1.0, dispersion)
    return jnp.where(is_spherical, 0.0, a), mean_eigenvalue
