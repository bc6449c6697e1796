"""Distributions over actions, as functions of what the policy says: choices, or independent normal values."""

import math

import jax
import jax.numpy as jnp

from tl_jax.models.policy import Output

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def sample(key: jax.Array, out: Output) -> jax.Array:
    """Draw actions: (N,) int choices, or (N, A) values."""
    if not out.log_std.size:
        return jax.random.categorical(key, out.scores)
    return out.scores + jnp.exp(out.log_std)[None] * jax.random.normal(key, out.scores.shape)


def best(out: Output) -> jax.Array:
    """Return the likeliest actions: (N,) int choices, or (N, A) values."""
    return out.scores if out.log_std.size else out.scores.argmax(-1)


def log_prob(out: Output, actions: jax.Array) -> jax.Array:
    """Return the log probabilities (N,) of actions, in nats; of values their densities."""
    if not out.log_std.size:
        return jnp.take_along_axis(jax.nn.log_softmax(out.scores), actions[:, None], axis=-1)[:, 0]
    off = (actions - out.scores) * jnp.exp(-out.log_std)[None]
    return (-0.5 * off**2 - out.log_std[None] - HALF_LOG_TAU).sum(-1)


def entropy(out: Output) -> jax.Array:
    """Return the entropies (N,), in nats."""
    if not out.log_std.size:
        logs = jax.nn.log_softmax(out.scores)
        return -(jnp.exp(logs) * logs).sum(-1)
    return jnp.broadcast_to((0.5 + HALF_LOG_TAU + out.log_std).sum(), out.value.shape)


def divergence(p: Output, q: Output) -> jax.Array:
    """Return KL(p || q) (N,), in nats: how far the policy q is from p, as p sees it."""
    if not p.log_std.size:
        ours, theirs = jax.nn.log_softmax(p.scores), jax.nn.log_softmax(q.scores)
        return (jnp.exp(ours) * (ours - theirs)).sum(-1)
    var_p, var_q = jnp.exp(2 * p.log_std)[None], jnp.exp(2 * q.log_std)[None]
    ratio = (var_p + (p.scores - q.scores) ** 2) / (2 * var_q)
    return (q.log_std[None] - p.log_std[None] + ratio - 0.5).sum(-1)
