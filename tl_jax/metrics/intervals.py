"""95 % confidence intervals of test metrics: of one run, of a mean over seeds, and of a difference of means.

An interval over seeds covers only the randomness of training. All seeds share one test set, whose sampling dominates
the uncertainty with a few hundred test examples; the intervals here cover it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri  # scipy.stats takes 0.7 s to import

NUM_RESAMPLES = 1000  # resamples of a bootstrap
RESAMPLE_CHUNK = 50  # resamples per step
MAX_CLASSES = 200  # classes up to which confusions are resampled


def run_intervals(summary: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, tuple[float, float, str]]:
    """Return metric -> (low, high, method), for metrics with an interval.

    Args:
        summary: summary of the run.
        details: details of its test split, {} if missing.
    """
    intervals: dict[str, tuple[float, float, str]] = {}
    metrics, stored = summary.get("metrics", {}), summary.get("intervals", {})
    if "auc" in stored and stored["auc"][0] is not None:
        intervals["auc"] = (*stored["auc"], f"auc by a bootstrap over {stored['over']}")
    for name, ends in summary.get("intervals95", {}).items():
        intervals[name] = (*ends, "by a bootstrap over people")
    if "confusion" not in details or "sentences" in details:  # words of one sentence are not independent
        return intervals
    counts = np.asarray(details["confusion"]).reshape(-1, 3)
    hits, total = int(counts[counts[:, 0] == counts[:, 1], 2].sum()), int(counts[:, 2].sum())
    has_groups = "groups" in details
    if metrics.get("accuracy") is not None and has_groups and len(set(details["groups"])) > 1:
        ends, num_groups = grouped_interval(np.asarray(list(map(int, details["right"]))), np.asarray(details["groups"]))
        intervals["accuracy"] = (*ends, f"accuracy by a bootstrap over {num_groups:,} groups")
    elif metrics.get("accuracy") is not None and not has_groups:  # a single group gives no interval
        intervals["accuracy"] = (*wilson_interval(hits, total), f"accuracy by Wilson's score over {total:,} examples")
    others = [name for name in ("f1", "matthews") if metrics.get(name) is not None]
    if others and len(details["classes"]) <= MAX_CLASSES:
        resampled = _resample_confusions(counts, len(details["classes"]))
        for name in others:
            low, high = np.quantile(resampled[name], (0.025, 0.975)).tolist()
            intervals[name] = (low, high, f"{' and '.join(others)} by a bootstrap over examples")
    return intervals


def wilson_interval(hits: float, total: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927), within [0, 1]."""
    share, z = hits / total, float(ndtri(0.975))
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def grouped_interval(right: np.ndarray, groups: np.ndarray) -> tuple[tuple[float, float], int]:
    """Return the 95 % cluster bootstrap interval of the share of correct examples, and the number of groups G.

    Images of one patient are correlated, so groups are resampled (Field & Welsh 2007).

    Args:
        right: (N,) of 0 and 1.
        groups: (N,) group of each example, in [0, G).
    """
    hits, sizes = np.bincount(groups, right), np.bincount(groups)
    rng, shares = np.random.default_rng(0), []
    for _ in range(NUM_RESAMPLES // RESAMPLE_CHUNK):  # all at once would need 1 GB for 100,000 groups
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), RESAMPLE_CHUNK)
        shares.append((drawn @ hits) / (drawn @ sizes))
    low, high = np.quantile(np.concatenate(shares), (0.025, 0.975)).tolist()
    return (low, high), len(sizes)


