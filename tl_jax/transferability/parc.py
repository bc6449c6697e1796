"""PARC: correlation between dissimilar source representations and different classes."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import register_score
from tl_jax.utils.errors import UserError

# Digits of a correlation, in double and single precision; smaller differences are rounding and rank equally.
NUM_DIGITS, NUM_DIGITS_SINGLE = 12, 5


def parc(source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, max_examples: int = 2000) -> float:
    """Return the pairwise annotation representation comparison (Bolya et al. 2021, arXiv:2111.06977), in [-100, 100].

    It is 100 times the Spearman correlation, over pairs i < j, between two dissimilarities. That of the source is 1
    minus the Pearson correlation of two examples' standardized rows. That of the labels is 1 minus the Pearson
    correlation of one-hot labels, which ranks pairs of two classes above pairs of one. Ties get their mean rank;
    correlations that agree to 12 digits are tied. A constant row has no correlation with any other.

    There are N^2 / 2 pairs. If N exceeds ``max_examples``, evenly spaced examples in the order of the classes are used,
    so each class keeps its proportion, without randomness. (The paper uses 500.)

    Args:
        source_probs: (N, Z) float, probabilities of the source's classes, or features; Z >= 2. Rows need not sum to 1.
        labels: (N,) int; gaps are closed.
        max_examples: maximum number of examples to compare.

    Raises:
        UserError: The shapes do not match, values are not finite, labels are not class indices, there is only one
            class, no class has two examples, or all rows are equally dissimilar.
    """
    if max_examples < 3:
        raise UserError(f"max_examples={max_examples}: must be at least 3, the fewest with pairs to rank")
    with jax.enable_x64(True):
        x, y, _ = _inputs.score_inputs(source_probs, labels, "source_probs")
        if x.shape[1] < 2:
            raise UserError(f"parc: rows of {x.shape} need at least two values; pass all probabilities")
        rows = _inputs.stratified_rows(np.asarray(y), max_examples)
        x, y = x[rows], y[rows]
        if int(jnp.bincount(y).max()) < 2:
            raise UserError(f"parc: no class has two of the {len(y)} compared examples; pass more")
        value = float(parc_from(x, y))
    if not np.isfinite(value):
        raise UserError(f"source_probs: all pairs of {len(y)} are equally dissimilar; pass another layer's features")
    return value


@jax.jit
def parc_from(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return ``parc`` of all (N, Z) rows and (N,) labels; NaN if all pairs are equally dissimilar."""
    # Each pair once: each example with those at cyclic offsets 1, 2, ..., N / 2.
    pair = jnp.arange(len(x) * (len(x) - 1) // 2)
    first = pair % len(x)
    second = (first + pair // len(x) + 1) % len(x)
    z = x.astype(_statistics.widest()) - x[:1].astype(_statistics.widest())
    z = z - z.mean(0, keepdims=True)
    z = z / _nonzero(jnp.sqrt((z**2).mean(0, keepdims=True)))
    z = z - z.mean(1, keepdims=True)
    lengths = jnp.linalg.norm(z, axis=1, keepdims=True)
    digits = NUM_DIGITS if z.dtype == jnp.float64 else NUM_DIGITS_SINGLE
    # A constant row is constant only up to rounding after standardization.
    z = jnp.where(lengths > 10.0**-digits * jnp.sqrt(z.shape[1]), z / _nonzero(lengths), 0.0)
    dissimilarity = jnp.round(1 - z @ z.T, digits)[first, second]
    labels_differ = (y[first] != y[second]).astype(_statistics.widest())
    ranks, labels_differ = _rank(dissimilarity, labels_differ)
    ranks, share = ranks - ranks.mean(), labels_differ.mean()
    # Spearman is the Pearson correlation of ranks; those of a binary variable may be 0 and 1.
    return 100 * (ranks * (labels_differ - share)).mean() / jnp.sqrt((ranks**2).mean() * share * (1 - share))


def _rank(values: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the increasing ranks of values (P,), with mean ranks for ties, and ``others`` in the same order."""
    values, others = jax.lax.sort((values, others), num_keys=1)
    positions, is_larger = jnp.arange(len(values)), values[1:] > values[:-1]
    first = jax.lax.cummax(jnp.where(jnp.append(True, is_larger), positions, 0))
    last = jax.lax.cummin(jnp.where(jnp.append(is_larger, True), positions, len(values)), reverse=True)
    return (first + last) / 2.0, others


def _nonzero(a: jax.Array) -> jax.Array:
    return jnp.where(a > 0, a, 1.0)


register_score("parc")(lambda x, y, key: parc(x, y))
