"""Metrics of face embeddings: verification of pairs of images, and identification. NumPy only.

A pair is accepted if its cosine is at least a threshold: TAR is the accepted share of pairs of one person, FAR that of
pairs of different people.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tl_jax.utils.errors import UserError

NUM_FOLDS = 10  # folds of the accuracy, as in LFW (Huang et al. 2007)
MAX_PAIRS = 500_000  # pairs of different people, a random sample if there are more
FAR_LEVELS = {"tar_at_1e-2": 1e-2, "tar_at_1e-3": 1e-3}  # FAR at which TAR is reported


class Pairs(NamedTuple):
    """P pairs of N images: rows ``first`` and ``second`` int (P,), ``same`` bool (P,), ``fold`` int (P,)."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class RocCurve(NamedTuple):
    """An ROC curve, each (T,): ``far`` and ``tar`` rise from 0 to 1 as the threshold falls from infinity."""

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


class Comparisons(NamedTuple):
    """Scores of pairs of N images of K people, from which all metrics follow; pairs by decreasing cosine.

    Attributes:
        num_identities: K.
        pair_identities: int (2, P), the people of a pair, in [0, K).
        scores: cosines float (P,).
        same: bool (P,).
        correct: bool (P,), whether the threshold of the other folds classifies a pair correctly; empty without folds.
        probe_identities: int (Q,), the person of each image that is looked up in the gallery.
        hits: bool (Q,), whether that person was found.
    """

    num_identities: int
    pair_identities: np.ndarray
    scores: np.ndarray
    same: np.ndarray
    correct: np.ndarray
    probe_identities: np.ndarray
    hits: np.ndarray