def paired_interval(differences: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean difference of two predictors over test examples.

    Both are tested on the same examples, so the difficulty of an example cancels (Efron and Tibshirani 1993).

    Args:
        differences: (N,), for example of correctness or of the log loss.
        groups: (N,) groups to resample; None resamples examples.
    """
    return grouped_interval(differences, np.arange(len(differences)) if groups is None else groups)[0]


def _resample_confusions(counts: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Return macro F1 and Matthews correlation (R,) of resampled test splits, from confusions."""
    total = int(counts[:, 2].sum())
    resampled = np.random.default_rng(0).multinomial(total, counts[:, 2] / total, NUM_RESAMPLES)  # (R, C)
    true_class, predicted_class = (np.eye(num_classes)[counts[:, column]] for column in (0, 1))  # (C, K)
    hits = resampled @ (true_class * predicted_class)
    labelled, predicted = resampled @ true_class, resampled @ predicted_class
    f1 = 2 * hits / np.maximum(labelled + predicted, 1)
    occurring = ((labelled + predicted) > 0).sum(1)  # as in scikit-learn's macro average
    covariance = hits.sum(1) * total - (labelled * predicted).sum(1)
    spread = (total**2 - (predicted**2).sum(1)) * (total**2 - (labelled**2).sum(1))
    return {"f1": f1.sum(1) / occurring, "matthews": covariance / np.sqrt(np.maximum(spread, 1))}


NORMAL_QUANTILE = 1.959964  # 97.5 % quantile


class RunFiles(NamedTuple):
    """``summary.json`` and ``test_details.json`` of a run, {} for a missing one."""

    summary: Mapping[str, Any]
    details: Mapping[str, Any]


def mean_half_width(metric: str, runs: Sequence[RunFiles]) -> float | None:
    """Return the half-width of the 95 % interval of the mean over ``runs`` from sampling test examples only.

    For the accuracy it is Wilson's, with the effective number of examples from the variance of the share of correct
    seeds per example, or that of ``grouped_interval`` if examples have groups. For other metrics it is the mean over
    the intervals of the runs (see ``run_intervals``), None if one has none.
    """
    if metric == "accuracy" and _is_paired(runs):
        correct = [_correct(run) for run in runs]
        shares = np.mean(correct, 0)
        if (groups := runs[0].details.get("groups")) is not None:
            (low, high), _ = grouped_interval(shares, np.asarray(groups))
            return (high - low) / 2
        mean, variance = float(shares.mean()), float(shares.var())
        count = mean * (1 - mean) / variance * len(shares) if variance else len(shares)
        low, high = wilson_interval(mean * count, count)
        return (high - low) / 2
    intervals = [run_intervals(run.summary, run.details).get(metric) for run in runs]
    if not intervals or None in intervals:
        return None
    return float(np.mean([(bounds[1] - bounds[0]) / 2 for bounds in intervals if bounds]))


def difference_half_width(metric: str, ours: Sequence[RunFiles], theirs: Sequence[RunFiles]) -> float | None:
    """Return the half-width for the mean of ``ours`` minus that of ``theirs``, paired by test example.

    It is known for the accuracy, if every run has its correct examples. Half an example is added to each of the four
    cases of a pair (Agresti and Min 2005), so that two arms with the same mistakes have an interval. With groups, the
    gains within a group are summed (the cluster-robust variance, Liang and Zeger 1986).
    """
    if metric != "accuracy" or not _is_paired([*ours, *theirs]):
        return None
    correct = [_correct(run) for run in (*ours, *theirs)]
    gain = np.mean(correct[: len(ours)], 0) - np.mean(correct[len(ours) :], 0)
    if (groups := ours[0].details.get("groups")) is not None:
        by_group = np.bincount(np.asarray(groups), gain - gain.mean())
        return NORMAL_QUANTILE * float(np.sqrt((by_group**2).sum())) / len(gain)
    count = len(gain) + 2
    variance = (float((gain**2).sum()) + 1) / count - (float(gain.sum()) / count) ** 2
    return NORMAL_QUANTILE * math.sqrt(variance / count)


def combine_half_widths(seeds: float | None, test: float | None) -> float | None:
    """Return the half-width of an interval that covers both causes, None if one is unknown.

    Squares add, as variances of independent causes do. Their common part, the randomness of one seed on one example,
    counts twice, so the interval is slightly too wide rather than too narrow.
    """
    return None if seeds is None or test is None else math.hypot(seeds, test)


def _correct(run: RunFiles) -> np.ndarray:
    return np.frombuffer(run.details["right"].encode(), np.uint8) - ord("0")


def _is_paired(runs: Sequence[RunFiles]) -> bool:
    """Return whether every run has its correct examples, on test splits with the same number of each label."""
    if not runs or not all(run.details.get("right") for run in runs):
        return False
    rows = (np.asarray(run.details["confusion"]).reshape(-1, 3) for run in runs)
    label_counts = [np.bincount(row[:, 0], row[:, 2]).tolist() for row in rows]
    return all(counts == label_counts[0] for counts in label_counts)


def seed_notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what limits the intervals over seeds of a comparison; empty if nothing does."""
    notes, arms = [], summary["arms"]
    if len(summary["seeds"]) == 2:
        notes.append("Two seeds give intervals that are too wide to be of use; run three or more.")
    same = [name for name, row in arms.items() if len(row["values"]) > 1 and len(set(row["values"])) == 1]
    if same:
        notes.append(f"All seeds gave {', '.join(same)} the same result: an interval of zero width is no evidence.")
    return notes
