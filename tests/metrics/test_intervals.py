"""Intervals over groups of examples: equal to a slow form, wider than those over examples, and right by simulation."""

import numpy as np
import pytest

from tl_jax.metrics import intervals

pytestmark = pytest.mark.fast


def run_of(right, groups=None):
    right = np.asarray(right)
    confusion = [[0, 0, int(right.sum())], [0, 1, int((1 - right).sum())]]
    details = {"classes": ["a", "b"], "confusion": confusion, "right": "".join(map(str, right))}
    summary = {"metrics": {"accuracy": float(right.mean())}}
    return intervals.RunFiles(summary, details if groups is None else {**details, "groups": list(map(int, groups))})


def draw(rng, num_groups=40, size=5):
    """Examples that are mostly right or mostly wrong together."""
    shares = rng.beta(0.7, 0.3, num_groups)  # 0.7 on average
    return (rng.random((num_groups, size)) < shares[:, None]).astype(int).ravel(), np.arange(num_groups).repeat(size)


def test_whole_groups_are_drawn():
    right, groups = draw(np.random.default_rng(1), 6, 4)
    (low, high), count = intervals.grouped_interval(right, groups)
    rng, shares = np.random.default_rng(5), []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(0, 6, 6)])
        shares.append(right[rows].mean())
    assert count == 6 and (low, high) == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.06)


def test_an_interval_over_groups_holds_the_truth_and_one_over_examples_does_not():
    hits = {True: 0, False: 0}
    for seed in range(200):
        right, groups = draw(np.random.default_rng(seed))
        for grouped in hits:
            run = run_of(right, groups if grouped else None)
            low, high, _ = intervals.run_intervals(run.summary, run.details)["accuracy"]
            hits[grouped] += low <= 0.7 <= high
    assert hits[True] >= 180 and hits[False] < 160  # of 200, nominal 190


def test_intervals_of_means_and_of_differences_know_groups():
    rng = np.random.default_rng(0)
    (ours, groups), (theirs, _) = draw(rng), draw(rng)
    grouped, single = ([run_of(ours, g), run_of(theirs, g)] for g in (groups, None))
    for of in (lambda a, b: intervals.mean_half_width("accuracy", [a, b]),
               lambda a, b: intervals.difference_half_width("accuracy", [a], [b])):  # fmt: skip
        assert of(*grouped) > 1.3 * of(*single)
    _, _, words = intervals.run_intervals(grouped[0].summary, grouped[0].details)["accuracy"]
    assert words == "accuracy by a bootstrap over 40 groups"
