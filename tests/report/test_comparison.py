"""Intervals by hand, and the comparison from result files."""

import json

import pytest

from tl_jax.report import comparison

pytestmark = pytest.mark.fast


def test_interval_by_hand():
    mean, half = comparison.interval([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # Student's t with two degrees of freedom
    assert comparison.interval([0.5]) == (0.5, None)


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
    summary = comparison.summarise(workdir, ["ours", "scratch"], [0, 1, 2])
    assert summary["metrics"]["accuracy"] == pytest.approx(0.85)
    gain = summary["gain"]["scratch"]
    assert gain["mean"] == pytest.approx((0.2 + 0.1 + 0.25) / 3)
    assert gain["interval95"] == pytest.approx(comparison.interval([0.2, 0.1, 0.25])[1])
    assert summary["seconds"] == {"train": 12.0, "total": 18.0}
    assert "ours over scratch: +18.3 ± 19.0 points" in comparison.table(summary)


def test_one_seed_has_no_interval_in_table_or_picture(workdir):
    summary = comparison.summarise(workdir, ["ours", "scratch"], [0]) | {"config_name": "x"}
    assert "±" not in comparison.table(summary).splitlines()[1]
    picture = comparison.draw(summary, workdir / "p.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
