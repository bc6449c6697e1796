"""Pooling by shifted pictures equals XLA's windows, gradients and ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.models.ops import conv, pooling


def both(pool, x):
    """Return values and gradients of a pooling as taken on CPU and as XLA has it."""
    dy = jax.random.normal(jax.random.key(7), jax.eval_shape(pool, x).shape)

    def values(x):
        y, back = jax.vjp(pool, x)
        return y, back(dy)[0]

    taken = jax.jit(values)(x)
    with conv.xla_only():
        return taken, jax.jit(lambda x: values(x))(x)


@pytest.mark.parametrize("window, stride, pad", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
@pytest.mark.parametrize("side", [(8, 8), (9, 11)])
def test_maxima(side, window, stride, pad):
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, *side, 5)))  # half of it ties at zero
    taken, xla = both(lambda x: pooling.max_pool(x, window, stride, pad), x)
    np.testing.assert_array_equal(taken[0], xla[0])
    np.testing.assert_allclose(taken[1], xla[1], atol=1e-6)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("side", [(8, 8), (5, 7), (1, 2)])
def test_means(side, count_padding):
    x = jax.random.normal(jax.random.key(0), (2, *side, 5))
    taken, xla = both(lambda x: pooling.mean_pool(x, count_padding), x)
    for ours, theirs in zip(taken, xla, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("place", range(4))
def test_a_nan_stays_seen(place):
    x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(pooling.max_pool(x, 2, 2)).all()


def test_mean_pooling_with_and_without_its_padding():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(pooling.mean_pool(x, count_padding=False)[0, :, :, 0], np.full((2, 2), 1.5))
    np.testing.assert_allclose(pooling.mean_pool(x, count_padding=True)[0, :, :, 0], np.full((2, 2), 6 / 9), rtol=1e-6)


@pytest.mark.parametrize("height,width,size", [(7, 7, 7), (14, 21, 7), (3, 5, 7), (1, 1, 7), (10, 8, 7), (5, 9, 3)])
def test_adaptive_pooling_follows_its_definition(height, width, size):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.empty((2, size, size, 3), np.float32)
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    with jax.default_matmul_precision("float32"):
        np.testing.assert_allclose(pooling.adaptive_mean_pool(jnp.asarray(x), size), expected, rtol=1e-5, atol=1e-6)
