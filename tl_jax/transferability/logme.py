"""LogME: evidence of linear regression from features to classes."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import MOMENTS, register_score

# Smallest unexplained fraction of a target's square, if there are more examples than the rank.
MIN_RESIDUAL = 1e-10
GRID_SIZE, MAX_STEPS, RELATIVE_TOLERANCE = 256, 500, 1e-9  # starting points, and termination of MacKay's iteration


def logme(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return the maximum log evidence per example, averaged over classes (You et al. 2021, arXiv:2102.11005).

    For each class the target y is 1 for its examples and 0 for others, not centered. The evidence is the density of y
    under a normal distribution with mean 0 and covariance F F' / alpha + I / beta. It is maximized over alpha and beta
    from the best of 256 ratios alpha / beta, by MacKay's fixed point until the change is below 1e-9, or for 500 steps.
    The log-determinant is complete, with (D - rank) log alpha, which public code omits for D > N.

    Eigenvalues of F' F below 9e-16 max(N, D) times the largest are rounding and count as zero. If the rank is below N
    and the features fit y exactly, the evidence has no maximum. Then 1e-10 of ``|y|^2`` is taken as unexplained, which
    keeps the score finite and high.

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: The shapes do not match, features are not finite, labels are not class indices, or there is only one
            class.
    """
    with jax.enable_x64(True):
        return float(logme_from(_statistics.compute_moments(*_inputs.score_inputs(features, labels))))


@register_score("logme", MOMENTS)
@jax.jit
def logme_from(m: _statistics.Moments) -> jax.Array:
    """Return ``logme`` from moments."""
    n = m.num_examples
    scatter, targets = m.uncentred()
    values, vectors = jnp.linalg.eigh(scatter)
    keep = values > _statistics.rank_tolerance(jnp.maximum(n, len(m.mean))) * values[-1]
    s = jnp.where(keep, values, 0.0)
    squares = jnp.where(keep[:, None], (vectors.T @ targets) ** 2, 0.0)  # (M, K), of y on the left singular vectors
    if not m.wide:
        squares = squares / jnp.where(keep, s, 1.0)[:, None]
    rank = keep.sum()
    unexplained = jnp.maximum(m.counts - squares.sum(0), MIN_RESIDUAL * m.counts)
    unexplained = jnp.where(rank >= n, 0.0, unexplained)
    low, high = jnp.where(keep, s, jnp.inf).min() * 1e-14, values[-1] * 1e10
    low, high = (jnp.where((high > 0) & (rank > 0), bound, 1.0) for bound in (low, high))
    best = jax.vmap(_max_evidence, (None, 1, 0, None, None, None, None))(s, squares, unexplained, n, rank, low, high)
    nonempty = m.counts > 0
    return jnp.where(nonempty, best / n, 0.0).sum() / nonempty.sum()


def _max_evidence(s, squares, unexplained, n, rank, low, high) -> jax.Array:
    """Return the maximum log evidence of one target.

    Args:
        s: (M,) eigenvalues of F' F, with rounding set to 0.
        squares: (M,) squared projections of the target on the left singular vectors.
        unexplained: () unexplained part of the target's square.
        n: () number of examples.
        rank: () rank of the features.
        low: () smallest ratio alpha / beta.
        high: () largest ratio.
    """

    def evidence(ratio):
        # For a given ratio, the best 1 / beta is the mean of the whitened squares.
        noise = ((squares / (1 + s / ratio)).sum() + unexplained) / n
        return -0.5 * (n * jnp.log(2 * jnp.pi * noise) + n + jnp.log1p(s / ratio).sum())

    def update(ratio):
        shrunk = s / (s + ratio)
        explained = shrunk.sum()  # MacKay's gamma
        weight = (shrunk * squares / (s + ratio)).sum()  # |m|^2
        residual = (squares * (1 - shrunk) ** 2).sum() + unexplained
        residual_dof = (n - rank) + jnp.where(s > 0, ratio / (s + ratio), 0.0).sum()  # N - gamma, without cancellation
        new_ratio = explained * residual / (weight * residual_dof)
        return jnp.clip(jnp.where(jnp.isnan(new_ratio), ratio, new_ratio), low, high)

    def not_converged(carry):
        ratio, previous, steps = carry
        return (jnp.abs(ratio - previous) > RELATIVE_TOLERANCE * previous) & (steps < MAX_STEPS)

    def step(carry):
        ratio, _, steps = carry
        return update(ratio), ratio, steps + 1

    ratios = jnp.exp(jnp.linspace(jnp.log(low), jnp.log(high), GRID_SIZE))
    evidences = jax.lax.map(evidence, ratios)
    initial = ratios[evidences.argmax()]
    final = jax.lax.while_loop(not_converged, step, (update(initial), initial, 1))[0]
    return jnp.maximum(evidence(final), evidences.max())
