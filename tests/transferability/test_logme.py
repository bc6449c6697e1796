"""LogME against the density of its targets under an explicit covariance, maximised by SciPy, and values by hand."""

import numpy as np
import pytest
import scipy.optimize

from tests.transferability.inputs import CASES, draw, gapped
from tl_jax.transferability import logme
from tl_jax.transferability.logme import MIN_RESIDUAL

pytestmark = pytest.mark.fast


def literal(x, y):
    """Return the mean over classes of max log N(y; 0, F F' / alpha + I / beta) / n, with the covariance written out."""
    n, kernel = len(x), x @ x.T
    found = []
    for c in np.unique(y):
        target = (y == c).astype(float)

        def loss(logs, target=target):
            try:
                factor = np.linalg.cholesky(np.exp(-logs[0]) * kernel + np.exp(-logs[1]) * np.eye(n))
            except np.linalg.LinAlgError:
                return np.inf
            white = np.linalg.solve(factor, target)
            return 0.5 * (white @ white + n * np.log(2 * np.pi)) + np.log(np.diag(factor)).sum()

        bounds = [(-14, 26), (-10, 20)]
        starts = sorted(((a, b) for a in range(-8, 26, 3) for b in range(-2, 20, 3)), key=loss)[:8]
        options = {"xatol": 1e-8, "fatol": 1e-11, "maxiter": 4000, "maxfev": 4000}
        best = (scipy.optimize.minimize(loss, s, method="Nelder-Mead", bounds=bounds, options=options) for s in starts)
        found.append(-min(each.fun for each in best) / n)
    return np.mean(found)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_maximum_of_the_density(name):
    x, y = CASES[name]
    expected = literal(x, y)
    assert logme(x, y) == pytest.approx(expected, rel=1e-5)
    assert logme(x, gapped(y)) == logme(x, y)


def test_by_hand():
    # F = (1, 1, 1): with q = 1 + 3 beta / alpha, 1 / beta = (x / q + r) / 3, x and r the explained and other squares,
    # the best q is 2 x / r or 1: for y = (1, 1, 0), x = 4/3, r = 2/3, q = 4; for (0, 0, 1), x = 1/3 and q = 1.
    both = -1.5 * np.log(2 * np.pi / 3) - 1.5
    expected = (both - 0.5 * np.log(4) + both) / 2 / 3
    assert logme(np.ones((3, 1)), np.array([0, 0, 1])) == pytest.approx(expected, rel=1e-6)


def test_rotation_and_scale_change_nothing():
    x, y = CASES["random"]
    rotation = np.linalg.qr(draw(12, 12, 2)[0])[0]
    assert logme(1e3 * x @ rotation, y) == pytest.approx(logme(x, y), rel=1e-6)


def test_what_fits_exactly_is_finite_and_best():
    y = np.arange(20) % 2
    x = np.eye(2)[y]
    value = logme(x, y)
    assert np.isfinite(value) and value > logme(x + 1e-3 * draw(20, 2, 2)[0], y) > logme(draw(20, 2, 2)[0], y)
    # Each class has s = 10 twice, x = 10 once and 1e-9 left of its square. With t = alpha / beta near 0 the noise is
    # (t + 1e-9) / 20, which makes t = 1e-9 / 9 the best.
    ratio = 10 * MIN_RESIDUAL / 9
    noise = (ratio + 10 * MIN_RESIDUAL) / 20
    assert value == pytest.approx(-0.5 * np.log(2 * np.pi * noise) - 0.5 - np.log(10 / ratio) / 20, rel=1e-6)


def test_features_of_nothing_are_as_good_as_none():
    # 1 / beta is then the mean square of the target, 1 / 2.
    y = np.arange(6) % 2
    assert logme(np.zeros((6, 3)), y) == pytest.approx(-0.5 * np.log(2 * np.pi / 2) - 0.5, rel=1e-6)
