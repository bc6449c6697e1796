"""Standard errors from halves: those of means are known, and of data drawn anew they are what is seen."""

import numpy as np
import pytest

from tl_jax import transferability
from tl_jax.transferability.report import standard_error
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def error(measure, *sides, count=4000):
    return standard_error(measure, sides, count, np.random.default_rng(1))


def test_of_a_mean_it_is_the_textbooks():
    x = np.random.default_rng(0).normal(size=101)  # an odd number, so halves are not quite halves
    one = np.zeros(101, int)
    assert error(lambda a: x[a].mean(), one) == pytest.approx(x.std(ddof=1) / 101**0.5, rel=0.04)
    both = error(lambda a, b: x[a].mean() - 2 * x[b].mean(), one, one)
    assert both == pytest.approx(5**0.5 * x.std(ddof=1) / 101**0.5, rel=0.04)


def test_classes_keep_their_shares():
    seen = []
    y = np.repeat([0, 1, 2], [10, 5, 1])
    error(lambda a: seen.append(np.bincount(y[a]).tolist()) or 0.0, y, count=3)
    assert seen == [[5, 3, 1]] * 3


@pytest.mark.slow
def test_of_a_score_it_is_what_new_data_show():
    rng = np.random.default_rng(2)
    y = np.repeat([0, 1], 40)

    def new():
        return rng.normal(size=(80, 3)) + y[:, None]

    scattered = np.std([transferability.sfda(new(), y) for _ in range(60)], ddof=1)
    guessed = []
    for _ in range(8):
        x = new()
        guessed.append(error(lambda a, x=x: transferability.sfda(x[a], y[a]), y, count=20))
    assert np.mean(guessed) == pytest.approx(scattered, rel=0.35)


def test_without_an_answer_it_is_nan():
    y = np.arange(5)
    assert np.isnan(error(lambda a: 1.0, y))  # one example a class: nothing to leave out
    assert np.isnan(error(lambda a: 1.0, np.zeros(4, int), count=1))

    def refuses(a):
        raise UserError("no")

    assert np.isnan(error(refuses, np.zeros(4, int)))
