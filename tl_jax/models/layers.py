"""Layers shared by the image models."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Where XLA's CPU convolution falls behind a matrix product (see Conv): pictures of at most this many pixels a side.
SMALL_PICTURE = 8


def fan_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, fan: float, gain: float) -> jax.Array:
    """Draw uniformly with variance ``gain / fan``.

    The draw is flat and then shaped: XLA compiles it four times faster than the same values drawn in four dimensions.
    """
    bound = math.sqrt(3 * gain / fan)
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def he_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialise kernels that ReLU follows (He et al. 2015, arXiv:1502.01852)."""
    return fan_uniform(key, shape, dtype, fan=math.prod(shape[:-1]), gain=2.0)


def glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialise heads (Glorot and Bengio 2010), as Keras does by default."""
    return fan_uniform(key, shape, dtype, fan=sum(shape) / 2, gain=1.0)


class Conv(nn.Module):
    """2-D convolution with explicit symmetric padding, (N, H, W, C) -> (N, H', W', features).

    On CPU, 1x1 kernels and small pictures are computed as a matrix product of patches: XLA's CPU convolution reaches
    a tenth of the machine's rate there. Elsewhere it is ``lax.conv_general_dilated``. Both give the same values up to
    float32 rounding.

    Attributes:
        features: output channels.
        kernel: side of the square kernel in pixels.
        stride: step of the window in pixels, both axes.
        use_bias: add a bias per output channel.
        dtype: of the computation; parameters are float32.
    """

    features: int
    kernel: int
    stride: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = he_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = conv2d(x.astype(self.dtype), kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


def conv2d(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve (N, H, W, C) with (k, k, C, F), padded by ``(k - 1) // 2`` zeros on each side."""
    small = kernel.shape[0] == 1 or (max(x.shape[1:3]) <= SMALL_PICTURE and kernel.shape[0] <= 3)
    if small and jax.default_backend() == "cpu":
        return _conv2d_patches(x, kernel, stride)
    return _conv2d_lax(x, kernel, stride)


def _conv2d_lax(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv2d_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    k = kernel.shape[0]
    pad = (k - 1) // 2
    n, h, w, c = x.shape
    rows, cols = (h + 2 * pad - k) // stride + 1, (w + 2 * pad - k) // stride + 1
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    high, wide = (rows - 1) * stride + 1, (cols - 1) * stride + 1
    steps = (1, stride, stride, 1)
    windows = [lax.slice(x, (0, i, j, 0), (n, i + high, j + wide, c), steps) for i in range(k) for j in range(k)]
    return jnp.concatenate(windows, axis=-1) @ kernel.reshape(k * k * c, -1)


def max_pool(x: jax.Array, window: int, stride: int, pad: int) -> jax.Array:
    """Maximum over windows of (N, H, W, C), padded with minus infinity on each side."""
    return nn.max_pool(x, (window, window), (stride, stride), [(pad, pad)] * 2)
