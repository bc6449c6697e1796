"""The angular margin against its formula in double precision, and its gradients where they are dangerous."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.transfer.arcface import Margin, arcface, l2_normalize

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.2])
def test_the_own_class_is_moved_by_the_angle(margin):
    angles = np.radians(np.linspace(1, 179, 90)).reshape(30, 3)
    labels = np.arange(30) % 3
    found = np.asarray(arcface(jnp.cos(angles), jnp.asarray(labels), 64.0, margin))
    expected = 64 * np.cos(angles)
    own = angles[np.arange(30), labels]
    moved = np.where(own + margin < np.pi, np.cos(own + margin), np.cos(own) - margin * np.sin(margin))
    expected[np.arange(30), labels] = 64 * moved
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_it_falls_with_the_angle_everywhere():
    cosines = jnp.linspace(-1, 1, 401)[:, None]
    found = np.asarray(arcface(cosines, jnp.zeros(401, int), 1.0, 0.5))[:, 0]
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0000001, -1.0000001, float(-np.cos(0.5)), 0.0])
def test_gradients_are_finite_at_the_ends(cosine):
    grad = jax.grad(lambda c: arcface(c, jnp.array([0]), 64.0, 0.5).sum())(jnp.array([[cosine, 0.2]]))
    assert np.isfinite(grad).all() and np.abs(grad).max() < 64 * 2000


def test_zero_embeddings_have_finite_gradients():
    def loss(x, centres):
        params = {"extra": {"people": {"kernel": centres}}}
        logits = Margin("arcface", 64.0, 0.5, 3)(params, x, jnp.array([0, 1]))
        return jax.nn.logsumexp(logits, axis=1).sum() - logits[0, 0] - logits[1, 1]

    grads = jax.grad(loss, (0, 1))(jnp.zeros((2, 4)), jnp.zeros((4, 3)))
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(np.linalg.norm(l2_normalize(jnp.array([[3.0, 4.0]])), axis=1), 1.0, rtol=1e-6)


def test_without_a_margin_and_with_softmax():
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    params, labels = {"extra": {"people": {"kernel": jnp.asarray(centres)}}}, jnp.array([0, 1, 2, 0, 1])
    np.testing.assert_allclose(Margin("softmax", 64.0, 0.5, 3)(params, x, labels), x @ centres, rtol=1e-5)
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (centres / np.linalg.norm(centres, axis=0))
    np.testing.assert_allclose(Margin("arcface", 30.0, 0.0, 3)(params, x, labels), 30 * cosines, atol=1e-4)
