"""LEEP and NCE: how well the source's own classes tell the target's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.distance import checks
from tl_jax.errors import UserError


def leep(source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return the log expected empirical prediction (Nguyen et al. 2020, arXiv:2002.12462), in nats, at most 0.

    It is the mean over examples of log sum_z P(y|z) theta_z, where theta are the probabilities that the source model
    gives its own classes z, and P(y|z) follows from their mean by target class. A source class that has no
    probability in any example contributes nothing.

    Args:
        source_probs: (N, Z) float, rows with a sum of 1.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: shapes that do not belong together, rows that are no distributions, labels that are not whole numbers
            from 0 on, or a single class.
    """
    with jax.enable_x64(True):
        p, y, classes = checks.probabilities(source_probs, labels)
        return float(leep_from(p, y, jnp.ones(len(p)), classes=classes))


def nce(source_labels: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return minus the entropy, in nats, of the target's classes given the source's.

    (Tran et al. 2019, arXiv:1908.08142.) It is the sum over pairs of p(y, z) log p(y|z), at most 0, from
    how often the pairs occur.

    Args:
        source_labels: (N,) int, the class that the source model gives to each example.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: other shapes, labels that are not whole numbers from 0 on, or a single target class.
    """
    z, sources = checks.numbered(source_labels, "source_labels")
    y, classes = checks.numbered(labels)
    if len(z) != len(y):
        raise UserError(f"there are {len(z)} source_labels and {len(y)} labels; pass one of each for an example")
    if classes < 2:
        raise UserError(f"all {len(y)} labels are {np.asarray(labels)[0]}; a score needs two classes or more")
    with jax.enable_x64(True):
        return float(nce_from(jnp.asarray(z), jnp.asarray(y), jnp.ones(len(y)), sources=sources, classes=classes))


@functools.partial(jax.jit, static_argnames="classes")
def leep_from(p: jax.Array, y: jax.Array, weights: jax.Array, *, classes: int) -> jax.Array:
    """Return ``leep`` of (N, Z) probabilities and (N,) labels in [0, classes); examples count ``weights`` (N,)."""
    p = p.astype(jnp.float64)
    joint = jax.ops.segment_sum(p * weights[:, None], y, classes)
    mass = joint.sum(0)
    given = joint / jnp.where(mass > 0, mass, 1.0)[None]
    likely = (p * given[y]).sum(1)
    counted = weights > 0  # an example without weight may have no likely class, and a logarithm of -infinity
    return jnp.where(counted, jnp.log(jnp.where(counted, likely, 1.0)) * weights, 0.0).sum() / weights.sum()


@functools.partial(jax.jit, static_argnames=("sources", "classes"))
def nce_from(z: jax.Array, y: jax.Array, weights: jax.Array, *, sources: int, classes: int) -> jax.Array:
    """Return ``nce`` of labels z in [0, sources) and y in [0, classes), whose examples count ``weights`` (N,)."""
    joint = jax.ops.segment_sum(weights, z * classes + y, sources * classes).reshape(sources, classes) / weights.sum()
    mass = joint.sum(1, keepdims=True)
    return jnp.where(joint > 0, joint * jnp.log(jnp.where(joint > 0, joint / mass, 1.0)), 0.0).sum()
