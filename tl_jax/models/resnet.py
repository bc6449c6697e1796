"""Residual networks (He et al. 2016, arXiv:1512.03385), in the layouts whose weights exist in the wild.

The layouts compute different things from the same shapes, so weights of one give wrong answers in the other:

    layout        stride 2 sits in       conv bias   BatchNorm epsilon   momentum kept   weights
    "keras"       the first 1x1 (v1)     yes         1.001e-5            0.99            keras.applications
    "torchvision" the 3x3 (v1.5)         no          1e-5                0.9             torchvision
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.layers import Conv, glorot_uniform, max_pool


class Layout(NamedTuple):
    """What differs between sources of weights; ``momentum`` is the share of the old statistics that is kept."""

    stride_in_3x3: bool
    conv_bias: bool
    epsilon: float
    momentum: float


LAYOUTS = {
    "keras": Layout(stride_in_3x3=False, conv_bias=True, epsilon=1.001e-5, momentum=0.99),
    "torchvision": Layout(stride_in_3x3=True, conv_bias=False, epsilon=1e-5, momentum=0.9),
}


class Block(nn.Module):
    """One residual block, (N, H, W, C) -> (N, H / stride, W / stride, width * expansion).

    ``bottleneck`` blocks are 1x1, 3x3, 1x1 with expansion 4; basic ones 3x3, 3x3 with expansion 1. The first block of
    a stage has a ``shortcut`` convolution where the shape changes.
    """

    width: int
    stride: int
    bottleneck: bool
    layout: Layout
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out = self.width * (4 if self.bottleneck else 1)
        first, second = (1, self.stride) if self.bottleneck and self.layout.stride_in_3x3 else (self.stride, 1)
        plan = [(self.width, 1, first), (self.width, 3, second), (out, 1, 1)]
        if not self.bottleneck:
            plan = [(self.width, 3, first), (out, 3, second)]
        y = x
        for i, (features, kernel, stride) in enumerate(plan, start=1):
            y = self._conv_norm(y, features, kernel, stride, f"conv{i}", f"bn{i}", train)
            y = nn.relu(y) if i < len(plan) else y
        if x.shape != y.shape:
            x = self._conv_norm(x, out, 1, self.stride, "shortcut_conv", "shortcut_bn", train)
        return nn.relu(x + y)

    def _conv_norm(self, x, features, kernel, stride, conv_name, norm_name, train):
        x = Conv(features, kernel, stride, use_bias=self.layout.conv_bias, dtype=self.dtype, name=conv_name)(x)
        return batch_norm(self.layout, self.dtype, norm_name)(x, use_running_average=not train)


def batch_norm(layout: Layout, dtype: Any, name: str) -> nn.BatchNorm:
    """Return the BatchNorm of a layout."""
    return nn.BatchNorm(epsilon=layout.epsilon, momentum=layout.momentum, dtype=dtype, name=name)


class Stem(nn.Module):
    """First layers: 7x7 stride 2 and max pooling (``kernel=7``), or one 3x3 for small pictures (``kernel=3``)."""

    width: int
    kernel: int
    stride: int
    layout: Layout
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        bias = self.layout.conv_bias
        x = Conv(self.width, self.kernel, self.stride, use_bias=bias, dtype=self.dtype, name="conv")(x)
        x = nn.relu(batch_norm(self.layout, self.dtype, "bn")(x, use_running_average=not train))
        return max_pool(x, window=3, stride=2, pad=1) if self.kernel == 7 else x


class Stage(nn.Module):
    """A run of blocks at one resolution; the first block carries the stride."""

    depth: int
    stride: int
    make_block: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.depth + 1):
            x = self.make_block(stride=self.stride if i == 1 else 1, name=f"block{i}")(x, train)
        return x


class ResNet(nn.Module):
    """Residual network, (N, H, W, 3) float -> (logits (N, K), endpoints).

    Endpoints: ``stem`` (after pooling), ``stage1``, ``stage2``, ... (N, H', W', C), ``features`` (N, D), the global
    average of the last stage. With ``num_classes=0`` there is no head and the first output is ``features``.

    Attributes:
        num_classes: K, 0 for no head.
        depths: blocks in each stage.
        widths: channels of each stage before expansion.
        bottleneck: 1x1-3x3-1x1 blocks if true, else 3x3-3x3.
        stem_kernel: 7 (with max pooling, ImageNet) or 3 (CIFAR-style).
        stem_stride: stride of the stem convolution.
        layout: key into ``LAYOUTS``.
        dtype: of the computation; parameters and statistics are float32.
    """

    num_classes: int
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    stem_kernel: int = 7
    stem_stride: int = 2
    layout: str = "keras"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        layout = LAYOUTS[self.layout]
        end = {}
        x = Stem(self.widths[0], self.stem_kernel, self.stem_stride, layout, self.dtype, name="stem")(x, train)
        end["stem"] = x
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            make = functools.partial(Block, width=width, bottleneck=self.bottleneck, layout=layout, dtype=self.dtype)
            x = end[f"stage{i}"] = Stage(depth, 1 if i == 1 else 2, make, name=f"stage{i}")(x, train)
        end["features"] = features = x.astype(jnp.float32).mean(axis=(1, 2))
        if not self.num_classes:
            return features, end
        return nn.Dense(self.num_classes, kernel_init=glorot_uniform, name="head")(features), end
