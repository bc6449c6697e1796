"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)."""

import jax
import jax.numpy as jnp


def advantages(
    rewards: jax.Array,
    values: jax.Array,
    following: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: float,
    smoothing: float,
) -> jax.Array:
    """Return the advantages (T, E) of the actions of T steps in E worlds; with ``values`` added, the values' targets.

    An episode that terminates is worth nothing more; one that is truncated would have gone on, so the value of the
    observation it led to still counts, and only the sum over later steps ends (Pardo et al. 2018, arXiv:1712.00378).

    Args:
        rewards: (T, E).
        values: (T, E) of the observations that were acted on.
        following: (T, E) values of the observations that the steps led to, before a new episode began.
        terminated, truncated: (T, E) bool, how an episode ended at a step.
        discount: gamma.
        smoothing: lambda; 0 for one-step differences, 1 for whole returns.
    """
    deltas = rewards + discount * jnp.where(terminated, 0.0, following) - values
    carries = discount * smoothing * (1.0 - (terminated | truncated))

    def back(later: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, carry = at
        now = delta + carry * later
        return now, now

    _, found = jax.lax.scan(back, jnp.zeros_like(values[0]), (deltas, carries), reverse=True)
    return found
