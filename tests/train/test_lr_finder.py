"""The learning-rate range test: on curves of known shape, and on the tiny task."""

import numpy as np
import pytest

from tests.train import tiny
from tl_jax.train import lr_finder
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def curve(noise=0.0):
    """Flat at 2, falling by 1 around 1e-3, lowest near 1e-2, then rising."""
    rates = np.geomspace(1e-6, 1.0, 121)
    at = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-6 * (at + 3))) + np.where(at > -2, (at + 2) ** 2, 0.0)
    return rates, losses + noise * np.random.default_rng(0).normal(size=len(rates))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_steepest_fall_and_the_lowest_loss_are_found(noise):
    found = lr_finder.suggest_rates(*curve(noise))
    assert 5e-4 < found.steepest < 5e-3  # the running mean lags a little
    assert 5e-3 < found.lowest < 1e-1
    assert found.suggested == min(found.steepest, found.lowest / 10)


def test_smoothing_starts_at_the_first_loss_and_follows():
    smoothed = lr_finder.smooth(np.array([3.0, 3.0, 3.0, 1.0]))
    np.testing.assert_allclose(smoothed[:3], 3.0)
    keep = lr_finder.SMOOTHING
    np.testing.assert_allclose(smoothed[3], (3 * (keep + keep**2 + keep**3) + 1) / (1 + keep + keep**2 + keep**3))


def test_losses_below_zero_do_not_count_as_divergence():
    """SimSiam's loss is a negative cosine."""
    head, _ = tiny.plan()
    task = tiny.task()

    def loss(variables, batch, key):
        value, (stats, sums) = task.loss(variables, batch, key)
        total, count = sums["loss"]
        return value, (stats, {"loss": (total - 10 * count, count)})

    found = lr_finder.sweep(task.replace(loss=loss), head, 0, low=1e-4, high=1e-1, steps=20)
    assert len(found.rates) == 20 and found.losses.max() < 0


def test_a_loss_that_never_falls_is_an_error():
    rates, _ = curve()
    with pytest.raises(UserError, match="falls at no rate"):
        lr_finder.suggest_rates(rates, np.linspace(1.0, 2.0, len(rates)))


def test_the_sweep_ends_where_the_loss_diverges_and_leaves_frozen_leaves_alone():
    head, _ = tiny.plan()
    found = lr_finder.sweep(tiny.task(), head, 0, low=1e-5, high=1e6, steps=60)
    assert len(found.rates) < 60 and (np.diff(found.rates) > 0).all()
    assert found.rates[0] == pytest.approx(1e-5)
    assert found.smoothed[-1] > 2 * found.smoothed.min() or not np.isfinite(found.losses[-1])
    again = lr_finder.sweep(tiny.task(), head, 0, low=1e-5, high=1e6, steps=60)
    np.testing.assert_array_equal(found.losses, again.losses)
