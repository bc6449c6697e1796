"""Intervals by hand, and the comparison from result files."""

import json
import re

import numpy as np
import pytest

from tests.report import made
from tl_jax.metrics import intervals
from tl_jax.report import plots

pytestmark = pytest.mark.fast


def test_interval_by_hand():
    mean, half = plots.t_interval([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # Student's t with two degrees of freedom
    assert plots.t_interval([0.5]) == (0.5, None)


@pytest.fixture
def workdir(tmp_path):
    for arm, values in {"ours": (0.9, 0.8, 0.85), "scratch": (0.7, 0.7, 0.6)}.items():
        for seed, value in enumerate(values):
            folder = tmp_path / arm / f"seed{seed}"
            folder.mkdir(parents=True)
            row = {"metrics": {"accuracy": value}, "seconds": {"train": 2.0, "total": 3.0}, "steps": 5}
            row |= {"examples": {"train": 50}, "examples_evaluated": 599, "parameters": {"trainable": 1, "frozen": 2}}
            (folder / "summary.json").write_text(json.dumps(row))
    return tmp_path


def test_arms_are_compared_seed_by_seed(workdir):
    summary = plots.summarize_comparison(workdir, ["ours", "scratch"], [0, 1, 2])
    assert summary["metrics"]["accuracy"] == pytest.approx(0.85)
    gain = summary["gain"]["scratch"]
    assert gain["mean"] == pytest.approx((0.2 + 0.1 + 0.25) / 3)
    assert gain["interval95"] == pytest.approx(plots.t_interval([0.2, 0.1, 0.25])[1])
    assert summary["seconds"] == {"train": 12.0, "total": 18.0}
    assert "ours over scratch: +18.3 ± 19.0 points" in plots.comparison_table(summary)


def test_the_table_of_a_smoke_run_says_that_it_measures_nothing(workdir):
    summary = plots.summarize_comparison(workdir, ["ours", "scratch"], [0, 1, 2])
    said = "smoke run without meaning"
    assert said not in plots.comparison_table(summary)
    assert said in plots.comparison_table(summary | {"smoke": True}).splitlines()[0]


def test_one_seed_has_no_interval_in_table_or_picture(workdir):
    summary = plots.summarize_comparison(workdir, ["ours", "scratch"], [0]) | {"config_name": "x"}
    assert "±" not in plots.comparison_table(summary).splitlines()[1]
    picture = plots.plot_comparison(summary, workdir / "p.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def compared(folder, values, count=153, pattern=None):
    """Write runs whose accuracies are ``values`` on one test set, and which examples they are right about."""
    for arm, row in values.items():
        for seed, value in enumerate(row):
            right = (np.arange(count) < round(value * count)).astype(int) if pattern is None else pattern[arm][seed]
            details = {"classes": ["a", "b"], "examples": count, "right": "".join(map(str, right)),
                       "confusion": [[0, 0, int(right.sum())], [0, 1, int(count - right.sum())]]}  # fmt: skip
            summary = {**made.summary(float(right.mean()), seed), "examples_evaluated": count}
            made.write(folder / arm / f"seed{seed}", seed, summary=summary, test_details=details)
    return plots.summarize_comparison(folder, list(values), list(range(len(row))))


def test_the_interval_holds_the_sampling_of_the_test_set(tmp_path):
    """Three seeds that agree to a point on 153 pictures say nothing surer than 153 pictures can."""
    summary = compared(tmp_path, {"ours": (0.863, 0.869, 0.869)})
    row = summary["arms"]["ours"]
    low, high = intervals.wilson_interval(133, 153)
    assert row["interval95"] < 0.01 < 0.05 < row["interval95_test"] == pytest.approx((high - low) / 2, abs=2e-3)
    assert row["interval95_both"] == pytest.approx(np.hypot(row["interval95"], row["interval95_test"]))
    assert re.search(r"86\.7 ± 0\.9 % over seeds, ± 5\.[45] with test-set sampling", plots.comparison_table(summary))


def test_one_seed_has_the_interval_of_the_test_set_alone(tmp_path):
    summary = compared(tmp_path, {"ours": (0.863,)})
    row = summary["arms"]["ours"]
    assert row["interval95"] is row["interval95_both"] is None
    assert "86.3 % ± 5.5 by test-set sampling" in plots.comparison_table(summary)


def test_the_interval_with_the_test_set_covers_the_truth_and_the_one_over_seeds_does_not(tmp_path):
    """Runs that are right about each example by its own chance, drawn anew: 95 % intervals hold the mean chance."""
    rng, held = np.random.default_rng(0), {"interval95": 0, "interval95_both": 0}
    for trial in range(100):
        hard = rng.random(120) < 0.2
        chances = np.where(hard, 0.1, 0.95)
        pattern = {"ours": (rng.random((3, 120)) < chances).astype(int)}
        row = compared(tmp_path / str(trial), {"ours": (0, 0, 0)}, 120, pattern)["arms"]["ours"]
        for name in held:
            held[name] += abs(row["mean"] - (0.2 * 0.1 + 0.8 * 0.95)) <= row[name]
    assert held["interval95_both"] >= 90 > held["interval95"]


def test_a_gain_is_paired_by_test_example(tmp_path):
    """Two arms with nearly the same mistakes differ more surely than their own intervals say."""
    base = np.arange(200) < 160
    pattern = {"ours": [base | (np.arange(200) == 199)] * 2, "scratch": [base & (np.arange(200) > 2)] * 2}
    pattern = {arm: [row.astype(int) for row in rows] for arm, rows in pattern.items()}
    summary = compared(tmp_path, {"ours": (0, 0), "scratch": (0, 0)}, 200, pattern)
    gain = summary["gain"]["scratch"]
    # four examples in favour, none against, half of one added to each cell: (4 + 1) / 202 - (4 / 202)^2
    assert gain["interval95_test"] == pytest.approx(1.96 * np.sqrt((5 / 202 - (4 / 202) ** 2) / 202), rel=1e-3)
    assert gain["interval95_test"] < summary["arms"]["ours"]["interval95_test"] / 2
    assert "ours over scratch: +2.0 ± 0.0 points over seeds, ± 2.2 with test-set" in plots.comparison_table(summary)


def test_arms_on_other_test_sets_are_not_paired_by_example(tmp_path):
    compared(tmp_path, {"ours": (0.9, 0.8)}, 100)
    compared(tmp_path, {"scratch": (0.7, 0.6)}, 90)
    summary = plots.summarize_comparison(tmp_path, ["ours", "scratch"], [0, 1])
    assert summary["gain"]["scratch"]["interval95_test"] is summary["gain"]["scratch"]["interval95_both"] is None
    assert "with test-set sampling" not in plots.comparison_table(summary).splitlines()[-1]


def test_a_table_says_when_the_test_set_is_not_in_it(workdir):
    summary = plots.summarize_comparison(workdir, ["ours", "scratch"], [0, 1, 2])
    assert "without test-set sampling" in plots.comparison_table(summary)


def test_a_metric_with_an_interval_of_its_own_has_both(tmp_path):
    for seed, value in enumerate((0.91, 0.92)):
        summary = made.summary(0.9, seed)
        summary["metrics"]["auc"], summary["intervals"] = value, {"auc": [0.85, 0.95], "over": "40 groups"}
        made.write(tmp_path / "ours" / f"seed{seed}", seed, summary=summary)
    row = plots.summarize_comparison(tmp_path, ["ours"], [0, 1], "auc")["arms"]["ours"]
    assert row["interval95_test"] == pytest.approx(0.05)


def test_rates_that_are_equal_share_a_mark():
    marks = plots.group_marks({"steepest fall": 1.4e-3, "lowest loss": 7.1e-2, "suggested": 1.4e-3})
    assert marks == {"1.4e-03: steepest fall, suggested": 1.4e-3, "7.1e-02: lowest loss": 7.1e-2}


def test_intervals_that_are_no_evidence_are_said(tmp_path):
    two = {"seeds": [0, 1], "arms": {"probe": {"values": [0.9, 0.9]}, "lora": {"values": [0.8, 0.9]}}}
    notes = intervals.seed_notes(two)
    assert len(notes) == 2 and "Two seeds" in notes[0] and "All seeds gave probe the same result" in notes[1]
    three = {"seeds": [0, 1, 2], "arms": {"lora": {"values": [0.8, 0.9, 0.9]}}}
    one = {"seeds": [0], "arms": {"lora": {"values": [0.8]}}}
    assert not intervals.seed_notes(three) and not intervals.seed_notes(one)
