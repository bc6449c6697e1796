"""What every score refuses, in a line that says what to do next."""

import jax
import numpy as np
import pytest

from tl_jax import transferability
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
SCORES = ("logme", "h_score", "regularized_h_score", "transrate", "gbc", "sfda", "nleep", "parc", "leep")
X, Y = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 1, 0, 1])


def call(name, x, y):
    return getattr(transferability, name)(x, y, *([jax.random.key(0)] if name == "nleep" else []))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "x,y,message",
    [
        (X[:, 0], Y, r"\(4,\) and labels \(4,\): wrong shapes; pass \(N, D\) and \(N,\)"),
        (X, Y[:3], r"\(4, 2\) and labels \(3,\): wrong shapes"),
        (X, X, r"\(4, 2\) and labels \(4, 2\): wrong shapes"),
        (X[:0], Y[:0], r"\(0, 2\) and labels \(0,\): wrong shapes"),
        (X[:, :0], Y, r"\(4, 0\) and labels \(4,\): wrong shapes"),
        (np.where(X == 1, np.nan, X), Y, "values are not finite; check the network"),
        (np.where(X == 1, np.inf, X), Y, "values are not finite"),
        (X, Y + 0.5, "labels: must be whole numbers, not 0.5; pass the index of each example's class"),
        (X, np.where(Y, np.nan, 0), "labels: must be whole numbers, not nan"),
        (X, np.array(list("abab")), "labels: must be whole numbers, not <U1; pass the index of each example's class"),
        (X, Y + 0j, "labels: must be whole numbers, not complex128"),
        (X + 0j, Y, "must be real numbers, not complex128"),
        (X.astype(str), Y, "must be real numbers, not <U"),
        (X * 1e300, Y, r"powers of values up to 1e\+300 overflow; scale them below"),
        (X, Y - 1, "labels: -1 is negative; drop the examples without a class"),
        (X, 0 * Y + 7, "labels: all 4 are 7; a score needs at least two classes"),
    ],
)
def test_what_is_no_problem_is_refused(name, x, y, message):
    with pytest.raises(UserError, match=message) as caught:
        call(name, x, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SCORES)
def test_labels_as_a_column_as_floats_or_as_booleans_are_the_same_labels(name):
    right = call(name, X, Y)
    for labels in (Y[:, None], Y.astype(float), Y.astype(bool), Y.astype(np.float32)[:, None], Y.tolist()):
        assert call(name, X, labels) == right


@pytest.mark.parametrize(
    "p,message",
    [
        (X - [0.1, -0.1], "source_probs: -0.1 is negative; pass probabilities"),
        (X * [[1], [1], [0.9], [1]], r"source_probs: row 2 sums to 0.9, not 1; pass softmax\(logits\)"),
        (3 * X, "sums to 3, not 1"),
    ],
)
def test_what_is_no_distribution_is_refused(p, message):
    with pytest.raises(UserError, match=message):
        transferability.leep(p, Y)
    assert transferability.leep(X * (1 + 9e-4), Y) == pytest.approx(transferability.leep(X, Y), abs=1e-3)


@pytest.mark.parametrize(
    "z,y,message",
    [
        (Y[:3], Y, "nce: 3 source_labels and 4 labels do not match; pass one of each"),
        (Y - 1, Y, "source_labels: -1 is negative"),
        (X[:, 0], Y, "source_labels: must be whole numbers, not 0.5"),
        (X, Y, r"source_labels: shape must be \(N,\) with at least one example, not \(4, 2\)"),
        (Y[:0], Y[:0], r"source_labels: shape must be \(N,\) with at least one example, not \(0,\)"),
        (Y, 0 * Y, "labels: all 4 are 0; a score needs at least two classes"),
    ],
)
def test_labels_that_are_none_are_refused(z, y, message):
    with pytest.raises(UserError, match=message):
        transferability.nce(z, y)
