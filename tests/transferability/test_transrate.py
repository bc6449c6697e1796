"""TransRate against explicit log-determinants, and a value by hand."""

import numpy as np
import pytest

from tests.transferability.inputs import CASES, gapped
from tl_jax.transferability import transrate

pytestmark = pytest.mark.fast


def literal(x, y):
    z = x - x.mean(0)

    def rate(z):
        return 0.5 * np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * 1e-4))[1]

    return rate(z) - np.mean([rate(z[y == c]) for c in np.unique(y)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_papers_difference(name):
    x, y = CASES[name]
    assert transrate(x, y) == pytest.approx(literal(x, y), rel=1e-5)
    assert transrate(x, gapped(y)) == transrate(x, y)


def test_by_hand():
    # About the mean 3 the mean squares are 5 in all, 9 in the outer class and 1 in the inner.
    x, y = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 1, 1, 0])
    expected = 0.5 * np.log(50001) - 0.25 * (np.log(90001) + np.log(10001))
    assert transrate(x, y) == pytest.approx(expected, rel=1e-9)
