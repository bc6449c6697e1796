"""Shapes, names, parameter counts, and convolutions against ``lax``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax import models, tree
from tl_jax.errors import UserError
from tl_jax.models import layers

pytestmark = pytest.mark.fast

# Values with 1,000 classes, BatchNorm statistics included. ResNet50's is Keras' count.
COUNTS = {"resnet50": 25_636_712, "resnet50_tiny": 87_544, "resnet8": 437_704}


def shapes(model, size=32):
    return jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, size, size, 3))), jax.random.key(0))


def test_every_model_has_a_count():
    assert set(COUNTS) == set(models.names())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert tree.count(shapes(models.create(name, 1000))) == COUNTS[name]


def test_torchvision_layout_has_no_conv_biases_and_pytorchs_count():
    params = shapes(models.create("resnet50", 1000, layout="torchvision"))["params"]
    assert tree.count(params) == 25_557_032  # torchvision's count of parameters
    assert not [p for p in tree.flatten(params) if "conv" in p.split("/")[-2] and p.endswith("bias")]


@pytest.mark.parametrize("size", [32, 33, 97, 224])
def test_endpoints_at_any_size(size):
    model = models.create("resnet50_tiny", 7)
    x = jax.ShapeDtypeStruct((2, size, size + 3, 3), jnp.float32)
    logits, end = jax.eval_shape(lambda v, x: model.apply(v, x), shapes(model), x)
    assert logits.shape == (2, 7)
    assert set(end) == {"stem", "stage1", "stage2", "stage3", "stage4", "features"}
    assert end["features"].shape == (2, 64)
    assert end["stage1"].shape == (2, -(-size // 4), -(-(size + 3) // 4), 32)


def test_without_a_head_the_output_is_features():
    model = models.create("resnet50_tiny", 0)
    v = model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    out, end = model.apply(v, jnp.ones((2, 32, 32, 3)))
    assert "head" not in v["params"]
    np.testing.assert_array_equal(out, end["features"])


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        models.create("resnet5", 10)
    with pytest.raises(UserError, match="did you mean 'layout'"):
        models.create("resnet50", 10, layot="keras")
    with pytest.raises(UserError, match="did you mean 'keras'"):
        models.create("resnet50", 10, layout="kera")


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("kernel,stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolution_as_matrix_product_equals_lax(size, kernel, stride):
    kx, kk = jax.random.split(jax.random.key(size))
    x = jax.random.normal(kx, (2, size, size + 1, 3))
    k = jax.random.normal(kk, (kernel, kernel, 3, 4))

    def loss(f):
        return lambda x, k: (f(x, k, stride) ** 2).sum()

    with jax.default_matmul_precision("float32"):
        ours, lax = layers._conv2d_patches(x, k, stride), layers._conv2d_lax(x, k, stride)
        grads = jax.grad(loss(layers._conv2d_patches), (0, 1))(x, k)
        expected = jax.grad(loss(layers._conv2d_lax), (0, 1))(x, k)
    np.testing.assert_allclose(ours, lax, rtol=1e-5, atol=1e-5)
    for a, b in zip(grads, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_initial_kernels_have_hes_and_glorots_variance():
    kernel = layers.he_uniform(jax.random.key(0), (3, 3, 64, 128))
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    head = layers.glorot_uniform(jax.random.key(0), (256, 300))
    assert float(head.std()) == pytest.approx((2 / 556) ** 0.5, rel=0.02)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = models.create("resnet8", 10, dtype=jnp.bfloat16)
    v = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    logits, end = jax.eval_shape(model.apply, v, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert end["stage1"].dtype == jnp.bfloat16 and logits.dtype == jnp.float32
