"""Metrics of transfer against values worked by hand."""

import numpy as np
import pytest

from experiments.rl_transfer import report

pytestmark = pytest.mark.fast
SCRATCH, MINE = np.array([0.0, 10.0, 20.0, 30.0, 40.0]), np.array([20.0, 30.0, 40.0, 40.0, 40.0])


def test_metrics_by_hand():
    assert report.jump_start(MINE, SCRATCH) == 20
    assert report.asymptote(MINE) == 40
    assert report.asymptote(np.arange(10.0)) == 8.5  # the last fifth
    steps = [0, 100, 200, 300, 400]
    assert report.steps_to(SCRATCH, steps, 25.0) == 300 and report.steps_to(MINE, steps, 25.0) == 100
    assert report.steps_to(SCRATCH, steps, 50.0) == float("inf")
    assert report.area_ratio(MINE, SCRATCH, 0.0) == pytest.approx((20 / 2 + 30 + 40 + 40 + 20) / 80 - 1)
    assert report.area_ratio(SCRATCH - 100, SCRATCH - 100, -100.0) == 0  # negative rewards
    assert np.isnan(report.area_ratio(MINE, np.zeros(5), 0.0))  # scratch learns nothing: no ratio
