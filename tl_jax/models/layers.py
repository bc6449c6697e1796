"""Layers shared by the image models."""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.ops.batch_norm import BatchNorm
from tl_jax.models.ops.conv import compute_padding, conv2d, depthwise2d
from tl_jax.utils.errors import UserError


def fan_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, fan: float, gain: float) -> jax.Array:
    """Sample uniformly with variance ``gain / fan``.

    Values are sampled flat and then reshaped, which XLA compiles four times faster than sampling in four dimensions.
    """
    bound = math.sqrt(3 * gain / fan)
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def he_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialize kernels before a ReLU (He et al. 2015, arXiv:1502.01852)."""
    return fan_uniform(key, shape, dtype, fan=math.prod(shape[:-1]), gain=2.0)


def glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialize heads (Glorot and Bengio 2010), as Keras does by default."""
    return fan_uniform(key, shape, dtype, fan=sum(shape) / 2, gain=1.0)


class Conv(nn.Module):
    """2-D convolution, (N, H, W, C) -> (N, H', W', features).

    On CPU, 1x1 kernels and small images are computed as a matrix product of patches, since XLA's CPU convolution
    reaches a tenth of the machine's throughput there. On GPU, 1x1 kernels are matrix products and the rest is
    ``lax.conv_general_dilated`` (``ops.conv.fastest_method``). All agree up to float32 rounding.

    Attributes:
        features: output channels.
        kernel: kernel size in pixels, or (height, width).
        stride: stride in pixels, both axes.
        padding: see ``compute_padding``.
        use_bias: add a bias per output channel.
        dtype: computation dtype; parameters are float32.
        kernel_init: initializer of the kernel.
    """

    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = "half"
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = he_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features), jnp.float32)
        padding = compute_padding(x.shape[1:3], window, self.stride, self.padding)
        x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


class DepthwiseConv(nn.Module):
    """Depthwise convolution, (N, H, W, C) -> (N, H', W', C), with kernel (h, w, 1, C). Attributes as in ``Conv``."""

    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = "half"
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        kernel = self.param("kernel", he_uniform, (*window, 1, x.shape[-1]), jnp.float32).astype(self.dtype)
        padding = compute_padding(x.shape[1:3], window, self.stride, self.padding)
        channels, x = x.shape[-1], depthwise2d(x.astype(self.dtype), kernel, self.stride, padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


class Norm(NamedTuple):
    """BatchNorm settings of a source of weights; ``momentum`` is the fraction of the old statistics that is kept."""

    epsilon: float
    momentum: float
    scale: bool = True

    def layer(self, dtype: Any, name: str) -> BatchNorm:
        """Return the BatchNorm layer."""
        return BatchNorm(epsilon=self.epsilon, momentum=self.momentum, use_scale=self.scale, dtype=dtype, name=name)


class ConvNorm(nn.Module):
    """``conv`` (depthwise with ``features=0``), ``bn``, activation; attributes as in ``Conv``."""

    features: int
    kernel: int | tuple[int, int]
    stride: int
    padding: str
    norm: Norm
    activation: Callable[[jax.Array], jax.Array] | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        options = {"padding": self.padding, "dtype": self.dtype, "name": "conv"}
        if self.features:
            x = Conv(self.features, self.kernel, self.stride, **options)(x)
        else:
            x = DepthwiseConv(self.kernel, self.stride, **options)(x)
        x = self.norm.layer(self.dtype, "bn")(x, use_running_average=not train)
        return self.activation(x) if self.activation else x


class DropPath(nn.Module):
    """Stochastic depth on a residual branch, (N, ..., C) -> the same, with the rng "dropout" during training.

    Each example loses its branch with probability ``rate``. Kept branches are divided by 1 - rate, so evaluation needs
    no factor, as in timm. The paper (Huang et al. 2016, arXiv:1603.09382) samples once per batch and scales in
    evaluation.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        keep_mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (len(x), *[1] * (x.ndim - 1)))
        return jnp.where(keep_mask, x / (1 - self.rate), 0)


def linear_drop_rates(last: float, counts: Sequence[int]) -> list[tuple[float, ...]]:
    """Return the DropPath rates for stages of ``counts`` residual blocks: block l of L has the rate l / L * last."""
    if not 0 <= last < 1:
        raise UserError(f"drop_path={last}: out of range; it must be at least 0 and below 1")
    total = sum(counts)
    rates = (block / total * last for block in range(1, total + 1))
    return [tuple(islice(rates, count)) for count in counts]
