"""The proxy A-distance against scikit-learn's classifier, and names in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.transferability.sets import draw
from tl_jax.transferability import label_overlap, proxy_a
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
KEY = jax.random.key(1)


def literal(x1, x2, rng):
    """Return 2 (1 - 2 err) of logistic regression, held-out half, on sides of one size."""
    (a, c), (b, d) = (np.split(rng.permutation(x), 2) for x in (x1, x2))
    ends = np.repeat([0, 1], len(a))
    return 2 * (2 * LogisticRegression(C=1).fit(np.concatenate([a, b]), ends).score(np.concatenate([c, d]), ends) - 1)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_it_is_what_scikit_learn_gives(shift):
    x1, x2 = draw(400, 5), draw(400, 5, 1) + shift
    rng = np.random.default_rng(0)
    expected = np.mean([literal(x1, x2, rng) for _ in range(20)])
    assert np.mean([proxy_a(x1, x2, jax.random.key(i)) for i in range(5)]) == pytest.approx(expected, abs=0.1)


@pytest.mark.slow
def test_the_ends_of_the_scale():
    x = draw(200, 4)
    assert proxy_a(x, x + 20, KEY) == 2.0
    assert proxy_a(x, draw(200, 4, 1), KEY) == pytest.approx(0, abs=0.4)
    # One example a side is fitted to, and the other one is nearer to it than to that of the other side.
    assert proxy_a([[0.0], [1.0]], [[9.0], [10.0]], KEY) == 2.0
    assert proxy_a(np.ones((4, 2)), np.ones((4, 2)), KEY) == 0.0


def test_a_larger_side_is_not_recognised_by_its_size():
    x1, x2 = draw(1000, 3), draw(60, 3, 1)
    values = [proxy_a(x1, x2, jax.random.key(i)) for i in range(10)]
    assert abs(np.mean(values)) < 0.3
    assert abs(np.mean([proxy_a(x2, x1, jax.random.key(i)) for i in range(10)])) < 0.3


@pytest.mark.parametrize("factor,shift", [(1e-3, 0.0), (1e3, 0.0), (1.0, 100.0)])
def test_units_do_not_matter(factor, shift):
    x1, x2 = draw(100, 5), draw(100, 5, 1) + 0.5
    assert proxy_a(x1 * factor + shift, x2 * factor + shift, KEY) == pytest.approx(proxy_a(x1, x2, KEY), abs=0.05)


def test_any_array_will_do():
    x1, x2 = draw(20, 3).astype(np.float32), draw(20, 3, 1).astype(np.float32)
    value = proxy_a(jnp.asarray(x1), jnp.asarray(x2), KEY)
    assert type(value) is float and value == proxy_a(x1, x2, KEY)


@pytest.mark.parametrize(
    "x1,x2,message",
    [
        (draw(4, 2), draw(4, 3), "x1 has 2 features and x2 has 3"),
        (draw(1, 2), draw(4, 2), "x1: 1 example, but this needs at least 2"),
        (draw(4, 2), draw(4, 2) * np.inf, "x2: values are not finite"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(x1, x2, message):
    with pytest.raises(UserError, match=message):
        proxy_a(x1, x2, KEY)


def test_names_in_common():
    assert label_overlap(["cat", "Polar bear", "dog"], ["polar_bear", "DOG", "dog", "ox"]) == 2 / 4
    assert label_overlap(("PolarBear",), {"polar-bear"}) == 1.0
    assert label_overlap(["Straße", "猫"], ["STRASSE", "猫"]) == 1.0
    assert label_overlap(["cat"], ["dog"]) == 0.0
    one, two = ["a", "b", "c"], ["c", "d"]
    assert label_overlap(one, two) == label_overlap(two, one) == 1 / 4


@pytest.mark.parametrize(
    "names,shown", [([], r"\[\]"), ("cat", "'cat'"), (["cat", " _"], "' _'"), (["cat", 3], "3"), ([None], "None")]
)
def test_what_is_no_name_is_refused(names, shown):
    with pytest.raises(UserError, match=rf"names2: must be class names, such as \['cat', 'polar bear'\], not {shown}"):
        label_overlap(["cat"], names)
