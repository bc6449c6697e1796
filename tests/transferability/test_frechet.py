"""The Frechet distance against matrix roots of SciPy, and values by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.transferability.sets import bures, draw, near
from tl_jax.transferability import frechet
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("n1,n2,d", [(200, 150, 6), (8, 12, 30), (40, 8, 20), (2, 2, 1), (2, 30, 4), (30, 30, 30)])
@pytest.mark.parametrize("shift", [0.0, 3.0, 1000.0])
def test_it_is_the_formula(n1, n2, d, shift):
    x1, x2 = draw(n1, d) + 1000, 1.5 * draw(n2, d, 1) @ draw(d, d, 2) + 1000 + shift
    assert frechet(x1, x2) == near(bures(x1, x2))
    assert frechet(x2, x1) == near(frechet(x1, x2))


@pytest.mark.parametrize("n", [100, 5])
def test_singular_covariances(n):
    x1, x2 = draw(n, 8), 2 * draw(n, 8, 1)
    x1[:, 4:], x2[:, 3:] = x1[:, :4] - x1[:, 1:5], x2[:, :5]
    x1[:, 7] = 0
    assert frechet(x1, x2) == near(bures(x1, x2))


def test_by_hand():
    # Means 1 and 12, variances 2 and 8; the second feature has a variance on one side alone.
    x1, x2 = np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[10.0, 5.0], [14.0, 5.0]])
    assert frechet(x1, x2) == near(121 + 2)
    assert frechet(x1 * [[1, 0]], x1 * [[0, 1]] + [[1, 0]]) == near(25 + 2)


@pytest.mark.parametrize("n,d", [(100, 6), (8, 40)])
def test_equal_sets_are_at_zero(n, d):
    x = draw(n, d) + 10
    assert frechet(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet(x, x[::-1]) == pytest.approx(0, abs=1e-12)
    assert frechet(np.ones((n, d)), np.ones((n, d))) == 0.0


def test_a_shift_is_its_square_and_a_rotation_of_both_nothing():
    x1, x2 = draw(50, 5), draw(60, 5, 1)
    rotation = np.linalg.qr(draw(5, 5, 2))[0]
    assert frechet(x1, x1 + 2) == near(20)
    assert frechet(x1 @ rotation, x2 @ rotation) == near(frechet(x1, x2))


def test_any_array_will_do():
    x1, x2 = draw(9, 3).astype(np.float32), draw(9, 3, 1).astype(np.float32)
    value = frechet(jnp.asarray(x1), jnp.asarray(x2))
    assert type(value) is float and value == frechet(x1, x2)
    assert frechet(jnp.asarray(x1, jnp.bfloat16), x2) == pytest.approx(value, rel=0.02)
    assert frechet((10 * x1).astype(np.int8), np.ones((4, 3), np.uint8)) > 0


@pytest.mark.parametrize(
    "x1,x2,message",
    [
        (draw(4, 2), draw(5, 3), "x1 has 2 features and x2 has 3; take both from the same layer of one network"),
        (draw(4, 2), draw(4, 2)[0], r"x2: must be features \(N, D\) of real numbers, not \(2,\) of float64"),
        (draw(4, 0), draw(4, 0), r"x1: must be features \(N, D\) of real numbers, not \(4, 0\)"),
        (np.array([["a"]]), draw(4, 1), "x1: must be features"),
        (draw(4, 2), draw(1, 2), "x2: 1 example, but this needs at least 2; pass more"),
        (draw(4, 2), np.full((4, 2), np.inf), "features x2: values are not finite"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(x1, x2, message):
    with pytest.raises(UserError, match=message):
        frechet(x1, x2)
