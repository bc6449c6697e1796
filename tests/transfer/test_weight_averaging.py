"""Mixtures of weights: WiSE-FT and soups, on values worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.transfer.weight_averaging import greedy_soup, interpolate, uniform_soup
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def run(*values):
    return {"params": {"w": jnp.asarray(values, jnp.float32)}}


def test_a_mixture_lies_between_start_and_end():
    start, end = run(1.0, -2.0), run(3.0, 2.0)
    np.testing.assert_allclose(interpolate(start, end, 0.25)["params"]["w"], [1.5, -1.0])
    assert interpolate(start, end, 0.0) is start and interpolate(start, end, 1.0) is end


def test_a_uniform_soup_is_the_mean():
    np.testing.assert_allclose(uniform_soup([run(1.0), run(2.0), run(6.0)])["params"]["w"], [3.0])


def test_a_greedy_soup_keeps_only_what_does_not_harm():
    target = 3.0

    def score(variables):
        return -abs(float(variables["params"]["w"][0]) - target)

    # Alone: 2.5 is best, then 4, then 9. With 4 the mean is 3.25, better; with 9 it is 5.17, worse.
    soup, kept = greedy_soup([run(9.0), run(4.0), run(2.5)], score)
    assert kept == [2, 1]
    np.testing.assert_allclose(soup["params"]["w"], [3.25])


def test_runs_of_different_networks_are_refused():
    with pytest.raises(UserError, match="different leaves"):
        uniform_soup([run(1.0), run(1.0, 2.0)])
    with pytest.raises(UserError, match="at least one"):
        uniform_soup([])
