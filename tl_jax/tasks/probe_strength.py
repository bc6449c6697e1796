"""How strong a probe is: the strength with the least log loss on examples that folds hold out.

The accuracy of a few dozen examples says too little: many strengths have the same.

Fine-tuning starts from a weaker head. The best probe of a few dozen examples fits them without a mistake, so its loss
leaves the layers below little to learn. ``start_strength`` regularizes the head until it is only a little better than
a guess: it then points in the right direction, and the network and the head learn the rest together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import entr, softmax
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tl_jax.metrics import classification

LOGISTIC, RIDGE = PROBES = ("logistic", "ridge")  # fits of the head, see transferability/probes.py
FOLDS = 3
MAX_CROSS_VALIDATED = 1500  # examples up to which each is held out once; of more two folds say enough
STRENGTHS = tuple(10.0**i for i in range(-4, 3))  # C of a probe, that are tried first
EXTREME_STRENGTHS = (1e-6, 1e5)  # to which the grid is extended if its end is the best
START_LOSS = 0.9  # of the loss of a guess, that a head to start from has on the training examples
MIN_START_STRENGTH = 1e-9  # C down to which such a head is looked for
Fold = tuple[np.ndarray, np.ndarray]  # rows to train on, and those held out


class ProbeScore(NamedTuple):
    """What a probe comes to on held-out examples: mean log loss in nats, and accuracy."""

    loss: float
    accuracy: float


def make_folds(pool: Any, classes: int, seed: int, count: int = FOLDS) -> list[Fold]:
    """Return folds in which classes keep their shares and groups stay together; none if a class is too small.

    Args:
        pool: N examples, with ``labels`` and, if they have any, ``groups``.
        classes: K.
        seed: of the folds.
        count: of the folds.
    """
    labels, groups = np.asarray(pool.labels), getattr(pool, "groups", None)
    in_class = [labels == k for k in range(classes)]
    members = [int(rows.sum()) if groups is None else len(np.unique(groups[rows])) for rows in in_class]
    if min(members) < count:
        return []
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    parts = splitter(count, shuffle=True, random_state=seed % 2**32).split(np.zeros(len(labels)), labels, groups)
    folds = [(train, held) for train, held in parts]
    if any(len(np.unique(labels[train])) < classes for train, _ in folds):
        return []
    return folds if groups is not None or len(labels) <= MAX_CROSS_VALIDATED else folds[:2]


def choose_strength(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[Fold],
    strengths: Sequence[float] = STRENGTHS,
    kind: str = LOGISTIC,
) -> tuple[float, ProbeScore]:
    """Return the strength with the least loss and how the probe does on what is held out.

    Of several strengths, the grid goes on by factors of ten as long as its end is the best.

    Args:
        features: (N, D).
        labels: (N,).
        folds: of their rows.
        strengths: C to begin with.
        kind: one of ``PROBES``.
    """
    found = {c: cross_validate(features, labels, folds, c, kind=kind)[0] for c in strengths}
    while len(found) > 1:
        best = min(found, key=lambda c: found[c].loss)
        step = 10.0 if best == max(found) else 0.1 if best == min(found) else 1.0
        if step == 1.0 or not EXTREME_STRENGTHS[0] <= best * step <= EXTREME_STRENGTHS[1]:
            break
        found[best * step] = cross_validate(features, labels, folds, best * step, kind=kind)[0]
    best = min(found, key=lambda c: found[c].loss)
    return best, found[best]


def start_strength(features: np.ndarray, labels: np.ndarray, start_loss: float, kind: str = LOGISTIC) -> float:
    """Return the strength of the head that fine-tuning starts from.

    It is the largest, by factors of ten from 1 down, whose loss on the training examples is at least ``start_loss``
    times the loss of a guess.

    Args:
        features: (N, D).
        labels: (N,).
        start_loss: at most 1.
        kind: one of ``PROBES``.
    """
    everyone = np.arange(len(labels))
    guess = float(entr(np.bincount(labels) / len(labels)).sum())
    strength = 1.0
    while strength > MIN_START_STRENGTH:
        loss = cross_validate(features, labels, [(everyone, everyone)], strength, kind=kind)[0].loss
        if loss >= start_loss * guess:
            break
        strength /= 10
    return strength


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[Fold],
    strength: float,
    *others: np.ndarray,
    kind: str = LOGISTIC,
) -> list[ProbeScore]:
    """Fit a probe on each fold; return how it does on what is held out, of these features and of others (N, D)."""
    from tl_jax.transferability import probes  # with all scores, which take two seconds to import

    fit_probe = {LOGISTIC: probes.logistic_probe, RIDGE: probes.ridge_probe}[kind]
    fitted = [fit_probe(features[train], labels[train], strength) for train, _ in folds]
    held_labels, scores = labels[np.concatenate([held for _, held in folds])], []
    for tested in (features, *others):
        logits = [
            np.asarray(jnp.asarray(tested[held]) @ probe.kernel + probe.bias[None], np.float64)
            for probe, (_, held) in zip(fitted, folds, strict=True)
        ]
        probabilities = softmax(np.concatenate(logits), axis=1)
        if kind == RIDGE:  # whose outputs are no logits: their scale says nothing
            temperature = classification.fit_temperature(probabilities, held_labels)
            probabilities = classification.apply_temperature(probabilities, temperature)
        accuracy = float((probabilities.argmax(1) == held_labels).mean())
        scores.append(ProbeScore(classification.log_loss(probabilities, held_labels), accuracy))
    return scores
