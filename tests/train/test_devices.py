"""Compiled programs: kept once per function and shapes, forgotten before the system's limit of memory maps."""

import jax
import jax.numpy as jnp
import pytest

from tl_jax.train import sharding
from tl_jax.utils import compile_cache

pytestmark = pytest.mark.fast


def test_a_program_is_compiled_once_for_equal_shapes():
    double = jax.jit(lambda x: 2 * x)
    first, second = sharding.compile_cached(double, jnp.ones(3)), sharding.compile_cached(double, jnp.zeros(3))
    assert second.execute is first.execute and first.seconds > 0 and second.seconds == 0
    assert sharding.compile_cached(double, jnp.ones(4)).execute is not first.execute


def test_forgetting_gives_memory_maps_back(monkeypatch):
    monkeypatch.setitem(compile_cache._settings, "owned", True)  # as in a command
    kept = [jax.jit(jax.grad(lambda x, i=i: jnp.tanh(x @ x).sum() * i)) for i in range(20)]
    gradients = [function(jnp.ones((5, 5))) for function in kept]
    many = sharding._count_memory_maps()
    sharding.clear_programs()
    assert sharding._count_memory_maps() < many - 20
    assert all((function(jnp.ones((5, 5))) == g).all() for function, g in zip(kept, gradients, strict=True))


def test_room_is_made_before_the_limit_only(monkeypatch):
    double = jax.jit(lambda x: 2 * x)
    first = sharding.compile_cached(double, jnp.ones(3))
    sharding.limit_memory_maps()
    assert sharding.compile_cached(double, jnp.ones(3)).execute is first.execute
    monkeypatch.setattr(sharding, "_count_memory_maps", lambda: 10**9)
    sharding.compile_cached(jax.jit(lambda x: 3 * x), jnp.ones(3))
    again = sharding.compile_cached(double, jnp.ones(3))
    assert again.execute is not first.execute
    assert (again.execute(jnp.ones(3)) == 2).all()
