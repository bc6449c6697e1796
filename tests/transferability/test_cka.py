"""Linear CKA: its definition, values by hand, and what leaves it as it is."""

import numpy as np
import pytest

from tl_jax.transferability import linear_cka
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def draw(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def literal(a, b):
    """Return HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix, as the paper's equation 3 has it."""
    centring = np.eye(len(a)) - 1 / len(a)

    def hsic(k, m):
        return np.trace(k @ centring @ m @ centring) / (len(a) - 1) ** 2

    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("n,d1,d2", [(100, 5, 8), (10, 30, 20), (20, 3, 50), (20, 50, 3), (2, 1, 1)])
def test_it_is_the_papers_equation(n, d1, d2):
    a, b = draw(n, d1), draw(n, d2, 1) + 2
    b[:, 0] += a[:, 0]
    assert linear_cka(a, b) == pytest.approx(literal(a, b), abs=1e-6)
    assert linear_cka(b, a) == pytest.approx(linear_cka(a, b), abs=1e-6)


def literal_debiased(a, b):
    """Return the same of the unbiased HSIC: Song et al.'s, with matrices whose diagonals are zero."""

    def hsic(k, m):
        n, one = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        rest = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
        return (np.trace(k @ m) + rest) / (n * (n - 3))

    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("n,d1,d2", [(100, 5, 8), (10, 30, 20), (20, 3, 50), (20, 50, 3), (4, 3, 2), (5, 1, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_both_are_exact_to_many_digits(n, d1, d2, scale):
    a, b = draw(n, d1) * scale, draw(n, d2, 1) + 2
    assert linear_cka(a, b) == pytest.approx(literal(a, b), rel=1e-8)
    assert linear_cka(a, b, debiased=True) == pytest.approx(literal_debiased(a, b), rel=1e-6)
    assert linear_cka(b, a, debiased=True) == pytest.approx(linear_cka(a, b, debiased=True), rel=1e-8)


def test_debiased_of_few_examples():
    values = [linear_cka(draw(12, 500, 2 * i), draw(12, 500, 2 * i + 1), debiased=True) for i in range(40)]
    assert min(values) < 0 and abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
    x = draw(12, 30)
    assert linear_cka(x, 3 * x @ np.linalg.qr(draw(30, 30, 1))[0] + 1, debiased=True) == pytest.approx(1, abs=1e-9)


def test_debiased_by_hand():
    # Products of (0, 1, 0, 0) are zero off the diagonal, and so is all of it that counts.
    with pytest.raises(UserError, match="HSIC with itself is zero for 4 examples"):
        linear_cka(np.array([[0.0], [1.0], [0.0], [0.0]]), draw(4, 2), debiased=True)
    # (1, 1, 0, 0) has one product, of 1 and 2, and (1, 0, 1, 0) one, of 1 and 3. In HSIC n (n - 3) tr(K M) is 0 between
    # and 2 within, 1'K1 is 2, 1'K M1 is 1 between and 2 within: 0 + 4 / 6 - 1 and 2 + 4 / 6 - 2.
    a, b = np.array([[1.0], [1.0], [0.0], [0.0]]), np.array([[1.0], [0.0], [1.0], [0.0]])
    assert linear_cka(a, b, debiased=True) == pytest.approx(-1 / 2)
    with pytest.raises(UserError, match="debiased: 3 examples are too few; pass at least 4, or debiased=False"):
        linear_cka(a[:3], b[:3], debiased=True)


def test_by_hand():
    # Centred: (-1, 0, 1) and (1, -2, 1) are orthogonal; with (-1, 1, 0) the cosine is 1 / 2, and CKA its square.
    a = np.array([[0.0], [1.0], [2.0]])
    assert linear_cka(a, np.array([[3.0], [0.0], [3.0]])) == pytest.approx(0, abs=1e-7)
    assert linear_cka(a, np.array([[0.0], [2.0], [1.0]])) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("n,d", [(100, 6), (8, 40)])
@pytest.mark.parametrize("factor,shift", [(1.0, 0.0), (-3.0, 5.0), (1e-12, 0.0), (1e12, 0.0), (1.0, 100.0)])
def test_rotation_scale_and_shift_change_nothing(n, d, factor, shift):
    x = draw(n, d)
    rotation = np.linalg.qr(draw(d, d, 1))[0]
    value = linear_cka(x, factor * x @ rotation + shift)
    assert value == pytest.approx(1, abs=1e-5) and value <= 1


def test_another_linear_map_does():
    x = draw(100, 6)
    assert linear_cka(x, x * np.array([100, 1, 1, 1, 1, 1])) < 0.9


def test_few_examples_look_alike():
    assert linear_cka(draw(5000, 10), draw(5000, 10, 1)) < 0.01
    assert linear_cka(draw(10, 1000), draw(10, 1000, 1)) > 0.9  # the bias that the docstring tells of


@pytest.mark.parametrize(
    "x1,x2,message",
    [
        (draw(4, 2), draw(5, 2), r"wrong shapes \(4, 2\) and \(5, 2\); .* the same N examples"),
        (draw(4, 2), draw(4, 2)[:, 0], r"wrong shapes \(4, 2\) and \(4,\)"),
        (draw(0, 2), draw(0, 2), r"wrong shapes \(0, 2\)"),
        (draw(4, 2), np.full((4, 3), np.nan), "features x2: values are not finite"),
        (np.full((7, 3), 0.1), draw(7, 2), "features x1: constant over all 7 examples"),
        (draw(1, 2), draw(1, 2), "constant over all 1 examples"),
    ],
)
def test_what_cannot_be_compared_is_refused(x1, x2, message):
    with pytest.raises(UserError, match=message):
        linear_cka(x1, x2)
