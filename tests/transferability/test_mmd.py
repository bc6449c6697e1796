"""MMD and the energy distance against loops over pairs, and values by hand."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.transferability.sets import draw, near
from tl_jax.transferability import energy, mmd
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast

SIZES = [(24, 20, 5), (6, 9, 30), (2, 2, 1), (2, 17, 3)]


def sets(n1, n2, d, kind):
    x1, x2 = draw(n1, d), 1.3 * draw(n2, d, 1) + 0.7
    if kind == "separable":
        x2 = x2 + 30
    if kind == "flat":
        x1[:, 1:], x2[:, 1:] = x1[:, :1], x2[:, :1]
    if kind == "repeated":
        x2[-1] = x2[0] = x1[0]
    if kind == "far":
        x1, x2 = x1 + 1000, x2 + 1000
    return x1, x2


def norm(a, b):
    return np.sqrt(((a - b) ** 2).sum())


def literal_mmd(x1, x2, k):
    """Return Gretton's unbiased estimate, pair by pair."""
    n, m = len(x1), len(x2)
    first = sum(k(x1[i], x1[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    second = sum(k(x2[i], x2[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return first + second - 2 * sum(k(a, b) for a in x1 for b in x2) / (n * m)


def gaussian(x1, x2):
    """Return the kernel whose width is the median distance."""
    pool = np.concatenate([x1, x2])
    width = np.median([norm(pool[i], pool[j]) for i in range(len(pool)) for j in range(i)])
    return lambda a, b: np.exp(-(norm(a, b) ** 2) / (2 * width**2))


KINDS = ("random", "separable", "flat", "repeated", "far")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n1,n2,d", SIZES)
@pytest.mark.parametrize("tile", [1024, 16])  # of which the last is not full
def test_they_are_their_formulas(kind, n1, n2, d, tile, monkeypatch):
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.mmd"), "TILE", tile)
    x1, x2 = sets(n1, n2, d, kind)
    poly, rbf = literal_mmd(x1, x2, lambda a, b: (a @ b / d + 1) ** 3), literal_mmd(x1, x2, gaussian(x1, x2))
    assert mmd(x1, x2) == near(poly) and mmd(x2, x1) == near(poly)
    assert mmd(x1, x2, "rbf") == near(rbf) and mmd(x2, x1, "rbf") == near(rbf)
    means = [np.mean([norm(a, b) for a in one for b in two]) for one, two in ((x1, x2), (x1, x1), (x2, x2))]
    assert energy(x1, x2) == near(2 * means[0] - means[1] - means[2]) and energy(x2, x1) == near(energy(x1, x2))


def test_energy_is_the_square_of_scipys():
    x1, x2 = draw(30, 1), 2 * draw(45, 1, 1)
    assert energy(x1, x2) == near(scipy.stats.energy_distance(x1[:, 0], x2[:, 0]) ** 2)


def test_by_hand():
    # Products: 0 within the first, 8 within the second, between 0, 0, 2, 4.
    x1, x2 = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    assert mmd(x1, x2) == near(1 + 9**3 - (1 + 1 + 3**3 + 5**3) / 2)
    # Distances 1, 2 and 2, 4, 1, 3, of which the median is 2.
    width = np.exp(-np.array([1, 4, 4, 16, 1, 9]) / 8)
    assert mmd(x1, x2, "rbf") == near(width[0] + width[1] - width[2:].sum() / 2)
    assert mmd(x1, x2, "rbf", bandwidth=0.5) == near(
        np.exp(-2) + np.exp(-8) - (2 * np.exp([-8, -32, -2, -18])).sum() / 4
    )
    assert energy(x1, x2) == near(2 * 2.5 - 0.5 - 1)
    assert energy(x1[:1], x2[:1]) == near(4)


@pytest.mark.parametrize("n,d", [(60, 4), (5, 40), (1, 3)])
def test_energy_of_equal_sets_is_zero_and_mmd_below(n, d):
    x = draw(n, d) + 5
    assert energy(x, x) == pytest.approx(0, abs=1e-12)
    assert energy(x, x[::-1]) == pytest.approx(0, abs=1e-12)
    if n > 1:
        assert mmd(x, x, "rbf") < 0 and mmd(x, x) < 0


def test_mmd_of_one_distribution_is_zero_in_the_mean():
    values = [mmd(draw(20, 3, 2 * i), draw(30, 3, 2 * i + 1), "rbf") for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert mmd(draw(20, 3), draw(30, 3, 1) + 2, "rbf") > 5 * np.std(values)


def test_single_products_are_as_good(monkeypatch):
    x1, x2 = sets(60, 50, 8, "random")
    double = [mmd(x1, x2), mmd(x1, x2, "rbf"), energy(x1, x2), energy(x1, x1)]
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.mmd"), "MAX_DOUBLE_PRODUCTS", 0)
    assert [mmd(x1, x2), mmd(x1, x2, "rbf"), energy(x1, x2)] == near(double[:3])
    assert energy(x1, x1) == pytest.approx(0, abs=1e-4)


def test_the_median_of_many_is_that_of_a_sample(monkeypatch):
    x1, x2 = sets(50, 50, 3, "random")
    whole = mmd(x1, x2, "rbf")
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.mmd"), "MEDIAN_SAMPLE", 40)
    assert mmd(x1, x2, "rbf") == pytest.approx(whole, rel=0.1) and mmd(x1, x2, "rbf") != whole


@pytest.mark.parametrize("measure", [mmd, energy])
def test_any_array_will_do(measure):
    x1, x2 = draw(9, 3).astype(np.float32), draw(9, 3, 1).astype(np.float32)
    value = measure(jnp.asarray(x1), jnp.asarray(x2))
    assert type(value) is float and value == measure(x1, x2)


@pytest.mark.parametrize(
    "x1,x2,how,message",
    [
        (draw(4, 2), draw(4, 2), {"kernel": "ply"}, "unknown kernel 'ply'; did you mean 'poly'"),
        (draw(4, 2), draw(4, 2), {"kernel": "rbf", "bandwidth": -1.0}, "bandwidth=-1.0: out of range"),
        (np.ones((4, 2)), np.ones((4, 2)), {"kernel": "rbf"}, "the median distance is zero"),
        (draw(4, 2), draw(1, 2), {}, "x2: 1 example, but this needs at least 2"),
        (draw(4, 2), draw(4, 3), {}, "x1 has 2 features and x2 has 3"),
        (draw(4, 2), draw(4, 2) * np.nan, {}, "x2: values are not finite"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(x1, x2, how, message):
    with pytest.raises(UserError, match=message):
        mmd(x1, x2, **how)


def test_energy_refuses_too():
    with pytest.raises(UserError, match="x1 has 2 features and x2 has 3"):
        energy(draw(4, 2), draw(4, 3))
