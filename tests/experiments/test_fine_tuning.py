"""The studies of fine-tuning: intervals, areas and targets, on values that can be worked out."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.fine_tuning import ct_slices, report, targets


def test_areas_are_scikit_learns_and_whole_groups_are_drawn():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 200).astype(np.int32), rng.integers(0, 20, 200).astype(str)
    raw, scores = rng.normal(size=200) + labels, rng.uniform(size=200) / 2 + labels / 2
    slices = ct_slices.Slices([""] * 200, labels, groups)
    found, alone = (ct_slices.compare(scores, raw, slices._replace(groups=g)) for g in (groups, np.arange(200)))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores)) and found["auc"] == 1.0
    assert found["over_pixels"] == pytest.approx(1 - roc_auc_score(labels, raw))
    assert found["gain_low"] < found["over_pixels"] < found["gain_high"]
    same = ct_slices.compare(raw, raw, slices)
    assert same["over_pixels"] == same["gain_low"] == same["gain_high"] == 0
    copies = ct_slices.Slices([""] * 800, labels.repeat(4), np.arange(200).repeat(4))
    copied = ct_slices.compare(scores.repeat(4), raw.repeat(4), copies)  # which are no further slices
    assert copied["gain_high"] - copied["gain_low"] == pytest.approx(alone["gain_high"] - alone["gain_low"], rel=0.01)


def test_an_interval_counts_targets_and_not_cells():
    """Ten seeds of two targets that disagree say little of others."""
    values, names = [1.0] * 10 + [3.0] * 10, ["a"] * 10 + ["b"] * 10
    low, high = report.two_way_interval(values, names, list(map(str, range(10))) * 2)
    assert (low, high) == (1.0, 3.0)
    low, high = report.two_way_interval(values, list(map(str, range(20))), ["0"] * 20)
    assert 1.4 < low < 2 < high < 2.6


def test_so_many_of_each_class_are_drawn():
    labels = np.array(["a"] * 50 + ["b"] * 3)
    rows = targets._draw_rows(labels, 5, np.random.default_rng(0))
    assert (labels[rows] == "a").sum() == 5 and (labels[rows] == "b").sum() == 3
    assert (np.diff(rows) > 0).all()


def test_the_gap_is_that_of_training_and_the_gain_that_of_pairs():
    def row(method, seed, test, train):
        place = {"target": "a", "network": "n", "per_class": "5", "seed": seed}
        return {**place, "method": method, "accuracy": str(test), "train_accuracy": train}

    rows = [row("fine_tune", "0", 0.5, "1"), row("mixup", "0", 0.6, "0.9"), row("mixup", "1", 0.9, "0.9")]
    table = report.overfitting_table([*rows, row("raw", "0", 0.4, "")]).splitlines()
    assert "| 5 | mixup | 1 | 90.0 | 60.0 | 30.0 | +10.0 | - |" in table  # seed 1 has no pair
    assert not any("raw" in line for line in table) and report.overfitting_table(rows[1:]) == ""
