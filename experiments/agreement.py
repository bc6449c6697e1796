"""How well scores rank sources by what they turned out to be worth: rank correlations, intervals, a paired test.

A group is what one would choose within: the sources on one target with one number of examples. Correlations are taken
within groups and averaged over them, since no score is meant to compare targets. Intervals resample the pairs of source
and target within their groups.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 1000


class Group(NamedTuple):
    """Sources on one target: gains (S,), and each score's values (S,)."""

    gains: np.ndarray
    scores: Mapping[str, np.ndarray]


class Agreement(NamedTuple):
    """What a score has to do with gains.

    Attributes:
        score: its name.
        tau: weighted Kendall rank correlation, mean over groups.
        low, high: 95 % interval of tau.
        spearman: Spearman's rank correlation, mean over groups.
        behind: mean by which tau is below that of the best score, paired.
        p: two-sided bootstrap p-value of that difference; 1 for the best.
        needed: pairs of source and target it would take to tell the two apart with a power of 0.8.
    """

    score: str
    tau: float
    low: float
    high: float
    spearman: float
    behind: float
    p: float
    needed: float


def agreements(groups: Sequence[Group], seed: int = 0, resamples: int = RESAMPLES) -> list[Agreement]:
    """Return what each score has to do with gains, best first, those that rank nothing last and with NaN.

    All are judged on the same pairs, in the same groups: where a score is the same for all sources of a group, as the
    H-score of fewer examples than features is, it ranks nothing there and counts as 0.
    """
    names = list(groups[0].scores)
    rng = np.random.default_rng(seed)
    pairs = sum(len(group.gains) for group in groups)
    tau = {name: _mean(groups, name, _weighted) for name in names}
    ranks = {name for name in names if any(np.ptp(group.scores[name]) for group in groups)}
    order = sorted((name for name in names if name in ranks and np.isfinite(tau[name])), key=lambda name: -tau[name])
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        chosen = [rng.integers(0, len(group.gains), len(group.gains)) for group in groups]
        some = [
            Group(group.gains[rows], {name: values[rows] for name, values in group.scores.items()})
            for group, rows in zip(groups, chosen, strict=True)
        ]
        for name in names:
            drawn[name].append(_mean(some, name, _weighted))
    found = []
    for name in order:
        low, high = np.nanquantile(drawn[name], (0.025, 0.975))
        apart = np.asarray(drawn[order[0]]) - np.asarray(drawn[name])
        behind, spread = tau[order[0]] - tau[name], float(np.nanstd(apart))
        p = min(1.0, 2 * float(np.mean(apart <= 0))) if name != order[0] else 1.0
        needed = pairs * (2.8 * spread / behind) ** 2 if behind > 0 else np.inf  # 2.8 = 1.96 + 0.84
        spearman = _mean(groups, name, _spearman)
        found.append(Agreement(name, tau[name], float(low), float(high), spearman, behind, p, needed))
    blank = (np.nan,) * 6
    return found + [Agreement(name, *blank, np.inf) for name in names if name not in order]


def _mean(groups: Sequence[Group], name: str, measure) -> float:
    def one(group: Group) -> float:
        if not np.ptp(group.gains):
            return np.nan  # nothing to rank, for any score
        return measure(group.scores[name], group.gains) if np.ptp(group.scores[name]) else 0.0

    with warnings.catch_warnings():  # a resample of nothing but equal gains has no correlation
        warnings.simplefilter("ignore")
        return float(np.nanmean([one(group) for group in groups]))


def _weighted(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.weightedtau(a, b).statistic)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.spearmanr(a, b).statistic)
