"""SFDA against Fisher's axes by a generalised eigenvalue problem, as its paper has it, and a value by hand."""

import numpy as np
import pytest
import scipy.linalg

from tests.transferability.inputs import CASES, gapped
from tl_jax.transferability import sfda

pytestmark = pytest.mark.fast


def softmax(scores):
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def discriminants(x, y, shrinkage=None):
    """Return p(c|x) (N, K) for regularised Fisher discriminants, and the shrinkage."""
    classes, d = np.unique(y), x.shape[1]
    shares = np.array([(y == c).mean() for c in classes])
    means = np.stack([x[y == c].mean(0) for c in classes])
    within = sum(q * np.atleast_2d(np.cov(x[y == c].T, bias=True)) for q, c in zip(shares, classes, strict=True))
    if shrinkage is None:
        shrinkage = max(np.exp(-5 * np.linalg.eigvalsh(within)[-1]), 1e-10)

    def shrunk(covariance):
        return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)

    between = shrunk(np.atleast_2d(np.cov(x.T, bias=True))) - shrunk(within)
    axes = scipy.linalg.eigh(between, shrunk(within))[1]
    projected, centres = x @ axes, means @ axes
    return softmax(projected @ centres.T - 0.5 * (centres**2).sum(1) + np.log(shares)), shrinkage


def literal(x, y, log):
    _, y = np.unique(y, return_inverse=True)
    p, shrinkage = discriminants(x, y)
    means = np.stack([x[y == c].mean(0) for c in range(y.max() + 1)])
    mixed = np.empty_like(x)
    for i, c in enumerate(y):
        t = softmax(p[i : i + 1])[0, c]
        mixed[i] = t * x[i] + (1 - t) * np.delete(means, c, 0).mean(0)
    own = discriminants(mixed, y, shrinkage)[0][np.arange(len(y)), y]
    return np.log(own).mean() if log else own.mean()


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.1])  # shrinkages from next to nothing to a half and more
@pytest.mark.parametrize("name", ["random", "separable", "tiny", "rank deficient", "uneven"])
def test_it_is_the_public_codes(name, scale):
    x, y = scale * CASES[name][0], CASES[name][1]
    if scale == 1.0 and name in ("tiny", "uneven", "rank deficient"):
        pytest.skip("a shrinkage of 1e-10 leaves the literal version without digits")
    assert sfda(x, y) == pytest.approx(literal(x, y, False), rel=1e-5)
    assert sfda(x, y, log=True) == pytest.approx(literal(x, y, True), rel=1e-5, abs=1e-9)
    assert sfda(x, gapped(y)) == sfda(x, y)


def test_by_hand():
    # S_w = 1 about -2 and 2, which shrinking leaves at one feature; the discriminants differ by 4 x.
    x, y = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    odds = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    t = np.array([odds(2 * odds(4 * z) - 1) for z in (3, 1)])  # of the outer and the inner example of a class
    mixed = t * [3, 1] - (1 - t) * 2
    mean, variance = mixed.mean(), mixed.var()
    assert sfda(x, y) == pytest.approx(odds(2 * mean * mixed / variance).mean(), rel=1e-9)


def test_classes_far_apart_are_told_apart():
    x, y = CASES["separable"]
    assert sfda(10 * np.eye(3)[y] + 0.1 * x[:, :3], y) > 0.999 > 0.7 > sfda(CASES["random"][0], CASES["random"][1])


def test_one_example_each_is_finite():
    for name in ("one example each", "one example each, tiny"):
        assert 0 <= sfda(*CASES[name]) <= 1
