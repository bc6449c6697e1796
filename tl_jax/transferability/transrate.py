"""TransRate: coding rate of the features minus that of the classes."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import MOMENTS, register_score


def transrate(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return R(Z) minus the mean over classes of R(Z_c), in nats (Huang et al. 2022, arXiv:2106.09362).

    R(Z) = 1/2 logdet(I + Z'Z / (n eps)) with eps = 1e-4, for n rows of features centered at the overall mean. Classes
    have equal weight whatever their size, as in the published code.

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: The shapes do not match, features are not finite, labels are not class indices, or there is only one
            class.
    """
    with jax.enable_x64(True):
        return float(transrate_from(_statistics.compute_moments(*_inputs.score_inputs(features, labels), rates=True)))


@register_score("transrate", MOMENTS)
@jax.jit
def transrate_from(m: _statistics.Moments) -> jax.Array:
    """Return ``transrate`` from moments with class rates."""
    total_rate = _statistics.half_logdet(m.scatter / (m.num_examples * _statistics.DISTORTION))
    nonempty = m.counts > 0
    return total_rate - jnp.where(nonempty, m.rates, 0.0).sum() / nonempty.sum()
