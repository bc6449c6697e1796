"""The sliced Wasserstein distance against SciPy's along each direction, and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.transferability.sets import draw, near
from tl_jax.transferability import sliced_wasserstein
from tl_jax.transferability.sliced_wasserstein import random_directions
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
KEY = jax.random.key(3)


def along(d, count=20):
    """Return the directions that KEY stands for."""
    x = np.asarray(random_directions(KEY, count, d), np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("n1,n2,d", [(30, 30, 5), (30, 20, 5), (7, 13, 40), (1, 9, 3), (1, 1, 1)])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_order_one_is_scipys_mean(n1, n2, d, shift):
    x1, x2 = draw(n1, d) + shift, 2 * draw(n2, d, 1) + 0.5 + shift
    x2[-1] = x2[0]
    expected = np.mean([scipy.stats.wasserstein_distance(x1 @ v, x2 @ v) for v in along(d)])
    assert sliced_wasserstein(x1, x2, KEY, 20, order=1) == near(expected)
    assert sliced_wasserstein(x2, x1, KEY, 20, order=1) == near(expected)


@pytest.mark.parametrize("n1,n2", [(6, 6), (4, 6), (5, 7)])
@pytest.mark.parametrize("order", [2, 3.5])
def test_other_orders_match_repeated_points(n1, n2, order):
    x1, x2 = draw(n1, 3), draw(n2, 3, 1) + 1
    copies = [np.repeat(x1, n2, 0), np.repeat(x2, n1, 0)]  # equally many: sorted, they are each other's
    powers = [np.mean(np.abs(np.sort(copies[0] @ v) - np.sort(copies[1] @ v)) ** order) for v in along(3)]
    assert sliced_wasserstein(x1, x2, KEY, 20, order) == near(np.mean(powers) ** (1 / order))


def test_by_hand():
    # On a line all directions are the same. Quantiles: 0 against 2 for a third, 0 against 4 for a sixth, 1 against 4.
    x1, x2 = np.array([[0.0], [1.0]]), np.array([[4.0], [2.0], [4.0]])
    assert sliced_wasserstein(x1, x2, KEY, order=1) == near(2 / 3 + 4 / 6 + 3 / 2)
    assert sliced_wasserstein(x1, x2, KEY) == near(np.sqrt(4 / 3 + 16 / 6 + 9 / 2))


def test_a_shift_in_many_directions():
    # E (u.v)^2 = 1 / D for a direction u.
    x = draw(10, 4)
    assert sliced_wasserstein(x, x + [[3, 0, 0, 0]], KEY, 4000) == pytest.approx(3 / 2, rel=0.05)


def test_equal_sets_are_at_zero_and_one_key_gives_one_value():
    x, y = draw(20, 4), draw(30, 4, 1)
    assert sliced_wasserstein(x, x[::-1], KEY) == 0.0
    assert sliced_wasserstein(x, np.concatenate([x, x]), KEY) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x, y, KEY) == sliced_wasserstein(x, y, KEY)
    assert sliced_wasserstein(x, y, KEY) != sliced_wasserstein(x, y, jax.random.key(4))


def test_any_array_will_do():
    x1, x2 = draw(9, 3).astype(np.float32), draw(9, 3, 1).astype(np.float32)
    value = sliced_wasserstein(jnp.asarray(x1), jnp.asarray(x2), KEY)
    assert type(value) is float and value == sliced_wasserstein(x1, x2, KEY)


@pytest.mark.parametrize(
    "x2,how,message",
    [
        (draw(4, 3), {}, "x1 has 2 features and x2 has 3"),
        (draw(4, 2) * np.nan, {}, "x2: values are not finite"),
        (draw(4, 2), {"projections": 0}, "projections=0: out of range"),
        (draw(4, 2), {"order": 0.5}, "order=0.5: out of range"),
    ],
)
def test_what_has_no_distance_is_refused(x2, how, message):
    with pytest.raises(UserError, match=message):
        sliced_wasserstein(draw(4, 2), x2, KEY, **how)
