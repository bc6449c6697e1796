"""How well embeddings tell people apart: pairs of pictures verified, pictures identified. NumPy only.

A pair is accepted where its cosine is at least a threshold: TAR is the share of pairs of one person that are accepted,
FAR that of pairs of different people.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tl_jax.utils.errors import UserError

FOLDS = 10  # of the accuracy, as in LFW (Huang et al. 2007)
MOST_PAIRS = 500_000  # of different people; where there are more, so many are drawn
LEVELS = {"tar_at_1e-2": 1e-2, "tar_at_1e-3": 1e-3}  # FAR at which TAR is given


class Pairs(NamedTuple):
    """P pairs of N pictures: rows ``first`` and ``second`` int (P,), ``same`` bool (P,), ``fold`` int (P,)."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class Curve(NamedTuple):
    """ROC, each (T,): ``far`` and ``tar`` rise from 0 to 1 while the threshold falls from infinity."""

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


class Trial(NamedTuple):
    """What all figures of N pictures of K people come from; pairs in the order of falling cosine.

    Attributes:
        people: K.
        owners: int (2, P), whose pictures a pair has, in [0, K).
        scores: cosines float (P,).
        same: bool (P,).
        right: bool (P,), whether the threshold of the other folds decides a pair rightly; empty without folds.
        probes: int (Q,), whose picture was looked up in the gallery.
        hits: bool (Q,), whether that person was found.
    """

    people: int
    owners: np.ndarray
    scores: np.ndarray
    same: np.ndarray
    right: np.ndarray
    probes: np.ndarray
    hits: np.ndarray


def every_pair(people: np.ndarray, seed: int = 0, most: int = MOST_PAIRS) -> Pairs:
    """Return all pairs of N pictures, or of those of different people ``most`` drawn by ``seed``.

    ``people`` int (N,) says who is shown; ``seed`` also deals the folds.
    """
    n, rng = len(people), np.random.default_rng((seed, 4))
    if n * (n - 1) // 2 <= 4 * most:
        first, second = np.triu_indices(n, 1)
        same = people[first] == people[second]
        different = np.flatnonzero(~same)
        if len(different) > most:
            different = rng.choice(different, most, replace=False)
        kept = np.sort(np.concatenate([np.flatnonzero(same), different]))
        first, second, same = first[kept], second[kept], same[kept]
    else:
        rows = [np.flatnonzero(people == person) for person in np.unique(people)]
        alike = np.concatenate([row[np.stack(np.triu_indices(len(row), 1))] for row in rows], axis=1)
        drawn = np.sort(rng.integers(n, size=(2, 2 * most)), axis=0)
        drawn = np.unique(drawn[:, people[drawn[0]] != people[drawn[1]]], axis=1)
        drawn = drawn[:, rng.permutation(drawn.shape[1])[:most]]
        first, second = np.concatenate([alike, drawn], axis=1)
        same = np.arange(len(first)) < alike.shape[1]
    return Pairs(first, second, same, dealt(same, rng))


