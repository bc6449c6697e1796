"""Residual networks (He et al. 2016, arXiv:1512.03385), in the layouts whose weights exist in the wild.

The layouts compute different things from the same shapes, so weights of one give wrong answers in the other:

    layout        stride 2 sits in       conv bias   BatchNorm epsilon   momentum kept   weights
    "keras"       the first 1x1 (v1)     yes         1.001e-5            0.99            keras.applications
    "torchvision" the 3x3 (v1.5)         no          1e-5                0.9             torchvision

``ResNetV2`` is the network with pre-activation (arXiv:1603.05027) as keras.applications builds it. Differences from the
paper's: the stride of a stage sits in its last block, and the stem has neither BatchNorm nor ReLU.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import Conv, DropPath, Norm, linear_drop_rates
from tl_jax.models.ops.batch_norm import BatchNorm
from tl_jax.models.ops.pooling import max_pool


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
    a stage has a ``shortcut`` convolution where the shape changes. ``drop_rate`` is that of ``DropPath``.
    """

    width: int
    stride: int
    bottleneck: bool
    layout: Layout
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out_features = self.width * (4 if self.bottleneck else 1)
        first, second = (1, self.stride) if self.bottleneck and self.layout.stride_in_3x3 else (self.stride, 1)
        layers = [(self.width, 1, first), (self.width, 3, second), (out_features, 1, 1)]
        if not self.bottleneck:
            layers = [(self.width, 3, first), (out_features, 3, second)]
        y = x
        for i, (features, kernel, stride) in enumerate(layers, start=1):
            y = self._conv_norm(y, features, kernel, stride, f"conv{i}", f"bn{i}", train)
            y = nn.relu(y) if i < len(layers) else y
        if x.shape != y.shape:
            x = self._conv_norm(x, out_features, 1, self.stride, "shortcut_conv", "shortcut_bn", train)
        return nn.relu(x + DropPath(self.drop_rate, name="drop_path")(y, train))

    def _conv_norm(self, x, features, kernel, stride, conv_name, norm_name, train):
        x = Conv(features, kernel, stride, use_bias=self.layout.conv_bias, dtype=self.dtype, name=conv_name)(x)
        return batch_norm(self.layout, self.dtype, norm_name)(x, use_running_average=not train)


def batch_norm(layout: Layout, dtype: Any, name: str) -> BatchNorm:
    """Return the BatchNorm of a layout."""
    return BatchNorm(epsilon=layout.epsilon, momentum=layout.momentum, dtype=dtype, name=name)


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
    """A run of blocks at one resolution, one for each of ``drop_rates``; the first block carries the stride."""

    drop_rates: tuple[float, ...]
    stride: int
    make_block: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_rates, start=1):
            x = self.make_block(stride=self.stride if i == 1 else 1, drop_rate=rate, name=f"block{i}")(x, train)
        return x


class ResNet(Backbone):
    """Residual network; endpoints ``stem`` (after pooling), ``stage1``, ``stage2``, ..., ``features``.

    Attributes:
        depths: blocks in each stage.
        widths: channels of each stage before expansion.
        bottleneck: 1x1-3x3-1x1 blocks if true, else 3x3-3x3.
        stem_kernel: 7 (with max pooling, ImageNet) or 3 (CIFAR-style).
        stem_stride: stride of the stem convolution.
        layout: key into ``LAYOUTS``.
        drop_path: share of the examples whose branch is dropped in the last block while training; block l of L of the
            whole network has l / L of it (stochastic depth, see ``layers.DropPath``).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    stem_kernel: int = 7
    stem_stride: int = 2
    layout: str = "keras"
    drop_path: float = 0.0

    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        layout = LAYOUTS[self.layout]
        stem = partial(Stem, self.widths[0], self.stem_kernel, self.stem_stride, layout, self.dtype, name="stem")
        stages: list[tuple[str, StageFactory]] = [("stem", stem)]
        rates = linear_drop_rates(self.drop_path, self.depths)
        for i, (width, stage_rates) in enumerate(zip(self.widths, rates, strict=True), start=1):
            make_block = partial(Block, width=width, bottleneck=self.bottleneck, layout=layout, dtype=self.dtype)
            stages.append((f"stage{i}", partial(Stage, stage_rates, 1 if i == 1 else 2, make_block, name=f"stage{i}")))
        return stages


NORM = Norm(epsilon=1.001e-5, momentum=0.99)


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of 1x1, 3x3, 1x1, (N, H, W, C) -> (N, H / stride, W / stride, 4 width)."""

    width: int
    stride: int
    first: bool
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activated = self._norm_relu(x, "preact_bn", train)
        if self.first:
            shortcut = self._conv(activated, 4 * self.width, 1, self.stride, "shortcut_conv", bias=True)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        y = self._conv(activated, self.width, 1, 1, "conv1")
        y = self._conv(self._norm_relu(y, "bn1", train), self.width, 3, self.stride, "conv2")
        y = self._conv(self._norm_relu(y, "bn2", train), 4 * self.width, 1, 1, "conv3", bias=True)
        return shortcut + DropPath(self.drop_rate, name="drop_path")(y, train)

    def _norm_relu(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return nn.relu(NORM.layer(self.dtype, name)(x, use_running_average=not train))

    def _conv(self, x: jax.Array, features: int, kernel: int, stride: int, name: str, bias: bool = False) -> jax.Array:
        return Conv(features, kernel, stride, use_bias=bias, dtype=self.dtype, name=name)(x)


class PreActStage(nn.Module):
    """One block for each of ``drop_rates``; the first has a convolution on its shortcut, the last the stride."""

    drop_rates: tuple[float, ...]
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_rates, start=1):
            stride = self.stride if i == len(self.drop_rates) else 1
            x = PreActBlock(self.width, stride, i == 1, rate, self.dtype, name=f"block{i}")(x, train)
        return x


class PreActStem(nn.Module):
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

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        stages: list[tuple[str, StageFactory]] = [
            ("stem", partial(PreActStem, self.widths[0], self.dtype, name="stem"))
        ]
        last, rates = len(self.depths), linear_drop_rates(self.drop_path, self.depths)
        for i, (width, stage_rates) in enumerate(zip(self.widths, rates, strict=True), start=1):
            stage = partial(PreActStage, stage_rates, width, 1 if i == last else 2, self.dtype, name=f"stage{i}")
            stages.append((f"stage{i}", stage))
        return [*stages, ("final", partial(Final, self.dtype, name="final"))]
