"""How far a mean over seeds, or the difference of two, might lie on another test set of the same kind and size.

An interval over seeds holds what training draws at random. All seeds share one test set, whose own sampling it leaves
out, and with a few hundred test examples that is the larger part.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax.report import intervals

NORMAL = 1.959964  # the quantile of 97.5 %


class Run(NamedTuple):
    """The files ``summary.json`` and ``test_details.json`` of a run, {} for one that was not written."""

    summary: Mapping[str, Any]
    details: Mapping[str, Any]


def of_mean(metric: str, runs: Sequence[Run]) -> float | None:
    """Return half the width of the 95 % interval of the mean over ``runs`` by sampling of test examples alone.

    For the accuracy it is Wilson's, with as many examples as the shares of seeds that are right about each of them vary
    like. For other metrics it is the mean of what the runs' own intervals have (see ``intervals.of_run``), None if one
    has none.
    """
    if metric == "accuracy" and _paired(runs):
        right = [_right(run) for run in runs]
        shares = np.mean(right, 0)
        mean, variance = float(shares.mean()), float(shares.var())
        count = mean * (1 - mean) / variance * len(shares) if variance else len(shares)
        low, high = intervals.wilson(mean * count, count)
        return (high - low) / 2
    ends = [intervals.of_run(run.summary, run.details).get(metric) for run in runs]
    if not ends or None in ends:
        return None
    return float(np.mean([(end[1] - end[0]) / 2 for end in ends if end]))


def of_difference(metric: str, ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
    """Return the same of the mean of ``ours`` minus that of ``theirs``, paired by test example.

    It is known for the accuracy, if every run says which examples it is right about. Half an example is added to each
    of the four cases of a pair (Agresti and Min 2005), so that two arms with the same mistakes have an interval too.
    """
    if metric != "accuracy" or not _paired([*ours, *theirs]):
        return None
    right = [_right(run) for run in (*ours, *theirs)]
    gain = np.mean(right[: len(ours)], 0) - np.mean(right[len(ours) :], 0)
    count = len(gain) + 2
    variance = (float((gain**2).sum()) + 1) / count - (float(gain.sum()) / count) ** 2
    return NORMAL * math.sqrt(variance / count)


def together(seeds: float | None, test: float | None) -> float | None:
    """Return half the width of the interval that holds both, None if one of them is unknown.

    Squares add up, as variances of independent causes do. What the two have in common, the chance by which one seed is
    right about one example, counts twice, so that the interval is a little too wide rather than too narrow.
    """
    return None if seeds is None or test is None else math.hypot(seeds, test)


def _right(run: Run) -> np.ndarray:
    return np.frombuffer(run.details["right"].encode(), np.uint8) - ord("0")


def _paired(runs: Sequence[Run]) -> bool:
    """Whether every run says which examples it is right about, of test sets with the same number of each label."""
    if not runs or not all(run.details.get("right") for run in runs):
        return False
    rows = (np.asarray(run.details["confusion"]).reshape(-1, 3) for run in runs)
    labels = [np.bincount(row[:, 0], row[:, 2]).tolist() for row in rows]
    return all(each == labels[0] for each in labels)