def all_pairs(identities: np.ndarray, seed: int = 0, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Return all pairs of N images; of different people at most ``max_pairs`` random ones.

    ``identities`` int (N,) are the people in the images; ``seed`` also determines the folds.
    """
    n, rng = len(identities), np.random.default_rng((seed, 4))
    if n * (n - 1) // 2 <= 4 * max_pairs:
        first, second = np.triu_indices(n, 1)
        same = identities[first] == identities[second]
        different = np.flatnonzero(~same)
        if len(different) > max_pairs:
            different = rng.choice(different, max_pairs, replace=False)
        selected = np.sort(np.concatenate([np.flatnonzero(same), different]))
        first, second, same = first[selected], second[selected], same[selected]
    else:
        rows = [np.flatnonzero(identities == identity) for identity in np.unique(identities)]
        genuine = np.concatenate([row[np.stack(np.triu_indices(len(row), 1))] for row in rows], axis=1)
        sampled = np.sort(rng.integers(n, size=(2, 2 * max_pairs)), axis=0)
        sampled = np.unique(sampled[:, identities[sampled[0]] != identities[sampled[1]]], axis=1)
        sampled = sampled[:, rng.permutation(sampled.shape[1])[:max_pairs]]
        first, second = np.concatenate([genuine, sampled], axis=1)
        same = np.arange(len(first)) < genuine.shape[1]
    return Pairs(first, second, same, assign_folds(same, rng))


def assign_folds(same: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return folds int (P,), assigned at random within the pairs of one person and of different people."""
    fold = np.empty(len(same), int)
    for subset in (same, ~same):
        fold[subset] = rng.permutation(int(subset.sum())) % NUM_FOLDS
    return fold


def roc_curve(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> RocCurve:
    """Return the ROC curve of P pairs, with a point per distinct score.

    Args:
        scores: float (P,), higher for more similar.
        same: bool (P,).
        weights: float (P,) of pairs; None for 1.

    Raises:
        UserError: all pairs with weight are of one kind.
    """
    order = np.argsort(-scores, kind="stable")
    falling, weights = scores[order], np.ones(len(scores)) if weights is None else weights[order]
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    accepted, wrong = (np.cumsum(weights * kind[order]) for kind in (same, ~same))
    if not len(scores) or not accepted[-1] or not wrong[-1]:
        raise UserError("verification needs pairs of one person and pairs of different people; add images for both")
    far, tar = (np.append(0.0, total[ends] / total[-1]) for total in (wrong, accepted))
    return RocCurve(far, tar, np.append(np.inf, falling[ends]))


def auc(curve: RocCurve) -> float:
    """Return the area under the ROC curve: the probability that a pair of one person scores higher, ties half."""
    return float(np.trapezoid(curve.tar, curve.far))


def tar_at_far(curve: RocCurve, level: float) -> float:
    """Return the highest TAR of a threshold with a FAR of at most ``level``, without interpolation."""
    return float(curve.tar[curve.far <= level * (1 + 1e-9)].max())


def equal_error_rate(curve: RocCurve) -> float:
    """Return the rate at which FAR equals 1 - TAR, interpolated linearly."""
    gap = curve.far - (1 - curve.tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(curve.far[before] + share * (curve.far[after] - curve.far[before]))


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the threshold with the best mean of TAR and 1 - FAR, halfway to the next lower score.

    Both kinds of pairs have equal weight, whatever their number; in LFW's folds they are equally many.
    """
    curve = roc_curve(scores, same)
    best = 1 + int(np.argmax((curve.tar - curve.far)[1:]))
    return float(curve.thresholds[best : best + 2].mean())


def fold_decisions(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return bool (P,): whether the threshold that is best on the other folds classifies each pair correctly."""
    correct = np.empty(len(scores), bool)
    for number in np.unique(fold):
        held = fold == number
        correct[held] = (scores[held] >= best_threshold(scores[~held], same[~held])) == same[held]
    return correct


def accuracy(correct: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the share of correct pairs, with equal weight for pairs of one person and of different people."""
    return float(
        np.mean([np.average(correct[k], weights=None if weights is None else weights[k]) for k in (same, ~same)])
    )


def rank_one(embeddings: np.ndarray, identities: np.ndarray, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """Identify images by the highest cosine in a gallery.

    Args:
        embeddings: float (N, E), of length 1.
        identities: int (N,), the person in each image.
        gallery: number of images per person in the gallery, the first ones; the others are looked up.

    Returns:
        Rows int (Q,) of the images that were looked up, and whether the nearest image shows the same person (Q,).
    """
    rank = np.empty(len(identities), int)  # rank of an image within its person
    for identity in np.unique(identities):
        rows = np.flatnonzero(identities == identity)
        rank[rows] = np.arange(len(rows))
    gallery_rows, probes = np.flatnonzero(rank < gallery), np.flatnonzero(rank >= gallery)
    nearest = [
        (embeddings[probes[i : i + 1024]] @ embeddings[gallery_rows].T).argmax(1) for i in range(0, len(probes), 1024)
    ]
    matches = gallery_rows[np.concatenate(nearest)] if nearest else gallery_rows[:0]
    return probes, identities[matches] == identities[probes]


def pair_cosines(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the cosines (P,) of pairs of embeddings (N, E) of length 1."""
    blocks = np.arange(65536, len(pairs.first), 65536)  # bounds the memory
    sides = zip(np.split(pairs.first, blocks), np.split(pairs.second, blocks), strict=True)
    return np.concatenate([np.einsum("pe,pe->p", embeddings[left], embeddings[right]) for left, right in sides])


def compare(embeddings: np.ndarray, identities: np.ndarray, pairs: Pairs, gallery: int) -> Comparisons:
    """Score the pairs of images, and look images up in a gallery: see ``rank_one`` for the arguments."""
    names, index = np.unique(identities, return_inverse=True)
    scores = pair_cosines(embeddings, pairs)
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], pairs.same[order]
    enough = min(same.sum(), (~same).sum()) >= NUM_FOLDS
    correct = fold_decisions(scores, same, pairs.fold[order]) if enough else np.zeros(0, bool)
    probes, hits = rank_one(embeddings, identities, gallery)
    pair_identities = np.stack([index[pairs.first], index[pairs.second]])[:, order]
    return Comparisons(len(names), pair_identities, scores, same, correct, index[probes], hits)


def missing_metrics(comparisons: Comparisons) -> dict[str, str]:
    """Return metric -> reason for metrics with too few images."""
    impostors = int((~comparisons.same).sum())
    reasons = {
        name: f"needs {round(1 / level):,} pairs of different people; there are {impostors:,}"
        for name, level in FAR_LEVELS.items()
        if impostors * level * (1 + 1e-9) < 1
    }
    if not len(comparisons.correct):
        reasons["accuracy"] = f"needs {NUM_FOLDS} pairs of one person and {NUM_FOLDS} of different people"
    if not len(comparisons.hits):
        reasons["rank1"] = "needs people with more images than the gallery has of each"
    return reasons


def verification_metrics(comparisons: Comparisons, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return ``auc``, ``eer``, TAR at ``FAR_LEVELS``, ``accuracy`` over folds and ``rank1``, without missing ones.

    Args:
        comparisons: scores of pairs and the gallery.
        weights: float (K,) of the people; None for 1.
    """
    pair_weights = None
    if weights is not None:
        left, right = weights[comparisons.pair_identities]
        pair_weights = np.where(comparisons.same, left, left * right)
    curve = roc_curve(comparisons.scores, comparisons.same, pair_weights)
    values = {"auc": auc(curve), "eer": equal_error_rate(curve)}
    values |= {name: tar_at_far(curve, level) for name, level in FAR_LEVELS.items()}
    values |= (
        {"accuracy": accuracy(comparisons.correct, comparisons.same, pair_weights)} if len(comparisons.correct) else {}
    )
    probe_weights = None if weights is None else weights[comparisons.probe_identities]
    if len(comparisons.hits) and (probe_weights is None or probe_weights.any()):
        values["rank1"] = float(np.average(comparisons.hits, weights=probe_weights))
    return {name: value for name, value in values.items() if name not in missing_metrics(comparisons)}


def bootstrap_intervals(
    comparisons: Comparisons, replicates: int = 500, seed: int = 0
) -> Mapping[str, tuple[float, float]]:
    """Return 95 % intervals of the metrics by a bootstrap over people; {} for fewer than three people.

    Each replicate draws K of the K people; a pair of one person is weighted by the count of that person, a pair of two
    by the product. Pairs share people, so resampling pairs would give too narrow intervals. The thresholds of the folds
    and the gallery are fixed.
    """
    if comparisons.num_identities < 3:
        return {}
    rng, rows = np.random.default_rng((seed, 5)), []
    while len(rows) < replicates:
        weights = np.bincount(
            rng.integers(comparisons.num_identities, size=comparisons.num_identities),
            minlength=comparisons.num_identities,
        ).astype(float)
        left, right = weights[comparisons.pair_identities]
        if (left * comparisons.same).any() and (left * right * ~comparisons.same).any():
            rows.append(verification_metrics(comparisons, weights))
    quantiles = {name: np.quantile([row[name] for row in rows if name in row], (0.025, 0.975)) for name in rows[0]}
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}
