"""GBC: overlap of the classes, modelled as Gaussians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import MOMENTS, register_score

MIN_VARIANCE = 1e-4  # lower limit


def gbc(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return minus the sum over ordered pairs of classes of exp(-Bhattacharyya distance).

    (Pandy et al. 2022, arXiv:2111.12780.) Classes are Gaussians with diagonal covariances; variances use 1 / n and are
    at least 1e-4. The features are used as they are, whereas the paper first reduces them to 64 principal components.
    The best value is 0.

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: The shapes do not match, features are not finite, labels are not class indices, or there is only one
            class.
    """
    with jax.enable_x64(True):
        return float(_gbc(*_inputs.score_inputs(features, labels)))


@functools.partial(jax.jit, static_argnums=2)
def _gbc(x: jax.Array, y: jax.Array, classes: int) -> jax.Array:
    # One program, so that XLA drops the unused scatter.
    return gbc_from(_statistics.weighted_moments(x, y, jnp.ones(len(x)), classes=classes))


@register_score("gbc", MOMENTS)
@jax.jit
def gbc_from(m: _statistics.Moments) -> jax.Array:
    """Return ``gbc`` from moments; the scatter is not used."""
    variances = jnp.maximum(m.variances, MIN_VARIANCE)
    logs = jnp.log(variances)
    nonempty = m.counts > 0

    def class_overlap(c):
        mean_variance = (variances[c][None] + variances) / 2
        distance = ((m.means[c][None] - m.means) ** 2 / mean_variance).sum(1) / 8
        log_ratio = (jnp.log(mean_variance) - (logs[c][None] + logs) / 2).sum(1) / 2
        others = nonempty & nonempty[c] & (jnp.arange(len(nonempty)) != c)
        return jnp.where(others, jnp.exp(-distance - log_ratio), 0.0).sum()

    return -jax.lax.map(class_overlap, jnp.arange(len(nonempty))).sum()
