"""PARC: whether examples that the source model finds unlike are of unlike classes."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import register_score
from tl_jax.utils.errors import UserError

# Digits of a correlation, in double and in single precision: what differs beyond them is rounding, and ranks the same.
NUM_DIGITS, NUM_DIGITS_SINGLE = 12, 5


def parc(source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, max_examples: int = 2000) -> float:
    """Return the pairwise annotation representation comparison (Bolya et al. 2021, arXiv:2111.06977), in [-100, 100].

    It is 100 times the Spearman correlation, over pairs i < j, of how unlike two examples are for the source, 1 minus
    the Pearson correlation of their standardised rows, and how unlike their labels are: 1 minus the Pearson
    correlation of one-hot labels, which ranks pairs of two classes above those of one. Equal values share their mean
    rank; correlations are equal if they are to 12 digits. A row that is the same throughout correlates with none.

    There are N^2 / 2 pairs. If N is above ``max_examples``, the examples at even steps in the order of the classes
    stand for all: each class keeps its share, and nothing is drawn by chance. (The paper takes 500.)

    Args:
        source_probs: (N, Z) float, probabilities of the source's classes, or features; Z from 2 on. They need not have
            sums of 1.
        labels: (N,) int; gaps are closed.
        max_examples: that are compared.

    Raises:
        UserError: shapes that do not belong together, values that are not finite, labels that are not whole numbers
            from 0 on, a single class, no class with two examples, or rows that are all alike.
    """
    if max_examples < 3:
        raise UserError(f"max_examples={max_examples} must be 3 or more: that many examples have pairs to rank")
    with jax.enable_x64(True):
        x, y, _ = _inputs.score_inputs(source_probs, labels, "source_probs")
        if x.shape[1] < 2:
            raise UserError(f"parc correlates rows of two numbers or more, not {x.shape}; pass all probabilities")
        rows = _inputs.stratified_rows(np.asarray(y), max_examples)
        x, y = x[rows], y[rows]
        if int(jnp.bincount(y).max()) < 2:
            raise UserError(f"no class has two of the {len(y)} examples that parc compares; pass more")
        value = float(parc_from(x, y))
    if not np.isfinite(value):
        raise UserError(f"all pairs of the {len(y)} source_probs are equally unlike; pass another layer's features")
    return value


@jax.jit
def parc_from(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return ``parc`` of (N, Z) rows, all of them, and (N,) labels; NaN where all pairs are alike."""
    # Every pair once: each example with those 1, 2, ... places on, around the end, half way round.
    pair = jnp.arange(len(x) * (len(x) - 1) // 2)
    first = pair % len(x)
    second = (first + pair // len(x) + 1) % len(x)
    z = x.astype(_statistics.widest()) - x[:1].astype(_statistics.widest())
    z = z - z.mean(0, keepdims=True)
    z = z / _nonzero(jnp.sqrt((z**2).mean(0, keepdims=True)))
    z = z - z.mean(1, keepdims=True)
    lengths = jnp.linalg.norm(z, axis=1, keepdims=True)
    digits = NUM_DIGITS if z.dtype == jnp.float64 else NUM_DIGITS_SINGLE
    # A row which standardised is the same throughout is so only up to rounding.
    z = jnp.where(lengths > 10.0**-digits * jnp.sqrt(z.shape[1]), z / _nonzero(lengths), 0.0)
    dissimilarity = jnp.round(1 - z @ z.T, digits)[first, second]
    labels_differ = (y[first] != y[second]).astype(_statistics.widest())
    ranks, labels_differ = _rank(dissimilarity, labels_differ)
    ranks, share = ranks - ranks.mean(), labels_differ.mean()
    # Spearman is Pearson of ranks; those of two values may be any two numbers, as 0 and 1.
    return 100 * (ranks * (labels_differ - share)).mean() / jnp.sqrt((ranks**2).mean() * share * (1 - share))


def _rank(values: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the ranks of values (P,) in rising order, equal ones with their mean, and ``others`` in that order."""
    values, others = jax.lax.sort((values, others), num_keys=1)
    positions, is_larger = jnp.arange(len(values)), values[1:] > values[:-1]
    first = jax.lax.cummax(jnp.where(jnp.append(True, is_larger), positions, 0))
    last = jax.lax.cummin(jnp.where(jnp.append(is_larger, True), positions, len(values)), reverse=True)
    return (first + last) / 2.0, others


def _nonzero(a: jax.Array) -> jax.Array:
    return jnp.where(a > 0, a, 1.0)


register_score("parc")(lambda x, y, key: parc(x, y))
