"""GBC against a loop over pairs, and a value by hand."""

import numpy as np
import pytest

from tests.transferability.inputs import CASES, gapped
from tl_jax.transferability import gbc

pytestmark = pytest.mark.fast


def literal(x, y):
    total = 0.0
    for a in np.unique(y):
        for b in np.unique(y):
            if a == b:
                continue
            m, n = x[y == a].mean(0), x[y == b].mean(0)
            v, w = np.maximum(x[y == a].var(0), 1e-4), np.maximum(x[y == b].var(0), 1e-4)
            middle = (v + w) / 2
            distance = ((m - n) ** 2 / middle).sum() / 8 + 0.5 * np.log(middle / np.sqrt(v * w)).sum()
            total += np.exp(-distance)
    return -total


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_papers_sum(name):
    x, y = CASES[name]
    assert gbc(x, y) == pytest.approx(literal(x, y), rel=1e-5)
    assert gbc(x, gapped(y)) == gbc(x, y)


def test_by_hand():
    # Variances 1, means 1 and 5: a distance of 16 / 8, for either order of the two.
    x, y = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    assert gbc(x, y) == pytest.approx(-2 * np.exp(-2), rel=1e-12)
    # Other shapes at one place: variances 1 and 9, 1/2 log(5 / 3).
    x = np.array([[-1.0], [1.0], [-3.0], [3.0]])
    assert gbc(x, y) == pytest.approx(-2 * np.sqrt(3 / 5), rel=1e-12)
