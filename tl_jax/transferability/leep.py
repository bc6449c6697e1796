"""LEEP, NCE and N-LEEP: how well a source's class probabilities predict target labels.

N-LEEP uses clusters of features in place of the source's classes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from sklearn.mixture import GaussianMixture

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import PROBABILITIES, register_score
from tl_jax.utils.errors import UserError


def leep(source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return the log expected empirical prediction (Nguyen et al. 2020, arXiv:2002.12462), in nats, at most 0.

    It is the mean over examples of log sum_z P(y|z) theta_z, where theta are the source model's probabilities of its
    own classes z, and P(y|z) is estimated from their means by target class. A source class with zero probability for
    all examples contributes nothing.

    Args:
        source_probs: (N, Z) float, rows sum to 1.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: The shapes do not match, rows are not distributions, labels are not class indices, or there is only
            one class.
    """
    with jax.enable_x64(True):
        p, y, classes = _inputs.probability_inputs(source_probs, labels)
        return float(leep_from(p, y, jnp.ones(len(p)), classes=classes))


def nce(source_labels: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
    """Return the negative conditional entropy of the target's classes given the source's, in nats.

    (Tran et al. 2019, arXiv:1908.08142.) It is the sum over pairs of p(y, z) log p(y|z), at most 0, with empirical
    frequencies.

    Args:
        source_labels: (N,) int, the source model's predicted class of each example.
        labels: (N,) int; gaps are closed.

    Raises:
        UserError: The shapes do not match, labels are not class indices, or there is only one target class.
    """
    z, sources = _inputs.contiguous_labels(source_labels, "source_labels")
    y, classes = _inputs.contiguous_labels(labels)
    if len(z) != len(y):
        raise UserError(f"nce: {len(z)} source_labels and {len(y)} labels do not match; pass one of each per example")
    if classes < 2:
        raise UserError(f"labels: all {len(y)} are {np.asarray(labels)[0]}; a score needs at least two classes")
    with jax.enable_x64(True):
        return float(nce_from(jnp.asarray(z), jnp.asarray(y), jnp.ones(len(y)), sources=sources, classes=classes))


@functools.partial(jax.jit, static_argnames="classes")
def leep_from(p: jax.Array, y: jax.Array, weights: jax.Array, *, classes: int) -> jax.Array:
    """Return ``leep`` of (N, Z) probabilities and (N,) labels in [0, classes), weighted by ``weights`` (N,)."""
    p = p.astype(_statistics.widest())
    joint = jax.ops.segment_sum(p * weights[:, None], y, classes)
    mass = joint.sum(0)
    conditional = joint / jnp.where(mass > 0, mass, 1.0)[None]
    likelihoods = (p * conditional[y]).sum(1)
    counted = weights > 0  # an example of weight 0 may have a log probability of -infinity
    return jnp.where(counted, jnp.log(jnp.where(counted, likelihoods, 1.0)) * weights, 0.0).sum() / weights.sum()


@functools.partial(jax.jit, static_argnames=("sources", "classes"))
def nce_from(z: jax.Array, y: jax.Array, weights: jax.Array, *, sources: int, classes: int) -> jax.Array:
    """Return ``nce`` of labels z in [0, sources) and y in [0, classes), weighted by ``weights`` (N,)."""
    joint = jax.ops.segment_sum(weights, z * classes + y, sources * classes).reshape(sources, classes) / weights.sum()
    mass = joint.sum(1, keepdims=True)
    return jnp.where(joint > 0, joint * jnp.log(jnp.where(joint > 0, joint / mass, 1.0)), 0.0).sum()


def nleep(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    key: jax.Array,
    components: int | None = None,
    share: float = 0.8,
    dims: int = 64,
    max_examples: int = 5000,
) -> float:
    """Return LEEP with the posterior of a Gaussian mixture as source probabilities (Li et al. 2021, arXiv:2011.11200).

    Features are reduced to the principal components that keep ``share`` of the variance, at most ``dims``. A mixture
    with full covariances is fitted by scikit-learn's ``GaussianMixture`` with one k-means initialization. The
    components and the mixture are fitted to ``max_examples`` examples, spread evenly over the classes; the score uses
    all examples. Another key gives another mixture, and a randomly different score.

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.
        key: a key of ``jax.random``, which seeds the mixture.
        components: number of Gaussians, at most that of the fitted examples; None for five per class, as in the public
            code.
        share: fraction of the variance, in (0, 1].
        dims: maximum number of principal components.
        max_examples: maximum number of examples to fit.

    Raises:
        UserError: The shapes do not match, features are not finite, labels are not class indices, there is only one
            class, or an argument is out of range.
    """
    if not (0 < share <= 1 and dims >= 1 and max_examples >= 2 and (components is None or components >= 1)):
        raise UserError(
            "nleep: share must be in (0, 1], and components, dims and max_examples above 0; correct "
            f"{share}, {components}, {dims}, {max_examples}"
        )
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    with jax.enable_x64(True):
        x, y, classes = _inputs.score_inputs(features, labels)
        rows = _inputs.stratified_rows(np.asarray(y), max_examples)
        z = principal_components(np.asarray(x), rows, share, dims)
        count = min(len(rows), components or 5 * classes)
        p = GaussianMixture(count, random_state=seed).fit(z[rows]).predict_proba(z)
        return float(leep_from(jnp.asarray(p), y, jnp.ones(len(p)), classes=classes))


def principal_components(x: np.ndarray, rows: np.ndarray, share: float, dims: int) -> np.ndarray:
    """Return the principal components of (N, D) features that keep ``share`` of the variance of ``rows``."""
    sample = x[rows].astype(np.float64)
    mean = sample.mean(0)
    sample -= mean[None]
    wide = sample.shape[1] > sample.shape[0]
    gram = sample @ sample.T if wide else sample.T @ sample
    size = len(gram)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(max(0, size - dims), size - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    explained = np.cumsum(values) / max(np.trace(gram), np.finfo(float).tiny)
    num_components = min(len(values), int(np.searchsorted(explained, share * (1 - 1e-12))) + 1)
    axes = sample.T @ vectors[:, :num_components] if wide else vectors[:, :num_components]
    axes /= np.maximum(np.linalg.norm(axes, axis=0, keepdims=True), np.finfo(float).tiny)
    # In blocks, to avoid a second copy of the features in double precision.
    return np.concatenate([(x[i : i + 4096] - mean[None]) @ axes for i in range(0, len(x), 4096)])


register_score("nleep")(lambda x, y, key: nleep(x, y, key))


@register_score("leep", PROBABILITIES)
@functools.partial(jax.jit, static_argnums=4)
def _leep(p: jax.Array, z: jax.Array, y: jax.Array, weights: jax.Array, classes: int) -> jax.Array:
    return jax.lax.map(lambda w: leep_from(p, y, w, classes=classes), weights)


@register_score("nce", PROBABILITIES)
@functools.partial(jax.jit, static_argnums=4)
def _nce(p: jax.Array, z: jax.Array, y: jax.Array, weights: jax.Array, classes: int) -> jax.Array:
    return jax.lax.map(lambda w: nce_from(z, y, w, sources=p.shape[1], classes=classes), weights)
