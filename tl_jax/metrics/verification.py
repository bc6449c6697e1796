"""How well embeddings tell people apart: pairs of pictures verified, pictures identified. NumPy only.

A pair is accepted where its cosine is at least a threshold: TAR is the share of pairs of one person that are accepted,
FAR that of pairs of different people.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tl_jax.utils.errors import UserError

NUM_FOLDS = 10  # of the accuracy, as in LFW (Huang et al. 2007)
MAX_PAIRS = 500_000  # of different people; where there are more, so many are drawn
FAR_LEVELS = {"tar_at_1e-2": 1e-2, "tar_at_1e-3": 1e-3}  # FAR at which TAR is given


class Pairs(NamedTuple):
    """P pairs of N pictures: rows ``first`` and ``second`` int (P,), ``same`` bool (P,), ``fold`` int (P,)."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class RocCurve(NamedTuple):
    """ROC, each (T,): ``far`` and ``tar`` rise from 0 to 1 while the threshold falls from infinity."""

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


class Comparisons(NamedTuple):
    """Scores of pairs of N images of K people, from which all metrics follow; pairs by falling cosine.

    Attributes:
        num_identities: K.
        pair_identities: int (2, P), whose pictures a pair has, in [0, K).
        scores: cosines float (P,).
        same: bool (P,).
        correct: bool (P,), whether the threshold of the other folds decides a pair rightly; empty without folds.
        probe_identities: int (Q,), whose picture was looked up in the gallery.
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
    """Return all pairs of N pictures, or of those of different people ``max_pairs`` drawn by ``seed``.

    ``identities`` int (N,) says who is shown; ``seed`` also deals the folds.
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
    """Return folds int (P,), dealt at random to the pairs of one person and to those of different people."""
    fold = np.empty(len(same), int)
    for subset in (same, ~same):
        fold[subset] = rng.permutation(int(subset.sum())) % NUM_FOLDS
    return fold


def roc_curve(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> RocCurve:
    """Return the ROC curve of P pairs, with a point for each different score.

    Args:
        scores: float (P,), the higher the more alike.
        same: bool (P,).
        weights: float (P,), how often a pair counts; None for once.

    Raises:
        UserError: all pairs, as far as they count, are of one kind.
    """
    order = np.argsort(-scores, kind="stable")
    falling, weights = scores[order], np.ones(len(scores)) if weights is None else weights[order]
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    accepted, wrong = (np.cumsum(weights * kind[order]) for kind in (same, ~same))
    if not len(scores) or not accepted[-1] or not wrong[-1]:
        raise UserError("verification takes pairs of one person and pairs of different people; give pictures of both")
    far, tar = (np.append(0.0, total[ends] / total[-1]) for total in (wrong, accepted))
    return RocCurve(far, tar, np.append(np.inf, falling[ends]))


def auc(curve: RocCurve) -> float:
    """Return the area under the ROC curve: the chance that a pair of one person is the more alike, ties half."""
    return float(np.trapezoid(curve.tar, curve.far))


def tar_at_far(curve: RocCurve, level: float) -> float:
    """Return the highest TAR of a threshold whose FAR is at most ``level``; nothing is interpolated."""
    return float(curve.tar[curve.far <= level * (1 + 1e-9)].max())


def equal_error_rate(curve: RocCurve) -> float:
    """Return where FAR and 1 - TAR are equal, on the straight line between the two points around it."""
    gap = curve.far - (1 - curve.tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(curve.far[before] + share * (curve.far[after] - curve.far[before]))


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the threshold with the best mean of TAR and 1 - FAR, half way to the next lower score.

    Both kinds of pairs count half, however many there are; in LFW's folds they are as many.
    """
    curve = roc_curve(scores, same)
    best = 1 + int(np.argmax((curve.tar - curve.far)[1:]))
    return float(curve.thresholds[best : best + 2].mean())


def fold_decisions(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return bool (P,): whether each pair is decided rightly by the threshold that is best on the other folds."""
    correct = np.empty(len(scores), bool)
    for number in np.unique(fold):
        held = fold == number
        correct[held] = (scores[held] >= best_threshold(scores[~held], same[~held])) == same[held]
    return correct


def accuracy(correct: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the share of pairs decided rightly, those of one person and those of different people half each."""
    return float(
        np.mean([np.average(correct[k], weights=None if weights is None else weights[k]) for k in (same, ~same)])
    )


def rank_one(embeddings: np.ndarray, identities: np.ndarray, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """Look pictures up in a gallery by the highest cosine.

    Args:
        embeddings: float (N, E), of length 1.
        identities: int (N,), who is shown.
        gallery: pictures of each person that are known, the first in their order; the others are looked up.

    Returns:
        Rows int (Q,) of the pictures that were looked up, and whether the nearest one shows the same person (Q,).
    """
    rank = np.empty(len(identities), int)  # of a picture among those of its person
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
    blocks = np.arange(65536, len(pairs.first), 65536)  # all at once would copy every embedding many times
    sides = zip(np.split(pairs.first, blocks), np.split(pairs.second, blocks), strict=True)
    return np.concatenate([np.einsum("pe,pe->p", embeddings[left], embeddings[right]) for left, right in sides])


def compare(embeddings: np.ndarray, identities: np.ndarray, pairs: Pairs, gallery: int) -> Comparisons:
    """Compare the pictures of pairs, and look pictures up in a gallery: see ``rank_one`` for the arguments."""
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
    """Return the metrics for which there are too few images, with the reason."""
    impostors = int((~comparisons.same).sum())
    reasons = {
        name: f"needs {round(1 / level):,} pairs of different people; there are {impostors:,}"
        for name, level in FAR_LEVELS.items()
        if impostors * level * (1 + 1e-9) < 1
    }
    if not len(comparisons.correct):
        reasons["accuracy"] = f"needs {NUM_FOLDS} pairs of one person and {NUM_FOLDS} of different people"
    if not len(comparisons.hits):
        reasons["rank1"] = "needs people with more pictures than the gallery takes of each"
    return reasons


def verification_metrics(comparisons: Comparisons, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return ``auc``, ``eer``, TAR at ``FAR_LEVELS``, ``accuracy`` over folds and ``rank1``, without missing ones.

    Args:
        comparisons: of pairs and with the gallery.
        weights: float (K,), how often each person counts; None for once.
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
    """Return 95 % intervals of the figures by a bootstrap over people; {} where there are fewer than three.

    Each replicate draws K of the K people; pairs of one person count as often as that person was drawn, pairs of two
    as the product. Pairs share people, so that drawing pairs would make the intervals too narrow. The thresholds of
    the folds and the gallery stay.
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
