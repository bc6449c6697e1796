"""Residual networks with pre-activation (He et al. 2016, arXiv:1603.05027), as keras.applications builds them.

Differences from the paper's: the stride of a stage sits in its last block, and the stem has neither BatchNorm nor ReLU.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.backbone import Backbone, Part
from tl_jax.models.layers import Conv, DropPath, Norm, linear_drop_rates
from tl_jax.models.ops.pooling import max_pool

NORM = Norm(epsilon=1.001e-5, momentum=0.99)


class Block(nn.Module):
    """BatchNorm and ReLU before each of 1x1, 3x3, 1x1, (N, H, W, C) -> (N, H / stride, W / stride, 4 width)."""

    width: int
    stride: int
    first: bool
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        active = self._active(x, "preact_bn", train)
        if self.first:
            shortcut = self._conv(active, 4 * self.width, 1, self.stride, "shortcut_conv", bias=True)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        y = self._conv(active, self.width, 1, 1, "conv1")
        y = self._conv(self._active(y, "bn1", train), self.width, 3, self.stride, "conv2")
        y = self._conv(self._active(y, "bn2", train), 4 * self.width, 1, 1, "conv3", bias=True)
        return shortcut + DropPath(self.drop_rate, name="drop_path")(y, train)

    def _active(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return nn.relu(NORM.layer(self.dtype, name)(x, use_running_average=not train))

    def _conv(self, x: jax.Array, features: int, kernel: int, stride: int, name: str, bias: bool = False) -> jax.Array:
        return Conv(features, kernel, stride, use_bias=bias, dtype=self.dtype, name=name)(x)


class Stage(nn.Module):
    """One block for each of ``drop_rates``; the first has a convolution on its shortcut, the last the stride."""

    drop_rates: tuple[float, ...]
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_rates, start=1):
            stride = self.stride if i == len(self.drop_rates) else 1
            x = Block(self.width, stride, i == 1, rate, self.dtype, name=f"block{i}")(x, train)
        return x


class Stem(nn.Module):
    """7x7 convolution at stride 2 and max pooling; the pooling is padded with zeros, which are no bound here."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.width, 7, 2, use_bias=True, dtype=self.dtype, name="conv")(x)
        return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), window=3, stride=2)


class Final(nn.Module):
    """BatchNorm and ReLU after the last block."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.relu(NORM.layer(self.dtype, "bn")(x, use_running_average=not train))


class ResNetV2(Backbone):
    """Pre-activation ResNet; endpoints ``stem``, ``stage1`` to ``stage4``, ``final``, ``features``.

    Attributes:
        depths: blocks in each stage.
        widths: channels of each stage before the expansion by 4.
        drop_path: share of the examples whose branch is dropped in the last block while training; block l of L of the
            whole network has l / L of it (stochastic depth, see ``layers.DropPath``).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    drop_path: float = 0.0

    def parts(self) -> Sequence[tuple[str, Part]]:
        parts: list[tuple[str, Part]] = [("stem", partial(Stem, self.widths[0], self.dtype, name="stem"))]
        last, rates = len(self.depths), linear_drop_rates(self.drop_path, self.depths)
        for i, (width, stage_rates) in enumerate(zip(self.widths, rates, strict=True), start=1):
            stage = partial(Stage, stage_rates, width, 1 if i == last else 2, self.dtype, name=f"stage{i}")
            parts.append((f"stage{i}", stage))
        return [*parts, ("final", partial(Final, self.dtype, name="final"))]
