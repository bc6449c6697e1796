"""Probes against scikit-learn, and what they refuse."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tl_jax.distance import logistic_probe
from tl_jax.errors import UserError

pytestmark = pytest.mark.fast


def problem(classes, n=300, d=20, seed=0):
    """Return overlapping clusters whose features have very different scales and means."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d))
    scales = rng.uniform(0.2, 5.0, d)
    features = (centres[labels] + 1.5 * rng.normal(size=(n, d))) * scales + 3 * scales
    return features.astype(np.float32), labels


def objective(kernel, bias, x, y, c):
    """Return what both minimise, in double precision."""
    scores = x.astype(np.float64) @ kernel + bias
    scores -= scores.max(1, keepdims=True)
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
    return losses.sum() + (kernel**2).sum() / (2 * c)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_it_finds_what_scikit_learn_finds(classes, c):
    x, y = problem(classes)
    probe = logistic_probe(x, y, c=c, tolerance=1e-6)
    if classes == 2:  # scikit-learn has one vector there, of which ours are plus and minus a half
        reference = LogisticRegression(C=2 * c, max_iter=10_000, tol=1e-8).fit(x, y)
        kernel, bias = (np.concatenate([-v, v]) / 2 for v in (reference.coef_, reference.intercept_))
    else:
        reference = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(x, y)
        kernel, bias = reference.coef_, reference.intercept_
    best = objective(kernel.T, bias, x, y, c)
    ours = objective(np.asarray(probe.kernel, np.float64), np.asarray(probe.bias, np.float64), x, y, c)
    assert ours < 1.001 * best + 1e-3
    assert abs(probe.accuracy(x, y) - reference.score(x, y)) < 0.01


def test_it_separates_what_can_be_separated():
    x = np.concatenate([np.full((10, 3), -1.0), np.full((10, 3), 1.0)])
    y = np.repeat([0, 1], 10)
    assert logistic_probe(x, y).accuracy(x, y) == 1.0
    assert logistic_probe(np.concatenate([x, 0 * x], 1), y).accuracy(np.concatenate([x, 0 * x], 1), y) == 1.0


@pytest.mark.parametrize(
    "features,labels,message",
    [
        (np.zeros((4, 2)), np.zeros(3, int), r"features \(N, D\) and labels \(N,\), not \(4, 2\) and \(3,\)"),
        (np.zeros(4), np.zeros(4, int), r"not \(4,\)"),
        (np.full((4, 2), np.nan), np.arange(4), "not finite"),
        (np.zeros((4, 2)), np.zeros(4, int), "two classes or more"),
        (np.zeros((4, 2)), np.array([0, 1, -1, 1]), "labels from 0 on"),
    ],
)
def test_what_is_no_problem_is_refused(features, labels, message):
    with pytest.raises(UserError, match=message):
        logistic_probe(features, labels)
