"""H-scores against explicit covariances, scikit-learn's shrinkage, and values by hand."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from tests.transferability.inputs import CASES, draw, gapped
from tl_jax.transferability import h_score, regularized_h_score

pytestmark = pytest.mark.fast


def means_of_classes(x, y):
    """Return the features with each row replaced by its class mean."""
    return np.stack([x[y == c].mean(0) for c in y])


def literal(x, y):
    inverse = np.linalg.pinv(np.cov(x, rowvar=False), rcond=1e-12, hermitian=True)
    return np.trace(inverse @ np.cov(means_of_classes(x, y), rowvar=False))


def literal_regularized(x, y):
    fit = LedoitWolf().fit(x)
    return (1 - fit.shrinkage_) * np.trace(
        np.linalg.pinv(fit.covariance_, rcond=1e-12, hermitian=True) @ np.cov(means_of_classes(x, y), rowvar=False)
    )


@pytest.mark.parametrize("name", CASES)
def test_they_are_the_papers_traces(name):
    x, y = CASES[name]
    assert h_score(x, y) == pytest.approx(literal(x, y), rel=1e-5)
    assert h_score(x, gapped(y)) == h_score(x, y)
    assert regularized_h_score(x, y) == pytest.approx(literal_regularized(x, y), rel=1e-5)
    assert regularized_h_score(x, gapped(y)) == regularized_h_score(x, y)


def test_by_hand():
    # Class means 1 and 5 about 3: 4 * 4 between, of 9 + 1 + 1 + 9 in all. One feature leaves nothing to shrink, and
    # (16 / 3) / (20 / 4) are the covariances.
    x, y = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    assert h_score(x, y) == pytest.approx(16 / 20, rel=1e-12)
    assert regularized_h_score(x, y) == pytest.approx(16 / 15, rel=1e-12)


def test_linear_maps_change_the_h_score_in_nothing():
    x, y = CASES["random"]
    assert h_score(x @ draw(12, 12, 2)[0] + 7, y) == pytest.approx(h_score(x, y), rel=1e-9)
    assert h_score(x * np.logspace(-4, 4, 12), y) == pytest.approx(h_score(x, y), rel=1e-9)


def test_what_does_not_vary_has_none():
    x, y = np.full((6, 3), 0.1), np.arange(6) % 2
    assert h_score(x, y) == 0 and regularized_h_score(x, y) == 0


def test_two_examples_leave_nothing_to_shrink():
    x, y = CASES["tiny"][0][:2], np.array([0, 1])
    assert h_score(x, y) == pytest.approx(1, rel=1e-9)
    assert regularized_h_score(x, y) == pytest.approx(literal_regularized(x, y), rel=1e-5)
