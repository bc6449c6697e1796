"""Dropout by bytes: the share, the mean, and that nothing happens where nothing should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.models.bert_layers import Adapter, Dropout

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("rate", "kept"), [(0.1, 230 / 256), (0.5, 0.5), (0.3, 179 / 256)])
@pytest.mark.parametrize("shape", [(64, 101, 33), (3000, 7)])
def test_a_share_is_dropped_and_the_mean_stays(rate, kept, shape):
    x = 2.0 * jnp.ones(shape)
    y = np.asarray(Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {np.float32(0), np.float32(2 / kept)}
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


@pytest.mark.parametrize(("rate", "train"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped(rate, train):
    x = jnp.ones((3, 5))
    assert Dropout(rate).apply({}, x, train) is x  # no key is asked for either


def test_bfloat16_stays():
    x = jnp.ones((4, 6), jnp.bfloat16)
    assert Dropout(0.5).apply({}, x, True, rngs={"dropout": jax.random.key(0)}).dtype == jnp.bfloat16


def test_a_new_adapter_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Adapter(3, jnp.float32)
    variables = layer.init(jax.random.key(1), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)
