"""PARC against SciPy's rank correlation over pairs, and values by hand."""

import numpy as np
import pytest
import scipy.stats

from tests.transferability.inputs import CASES, gapped
from tl_jax.transferability import parc
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def literal(x, y):
    deviation = x.std(0)
    z = (x - x.mean(0)) / np.where(deviation > 1e-12, deviation, 1)
    pairs = np.triu_indices(len(y), 1)
    unlike = np.round(1 - np.corrcoef(z)[pairs], 12)
    other = 1 - np.corrcoef(np.eye(y.max() + 1)[y])[pairs]
    return 100 * scipy.stats.spearmanr(unlike, np.round(other, 12))[0]


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("one example")])
def test_it_is_the_papers_correlation(name):
    x, y = CASES[name]
    assert parc(x, y) == pytest.approx(literal(x, y), rel=1e-5)
    assert parc(x, gapped(y)) == parc(x, y)


def test_equal_rows_share_their_rank():
    x, y = CASES["random"]
    x, y = np.concatenate([x, x[:30]]), np.concatenate([y, y[30:60]])
    assert parc(x, y) == pytest.approx(literal(x, y), rel=1e-5)


@pytest.mark.parametrize("labels,expected", [([0, 0, 1, 1], 100), ([0, 1, 0, 1], -50)])
def test_by_hand(labels, expected):
    # Of the six pairs two are alike for the source. Of the labels' two alike these are all, or none: then the products
    # have the mean 1/3 - 4/9 beside variances of 2/9.
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert parc(x, np.array(labels)) == pytest.approx(expected, rel=1e-9)


def test_a_row_without_shape_correlates_with_none():
    # Standardised: the first example is (0, 0, 0); the others correlate by 1, or by less than 0 across classes.
    x = np.array([[0.0, 0, 0], [1, -1, 0], [1, -1, 0], [-1, 1, 0], [-1, 1, 0]])
    assert parc(x, np.array([0, 1, 1, 2, 2])) == pytest.approx(
        100 * scipy.stats.spearmanr([1, 1, 1, 1, 0, 2, 2, 2, 2, 0], [1, 1, 1, 1, 0, 1, 1, 1, 1, 0])[0], rel=1e-9
    )


def test_few_examples_stand_for_many():
    x, y = CASES["separable"]
    chosen = np.sort(np.argsort(y, kind="stable")[1::3])  # the middle one of three, sixty of three classes
    assert parc(x, y, max_examples=20) == parc(x[chosen], y[chosen])
    assert parc(x, y, max_examples=60) == parc(x, y, max_examples=10_000) == parc(x, y)


@pytest.mark.parametrize(
    "x,y,most,message",
    [
        (np.eye(4)[:, :1], [0, 0, 1, 1], 9, r"rows of \(4, 1\) need at least two values; pass all probabilities"),
        (np.eye(4), [0, 1, 2, 3], 9, "no class has two of the 4 compared examples; pass more"),
        (np.ones((4, 3)), [0, 0, 1, 1], 9, "source_probs: all pairs of 4 are equally dissimilar; pass another layer's"),
        (np.eye(4), [0, 0, 1, 1], 2, "max_examples=2: must be at least 3"),
    ],
)
def test_what_has_no_ranks_is_refused(x, y, most, message):
    with pytest.raises(UserError, match=message):
        parc(x, np.array(y), most)
