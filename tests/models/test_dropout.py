"""Dropout: the share, the mean, independence of places and keys, and that nothing happens where nothing should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tl_jax.models.ops.dropout import Dropout, hashed_bits
from tl_jax.train import sharding

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("rate", "kept"), [(0.1, 0.9), (0.5, 0.5), (0.3, 0.7)])
@pytest.mark.parametrize("shape", [(64, 101, 33), (3000, 7)])
def test_a_share_is_dropped_and_the_mean_stays(rate, kept, shape):
    x = 2.0 * jnp.ones(shape)
    y = np.asarray(Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {np.float32(0), np.float32(2 / np.float32(kept))}
    deviation = 4 * np.sqrt(kept * (1 - kept) / y.size)
    assert abs((y > 0).mean() - kept) < deviation
    by_column = (y.reshape(len(y), -1) > 0).mean(0)
    assert by_column.min() > kept - 6 * np.sqrt(kept * (1 - kept) / len(y))  # no column is always dropped


def test_neighbours_are_dropped_independently():
    y = Dropout(0.5).apply({}, jnp.ones((200, 400)), True, rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(y) > 0
    for shift in (1, 2, 3, 4):
        assert abs((kept[:, :-shift] == kept[:, shift:]).mean() - 0.5) < 0.01
    assert abs((kept[:-1] == kept[1:]).mean() - 0.5) < 0.01


@pytest.mark.parametrize("other", [1, 2**31, "folded"])
def test_keys_that_differ_are_independent(other):
    key = jax.random.key(0)
    second = jax.random.fold_in(key, 1) if other == "folded" else jax.random.key(other)
    a, b = (np.asarray(hashed_bits(k, (500, 400))) for k in (key, second))
    agreeing = np.unpackbits((a ^ b).view(np.uint8)).mean()  # of 6.4 million bits: a deviation is 0.0002
    assert abs(agreeing - 0.5) < 0.001
    shifted = [np.mean(a.ravel()[:-s] == b.ravel()[s:]) for s in (1, 7, 400)]
    assert max(shifted) < 1e-4


def test_bits_are_as_even_as_those_of_threefry():
    """Chi-squared of the counts of each byte, 256 classes, and of pairs of neighbours' high nibbles."""
    bits = np.asarray(hashed_bits(jax.random.key(3), (1 << 20,)))
    for shift in (0, 8, 16, 24):
        assert stats.chisquare(np.bincount((bits >> shift) & 255, minlength=256)).pvalue > 1e-4
    pairs = (bits[:-1] >> 28) * 16 + (bits[1:] >> 28)
    assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-4


def test_values_are_a_function_of_the_place_however_the_array_is_split():
    apply = jax.jit(lambda x, key: Dropout(0.5).apply({}, x, True, rngs={"dropout": key}))
    x, key = jnp.ones((8, 6, 5)), jax.random.key(2)
    whole = jax.jit(lambda x: x)(apply(jax.device_put(x, jax.devices()[0]), jax.device_put(key, jax.devices()[0])))
    parts = apply(jax.device_put(x, sharding.batch_sharding()), sharding.replicate(key))
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(parts))


@pytest.mark.parametrize(("rate", "train"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped(rate, train):
    x = jnp.ones((3, 5))
    assert Dropout(rate).apply({}, x, train) is x  # no key is asked for either


def test_bfloat16_stays():
    x = jnp.ones((4, 6), jnp.bfloat16)
    assert Dropout(0.5).apply({}, x, True, rngs={"dropout": jax.random.key(0)}).dtype == jnp.bfloat16
