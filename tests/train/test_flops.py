"""Operations are counted: of matrix products by hand, and in a loop as often as it runs."""

import jax
import jax.numpy as jnp
import pytest

from tl_jax.models.ops import conv
from tl_jax.train import flops

pytestmark = pytest.mark.fast
X = jax.ShapeDtypeStruct((8, 16, 16, 32), jnp.float32)
K = jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)


def test_a_product_in_a_loop_counts_as_often_as_it_runs():
    a, b = jax.ShapeDtypeStruct((5, 6, 7), jnp.float32), jax.ShapeDtypeStruct((7, 9), jnp.float32)
    once = 2 * 6 * 7 * 9
    assert flops.count_flops(jax.jit(lambda a, b: a[0] @ b), a, b) == once
    assert flops.count_flops(jax.jit(lambda a, b: jax.lax.map(lambda row: row @ b, a)), a, b) == pytest.approx(
        5 * once, 0.01
    )
    twice = jax.jit(
        lambda a, b: jax.lax.scan(
            lambda c, _: (c + jax.lax.map(lambda r: r @ b, a), None), jnp.zeros((5, 6, 9)), None, 3
        )[0]
    )
    assert flops.count_flops(twice, a, b) == pytest.approx(3 * 5 * (once + 6 * 9), 0.02)


def test_convolutions_by_tiles_take_less_than_half_of_the_products(monkeypatch):
    monkeypatch.setattr(conv, "MAX_TILES", 64)  # a picture after the other,
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # as on one device
    zeros = ((1, 1), (1, 1))
    tiles = flops.count_flops(jax.jit(lambda x, k: conv.conv3x3(x, k, zeros)), X, K)
    plain = flops.count_flops(jax.jit(lambda x, k: conv._conv2d_lax(x, k, 1, zeros)), X, K)
    assert 16 / 36 < tiles / plain < 0.75  # with the transforms
