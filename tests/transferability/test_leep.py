"""LEEP and NCE against loops over classes, and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transferability.inputs import CASES, gapped
from tl_jax.transferability import leep, nce
from tl_jax.transferability.leep import leep_from, nce_from

pytestmark = pytest.mark.fast


def literal_leep(p, y):
    classes, (n, sources) = np.unique(y), p.shape
    joint = {(c, z): sum(p[i, z] for i in range(n) if y[i] == c) / n for c in classes for z in range(sources)}
    mass = [sum(joint[c, z] for c in classes) for z in range(sources)]
    logs = [np.log(sum(joint[y[i], z] / mass[z] * p[i, z] for z in range(sources) if mass[z] > 0)) for i in range(n)]
    return np.mean(logs)


def literal_nce(z, y):
    total = 0.0
    for a in np.unique(z):
        for c in np.unique(y):
            joint = np.mean((z == a) & (y == c))
            total += joint * np.log(joint / np.mean(z == a)) if joint else 0.0
    return total


def softmax(x):
    p = np.exp(x - x.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("name", CASES)
def test_they_are_the_papers_sums(name):
    x, y = CASES[name]
    p = softmax(2 * x)
    p[:, 1] = 0  # a source class without mass
    p /= p.sum(1, keepdims=True)
    z = p.argmax(1)
    assert leep(p, y) == pytest.approx(literal_leep(p, y), rel=1e-5)
    assert leep(p.astype(np.float32), gapped(y)) == pytest.approx(leep(p, y), rel=1e-5)
    assert nce(z, y) == pytest.approx(literal_nce(z, y), rel=1e-5, abs=1e-12)
    assert nce(gapped(z), gapped(y)) == nce(z, y)


def test_by_hand():
    # P(y=0, z=0) is 3/8 of a mass of 1/2, so either example has 3/4 3/4 + 1/4 1/4.
    p, y = np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 1])
    assert leep(p, y) == pytest.approx(np.log(0.625), rel=1e-12)
    assert leep(np.full((4, 3), 1 / 3), np.array([0, 0, 1, 1])) == pytest.approx(np.log(0.5), rel=1e-6)
    assert nce(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(
        np.log(2 / 3) / 2 + np.log(1 / 3) / 4, rel=1e-12
    )
    assert nce(np.array([7, 7, 3, 3]), np.array([0, 0, 1, 1])) == 0
    assert nce(np.zeros(4, int), np.array([0, 0, 1, 1])) == pytest.approx(np.log(0.5), rel=1e-12)


def test_hard_probabilities_give_nce():
    rng = np.random.default_rng(0)
    z, y = rng.integers(0, 5, 100), rng.integers(0, 3, 100)
    assert leep(np.eye(5)[z], y) == pytest.approx(nce(z, y), rel=1e-12)


def test_weights_are_copies_of_examples():
    rng = np.random.default_rng(0)
    z, y, p = rng.integers(0, 5, 40), rng.integers(0, 3, 40), softmax(rng.normal(size=(40, 5)))
    rows = rng.integers(0, 40, (2, 40))
    weights = np.stack([np.bincount(r, minlength=40) for r in rows]).astype(float)
    with jax.enable_x64(True):
        soft = jax.vmap(lambda w: leep_from(jnp.asarray(p), jnp.asarray(y), w, classes=3))(weights)
        hard = jax.vmap(lambda w: nce_from(jnp.asarray(z), jnp.asarray(y), w, sources=5, classes=3))(weights)
    np.testing.assert_allclose(soft, [literal_leep(p[r], y[r]) for r in rows], rtol=1e-9)
    np.testing.assert_allclose(hard, [literal_nce(z[r], y[r]) for r in rows], rtol=1e-9)
