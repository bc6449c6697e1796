"""Probes against scikit-learn, and what they refuse."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from tl_jax.transferability import logistic_probe, ridge_probe
from tl_jax.utils.errors import UserError

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


@pytest.mark.slow
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


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("n,d", [(300, 20), (40, 90)])  # both Gram matrices
@pytest.mark.parametrize("c", [1e-4, 1.0, 1e4])
def test_ridge_is_scikit_learns(classes, n, d, c):
    x, y = problem(classes, n, d)
    probe = ridge_probe(x, y, c)
    reference = RidgeClassifier(alpha=1 / c).fit(x.astype(np.float64), y)
    kernel, bias = reference.coef_.reshape(-1, d), np.atleast_1d(reference.intercept_)
    if classes == 2:  # one vector there, of which ours are minus and plus
        kernel, bias = np.concatenate([-kernel, kernel]), np.concatenate([-bias, bias])
    np.testing.assert_allclose(probe.kernel, kernel.T, rtol=1e-4, atol=1e-5 * np.abs(kernel).max())
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(probe.predict(x), reference.predict(x.astype(np.float64)))


def test_ridge_by_hand():
    # Slope sum(x t) / (sum(x^2) + 1 / c) = 2 / (2 + 1) on centred x of -1 and 1.
    probe = ridge_probe(np.array([[4.0], [6.0]]), np.array([0, 1]))
    np.testing.assert_allclose(probe.kernel, [[-2 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(probe.bias, [10 / 3, -10 / 3], rtol=1e-6)


def test_ridge_keeps_its_head_far_from_zero_and_with_repeated_features():
    x, y = problem(3)
    near = ridge_probe(x, y)
    far = ridge_probe(x + np.float32(1000), y)
    np.testing.assert_allclose(far.kernel, near.kernel, atol=1e-3 * np.abs(near.kernel).max())
    twice = ridge_probe(np.concatenate([x, x], 1), y, c=1e6)
    assert twice.accuracy(np.concatenate([x, x], 1), y) == ridge_probe(x, y, c=2e6).accuracy(x, y)


def test_a_class_without_examples_is_never_predicted():
    x, y = problem(2)
    y = 2 * y
    assert set(np.unique(ridge_probe(x, y).predict(x))) <= {0, 2}


def test_ridge_says_when_nothing_decides():
    x, y = np.array([[-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]]), np.array([0, 1, 0, 1])
    np.testing.assert_allclose(ridge_probe(x, y, c=1e6).kernel, [[-0.5, 0.5], [-0.5, 0.5]], rtol=1e-5)
    with pytest.raises(UserError, match=r"c=1e\+30: too large for linearly dependent features; decrease it"):
        ridge_probe(x, y, c=1e30)


@pytest.mark.parametrize("probe", [logistic_probe, ridge_probe])
@pytest.mark.parametrize("c", [0.0, -1.0, float("nan")])
def test_a_strength_that_is_none_is_refused(probe, c):
    with pytest.raises(UserError, match=r"c=.*: out of range; it must be above 0"):
        probe(*problem(2), c=c)


@pytest.mark.parametrize("probe", [logistic_probe, ridge_probe])
@pytest.mark.parametrize(
    "features,labels,message",
    [
        (np.zeros((4, 2)), np.zeros(3, int), r"got features \(4, 2\) and labels \(3,\)"),
        (np.zeros(4), np.zeros(4, int), r"got features \(4,\)"),
        (np.zeros((0, 4)), np.zeros(0, int), r"got features \(0, 4\)"),
        (np.full((4, 2), np.nan), np.arange(4), "not finite"),
        (np.zeros((4, 2)), np.zeros(4, int), "two classes or more"),
        (np.zeros((4, 2)), np.ones(4, int), "two classes or more"),
        (np.zeros((4, 2)), np.array([0, 1, -1, 1]), "labels: -1 is negative"),
        (np.zeros((4, 2)), np.linspace(0, 1.99, 4), "labels: must be whole numbers, not 0.663"),
        (np.zeros((4, 2)), np.array(list("abab")), "labels: must be whole numbers, not <U1"),
        (
            np.zeros((4, 2)),
            np.array([0, 1, 0, 2.0**40]),
            "label 1099511627776 is too large, .* number the classes 0 to K - 1",
        ),
        (
            np.zeros((4, 2)),
            np.array([0, 1, 0, 10**9]),
            "label 1000000000 is too large, .* number the classes 0 to K - 1",
        ),
        (np.zeros((4, 2)) + 1j, np.array([0, 1, 0, 1]), "must be real numbers, not complex128"),
        (np.full((4, 2), 1e20), np.array([0, 1, 0, 1]), r"powers of values up to 1e\+20 overflow"),
    ],
)
def test_what_is_no_problem_is_refused(probe, features, labels, message):
    with pytest.raises(UserError, match=message):
        probe(features, labels)
    fitted = ridge_probe(*problem(2))
    with pytest.raises(UserError):
        fitted.accuracy(features, labels)


def test_the_accuracy_of_labels_as_a_column_is_that_of_the_labels():
    x, y = problem(3)
    for fit in (ridge_probe, logistic_probe):
        probe, as_column = fit(x, y), fit(x, y[:, None].astype(float))
        np.testing.assert_array_equal(probe.kernel, as_column.kernel)
        right = float((np.asarray(probe.predict(x)) == y).mean())
        assert probe.accuracy(x, y[:, None]) == probe.accuracy(x, y.astype(float)) == pytest.approx(right)


@pytest.mark.parametrize(
    "take,message",
    [
        (lambda x, y: (x, y[:50]), r"labels: shape \(50,\) does not match 300 examples"),
        (lambda x, y: (x, 1), r"labels: shape \(\) does not match 300 examples"),
        (lambda x, y: (x[:0], y[:0]), r"fitted to 20 features, but got \(0, 20\)"),
        (lambda x, y: (x[:, :7], y), r"fitted to 20 features, but got \(300, 7\); take both from the same layer"),
        (lambda x, y: (x * np.nan, y), "not finite"),
        (lambda x, y: (x + 1j, y), "must be real numbers"),
        (lambda x, y: (x, y + 0.7), "must be whole numbers"),
        (lambda x, y: (x, y - 1), "labels: -1 is negative"),
    ],
)
def test_what_a_probe_cannot_be_asked_is_refused(take, message):
    x, y = problem(3)
    with pytest.raises(UserError, match=message):
        ridge_probe(x, y).accuracy(*take(x, y))


def test_a_class_that_was_not_fitted_counts_as_wrong():
    x, y = problem(2)
    assert ridge_probe(x, y).accuracy(x, np.full(len(y), 7)) == 0.0