def dealt(same: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return folds int (P,), dealt at random to the pairs of one person and to those of different people."""
    fold = np.empty(len(same), int)
    for kind in (same, ~same):
        fold[kind] = rng.permutation(int(kind.sum())) % FOLDS
    return fold


def roc(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> Curve:
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
    return Curve(far, tar, np.append(np.inf, falling[ends]))


def auc(curve: Curve) -> float:
    """Return the area under the ROC curve: the chance that a pair of one person is the more alike, ties half."""
    return float(np.trapezoid(curve.tar, curve.far))


def tar_at_far(curve: Curve, level: float) -> float:
    """Return the highest TAR of a threshold whose FAR is at most ``level``; nothing is interpolated."""
    return float(curve.tar[curve.far <= level * (1 + 1e-9)].max())


def equal_error_rate(curve: Curve) -> float:
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
    curve = roc(scores, same)
    best = 1 + int(np.argmax((curve.tar - curve.far)[1:]))
    return float(curve.thresholds[best : best + 2].mean())


def decided(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return bool (P,): whether each pair is decided rightly by the threshold that is best on the other folds."""
    right = np.empty(len(scores), bool)
    for number in np.unique(fold):
        held = fold == number
        right[held] = (scores[held] >= best_threshold(scores[~held], same[~held])) == same[held]
    return right


def accuracy(right: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the share of pairs decided rightly, those of one person and those of different people half each."""
    return float(
        np.mean([np.average(right[k], weights=None if weights is None else weights[k]) for k in (same, ~same)])
    )


def rank_one(embeddings: np.ndarray, people: np.ndarray, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """Look pictures up in a gallery by the highest cosine.

    Args:
        embeddings: float (N, E), of length 1.
        people: int (N,), who is shown.
        gallery: pictures of each person that are known, the first in their order; the others are looked up.

    Returns:
        Rows int (Q,) of the pictures that were looked up, and whether the nearest one shows the same person (Q,).
    """
    place = np.empty(len(people), int)  # of a picture among those of its person
    for person in np.unique(people):
        rows = np.flatnonzero(people == person)
        place[rows] = np.arange(len(rows))
    known, probes = np.flatnonzero(place < gallery), np.flatnonzero(place >= gallery)
    nearest = [(embeddings[probes[i : i + 1024]] @ embeddings[known].T).argmax(1) for i in range(0, len(probes), 1024)]
    found = known[np.concatenate(nearest)] if nearest else known[:0]
    return probes, people[found] == people[probes]


def cosines(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the cosines (P,) of pairs of embeddings (N, E) of length 1."""
    blocks = np.arange(65536, len(pairs.first), 65536)  # all at once would copy every embedding many times
    sides = zip(np.split(pairs.first, blocks), np.split(pairs.second, blocks), strict=True)
    return np.concatenate([np.einsum("pe,pe->p", embeddings[one], embeddings[other]) for one, other in sides])


def trial(embeddings: np.ndarray, people: np.ndarray, pairs: Pairs, gallery: int) -> Trial:
    """Compare the pictures of pairs, and look pictures up in a gallery: see ``rank_one`` for the arguments."""
    names, owner = np.unique(people, return_inverse=True)
    scores = cosines(embeddings, pairs)
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], pairs.same[order]
    enough = min(same.sum(), (~same).sum()) >= FOLDS
    right = decided(scores, same, pairs.fold[order]) if enough else np.zeros(0, bool)
    probes, hits = rank_one(embeddings, people, gallery)
    owners = np.stack([owner[pairs.first], owner[pairs.second]])[:, order]
    return Trial(len(names), owners, scores, same, right, owner[probes], hits)


def missing(found: Trial) -> dict[str, str]:
    """Return the figures that a trial is too small for, and why."""
    impostors = int((~found.same).sum())
    why = {
        name: f"needs {round(1 / level):,} pairs of different people; there are {impostors:,}"
        for name, level in LEVELS.items()
        if impostors * level * (1 + 1e-9) < 1
    }
    if not len(found.right):
        why["accuracy"] = f"needs {FOLDS} pairs of one person and {FOLDS} of different people"
    if not len(found.hits):
        why["rank1"] = "needs people with more pictures than the gallery takes of each"
    return why


def figures(found: Trial, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return ``auc``, ``eer``, TAR at ``LEVELS``, ``accuracy`` over folds and ``rank1``, but for what is ``missing``.

    Args:
        found: the trial.
        weights: float (K,), how often each person counts; None for once.
    """
    of_pairs = None
    if weights is not None:
        one, other = weights[found.owners]
        of_pairs = np.where(found.same, one, one * other)
    curve = roc(found.scores, found.same, of_pairs)
    values = {"auc": auc(curve), "eer": equal_error_rate(curve)}
    values |= {name: tar_at_far(curve, level) for name, level in LEVELS.items()}
    values |= {"accuracy": accuracy(found.right, found.same, of_pairs)} if len(found.right) else {}
    of_probes = None if weights is None else weights[found.probes]
    if len(found.hits) and (of_probes is None or of_probes.any()):
        values["rank1"] = float(np.average(found.hits, weights=of_probes))
    return {name: value for name, value in values.items() if name not in missing(found)}


def intervals(found: Trial, replicates: int = 500, seed: int = 0) -> Mapping[str, tuple[float, float]]:
    """Return 95 % intervals of the figures by a bootstrap over people; {} where there are fewer than three.

    Each replicate draws K of the K people; pairs of one person count as often as that person was drawn, pairs of two
    as the product. Pairs share people, so that drawing pairs would make the intervals too narrow. The thresholds of
    the folds and the gallery stay.
    """
    if found.people < 3:
        return {}
    rng, rows = np.random.default_rng((seed, 5)), []
    while len(rows) < replicates:
        weights = np.bincount(rng.integers(found.people, size=found.people), minlength=found.people).astype(float)
        one, other = weights[found.owners]
        if (one * found.same).any() and (one * other * ~found.same).any():
            rows.append(figures(found, weights))
    ends = {name: np.quantile([row[name] for row in rows if name in row], (0.025, 0.975)) for name in rows[0]}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
