"""Layers: convolutions against ``lax``, paddings and poolings against values by hand and PyTorch's definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.models import layers
from tl_jax.models.ops import conv

pytestmark = pytest.mark.fast


def agree(ours, reference, *arrays):
    """Compare two functions of the same arrays, and their gradients."""
    with jax.default_matmul_precision("float32"):
        results = [jax.jit(lambda *a, f=f: (f(*a), jax.grad(loss(f), (0, 1))(*a)))(*arrays) for f in (ours, reference)]
    (a, grads_a), (b, grads_b) = results
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(grads_a, grads_b, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def loss(f):
    return lambda *arrays: (f(*arrays) ** 2).sum()


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("window,stride", [((1, 1), 2), ((3, 3), 1), ((3, 3), 2), ((1, 7), 1)])
@pytest.mark.parametrize("padding", ["half", "same"])
def test_convolution_as_matrix_product_equals_lax(size, window, stride, padding):
    kx, kk = jax.random.split(jax.random.key(size))
    x = jax.random.normal(kx, (2, size, size + 1, 3))
    k = jax.random.normal(kk, (*window, 3, 4))
    zeros = conv.compute_padding(x.shape[1:3], window, stride, padding)
    agree(
        lambda x, k: conv._conv2d_patches(x, k, stride, zeros),
        lambda x, k: conv._conv2d_lax(x, k, stride, zeros),
        x,
        k,
    )


@pytest.mark.parametrize(
    "size,window,stride,padding", [(5, (1, 1), 2, "half"), (6, (1, 1), 1, "same"), (1, (3, 3), 1, "half")]
)
def test_what_gpus_compute_as_a_product_equals_lax(size, window, stride, padding, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kx, kk = jax.random.split(jax.random.key(size))
    x, k = jax.random.normal(kx, (2, size, size, 3)), jax.random.normal(kk, (*window, 3, 4))
    zeros = conv.compute_padding(x.shape[1:3], window, stride, padding)
    ours = lambda x, k: conv.conv2d(x, k, stride, zeros)  # noqa: E731
    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, k))
    agree(ours, lambda x, k: conv._conv2d_lax(x, k, stride, zeros), x, k)


@pytest.mark.parametrize("rows,channels", [(64, (96, 3)), (4, (96, 64)), (64, (3, 96))])
def test_sums_of_products_over_rows(rows, channels):
    """Whichever factor is turned over, also for several heads at once."""
    kx, kd = jax.random.split(jax.random.key(rows))
    x, d = jax.random.normal(kx, (2, rows, channels[0])), jax.random.normal(kd, (2, rows, channels[1]))
    with jax.default_matmul_precision("float32"):
        found = jax.jit(jax.vmap(conv.weight_gradient))(x, d)
    np.testing.assert_allclose(found, np.einsum("nrc,nrf->ncf", x, d), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("channels", [(3, 5), (5, 3)])
@pytest.mark.parametrize("zeros", [((1, 1), (1, 1)), ((0, 2), (2, 1)), ((1, 2), (1, 1))])
def test_convolution_by_tiles_equals_lax(size, channels, zeros, monkeypatch):
    monkeypatch.setattr(conv, "MAX_TILES", 8)  # so that some pictures are transformed after others,
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # which they are on one device
    kx, kk = jax.random.split(jax.random.key(size))
    x = jax.random.normal(kx, (4, size, size + 1, channels[0]))
    k = jax.random.normal(kk, (3, 3, *channels))
    agree(lambda x, k: conv.conv3x3(x, k, zeros), lambda x, k: conv._conv2d_lax(x, k, 1, zeros), x, k)


@pytest.mark.parametrize("window,stride,padding", [((3, 3), 2, "same"), ((1, 7), 1, "half"), ((3, 1), 1, "valid")])
def test_convolution_with_gradients_by_taps_equals_lax(window, stride, padding):
    kx, kk = jax.random.split(jax.random.key(0))
    x, k = jax.random.normal(kx, (2, 9, 10, 3)), jax.random.normal(kk, (*window, 3, 4))
    zeros = conv.compute_padding(x.shape[1:3], window, stride, padding)
    ways = conv._conv2d_taps, conv._conv2d_lax
    agree(*[lambda x, k, way=way: way(x, k, stride, zeros) for way in ways], x, k)


def test_tiles_are_as_close_to_the_truth_as_lax():
    """Both against float64: what the transforms lose is of the size of what a long sum loses."""
    kx, kk = jax.random.split(jax.random.key(0))
    x, k = jax.random.normal(kx, (2, 28, 28, 256)), jax.random.normal(kk, (3, 3, 256, 64)) / 48
    ways = [jax.jit(lambda x, k, way=way: way(x, k)) for way in
            (lambda x, k: conv.conv3x3(x, k, ((1, 1), (1, 1))),
             lambda x, k: conv._conv2d_lax(x, k, 1, ((1, 1), (1, 1))))]  # fmt: skip
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    truth = np.einsum("nhwcab,abcf->nhwf", windows, np.asarray(k, np.float64), optimize=True)
    ours, plain = (np.abs(np.asarray(way(x, k)) - truth).max() / np.abs(truth).max() for way in ways)
    assert ours < 3e-6 and ours < 10 * plain


@pytest.mark.parametrize("size,stride,padding", [(5, 1, "half"), (6, 2, "half"), (6, 2, "same"), (7, 2, "same")])
def test_depthwise_convolution_equals_lax(size, stride, padding):
    kx, kk = jax.random.split(jax.random.key(size))
    x = jax.random.normal(kx, (2, size, size + 1, 8))
    k = jax.random.normal(kk, (3, 3, 1, 8))
    zeros = conv.compute_padding(x.shape[1:3], (3, 3), stride, padding)
    agree(
        lambda x, k: conv.depthwise2d(x, k, stride, zeros),
        lambda x, k: conv._conv2d_lax(x, k, stride, zeros, groups=8),
        x,
        k,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 31, 32, 33])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_is_tensorflows_padding(size, window, stride):
    import jax.lax as lax

    expected = lax.padtype_to_pads((size, size + 2), (window, window), (stride, stride), "SAME")
    assert list(conv.compute_padding((size, size + 2), (window, window), stride, "same")) == expected


def test_initial_kernels_have_hes_and_glorots_variance():
    kernel = layers.he_uniform(jax.random.key(0), (3, 3, 64, 128))
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    head = layers.glorot_uniform(jax.random.key(0), (256, 300))
    assert float(head.std()) == pytest.approx((2 / 556) ** 0.5, rel=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 1), (5, 5)])
@pytest.mark.parametrize("window", [(3, 3), (1, 7), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["half", "same"])
def test_what_a_kernel_never_meets_is_left_out(size, window, stride, padding):
    kernel = jnp.arange(window[0] * window[1], dtype=jnp.float32).reshape(*window, 1, 1) + 1
    zeros = conv.compute_padding(size, window, stride, padding)
    met, left = conv.crop_kernel(size, kernel, stride, zeros)
    assert all(pad >= 0 for pair in left for pad in pair)
    x = jax.random.normal(jax.random.key(0), (2, *size, 1))
    whole, part = (conv._conv2d_lax(x, k, stride, pad) for k, pad in ((kernel, zeros), (met, left)))
    np.testing.assert_allclose(whole, part, rtol=1e-5, atol=1e-5)
    if size == (1, 1) and window == (3, 3):
        assert met.shape == (1, 1, 1, 1) and met.item() == 5.0
