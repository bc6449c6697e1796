"""BatchNorm against flax's own, of which it is another way to compute the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tl_jax.models.ops.batch_norm import BatchNorm

pytestmark = pytest.mark.fast
SHAPES = [(6, 5, 4, 3), (8, 7), (1, 1, 1, 4)]


def drawn(shape, dtype=jnp.float32):
    """Return inputs off centre, a cotangent and variables that are not those of the start."""
    keys = jax.random.split(jax.random.key(1), 6)
    channels = shape[-1:]
    x = (2 * jax.random.normal(keys[0], shape) + 3).astype(dtype)
    params = {"scale": jax.random.normal(keys[1], channels), "bias": jax.random.normal(keys[2], channels)}
    stats = {"mean": jax.random.normal(keys[3], channels), "var": jax.random.uniform(keys[4], channels) + 0.5}
    return x, jax.random.normal(keys[5], shape), {"params": params, "batch_stats": stats}


def results(layer, x, cotangent, variables, running):
    """Return outputs, moved statistics, and the gradients of input and parameters."""

    def weighted(x, params):
        y, moved = layer.apply({**variables, "params": params}, x, use_running_average=running, mutable=["batch_stats"])
        return (y.astype(jnp.float32) * cotangent).sum(), (y, moved)

    (_, aux), grads = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(x, variables["params"])
    return aux, grads


def compare(kind, x, cotangent, variables, running, tolerance, **options):
    ours, theirs = (
        results(layer(momentum=0.8, epsilon=1e-3, **options), x, cotangent, variables, running)
        for layer in (BatchNorm, nn.BatchNorm)
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(np.float32(mine), np.float32(other), atol=tolerance * scale, rtol=0, err_msg=kind)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_statistics_and_gradients_are_those_of_flax(shape, running):
    compare("float32", *drawn(shape), running, 2e-5)


@pytest.mark.parametrize("running", [False, True])
def test_bfloat16_inputs_are_normalised_in_float32(running):
    compare("bfloat16", *drawn((16, 6, 6, 3), jnp.bfloat16), running, 1e-2, dtype=jnp.bfloat16)


def test_a_layer_without_scale_has_no_such_parameter():
    x, cotangent, variables = drawn((6, 5, 4, 3))
    variables = {**variables, "params": {"bias": variables["params"]["bias"]}}
    compare("bias", x, cotangent, variables, False, 2e-5, use_scale=False)


def test_the_start_is_that_of_flax_and_leaves_the_statistics_alone():
    x = drawn((6, 5, 4, 3))[0]
    ours, theirs = (layer(use_running_average=False).init(jax.random.key(0), x) for layer in (BatchNorm, nn.BatchNorm))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_gradients_are_those_of_finite_differences():
    x, _, variables = drawn((4, 3, 3, 2))
    layer = BatchNorm(use_running_average=False)

    def apply(x, params):
        return layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    check_grads(apply, (x, variables["params"]), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)
