"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), in the layouts whose weights exist.

layout        padding at stride 2               BatchNorm epsilon   momentum kept   weights
"keras"       TensorFlow's, depends on size     1e-3                0.999           keras.applications
"torchvision" one pixel on each side            1e-5                0.9             torchvision, timm
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import ConvNorm, DropPath, Norm, linear_drop_rates


class Layout(NamedTuple):
    """What differs between sources of weights."""

    padding: str
    norm: Norm


LAYOUTS = {"keras": Layout("same", Norm(1e-3, 0.999)), "torchvision": Layout("half", Norm(1e-5, 0.9))}

# Table 2 of the paper: expansion t, channels c, blocks n and stride s of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round channels to a multiple of ``divisor``, but not down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Block(nn.Module):
    """Inverted residual: ``expand`` 1x1, ``depthwise`` of side ``kernel``, ``project`` 1x1 without activation.

    Only where the shape stays is there a shortcut, and so something to drop at ``drop_rate``.
    """

    expansion: int
    features: int
    stride: int
    layout: Layout
    drop_rate: float
    dtype: Any
    kernel: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers = [("expand", x.shape[-1] * self.expansion, 1, 1), ("depthwise", 0, self.kernel, self.stride)]
        layers.append(("project", self.features, 1, 1))
        y = x
        for name, features, kernel, stride in layers[self.expansion == 1 :]:
            activation = None if name == "project" else nn.relu6
            y = ConvNorm(features, kernel, stride, *self.layout, activation, self.dtype, name=name)(y, train)
        if x.shape != y.shape or self.stride != 1:
            return y
        return x + DropPath(self.drop_rate, name="drop_path")(y, train)


class Stage(nn.Module):
    """A run of blocks, one for each of ``drop_rates``; the first carries the stride."""

    expansion: int
    features: int
    drop_rates: tuple[float, ...]
    stride: int
    layout: Layout
    dtype: Any
    kernel: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_rates, start=1):
            shape = (self.expansion, self.features, self.stride if i == 1 else 1)
            x = Block(*shape, self.layout, rate, self.dtype, self.kernel, name=f"block{i}")(x, train)
        return x


def block_drop_rates(last: float, channels: Sequence[int], rows: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """Return the DropPath rates of the blocks of each stage, 0 for a first block that has no shortcut.

    Args:
        last: rate of the network's last block with a shortcut; see ``linear_drop_rates``.
        channels: of the stem's output and of each stage's, as they are in the network.
        rows: (expansion, channels, blocks, stride, ...) of each stage.
    """
    pairs = zip(rows, pairwise(channels), strict=True)
    no_shortcut = [row[3] != 1 or before != after for row, (before, after) in pairs]
    rates = linear_drop_rates(last, [row[2] - first for row, first in zip(rows, no_shortcut, strict=True)])
    return [(0.0, *stage) if first else stage for stage, first in zip(rates, no_shortcut, strict=True)]


class MobileNetV2(Backbone):
    """MobileNetV2; endpoints ``stem``, ``stage1`` to ``stage7``, ``final`` (N, H / 32, W / 32, 1280), ``features``.

    Attributes:
        width: multiplier of all channels; that of ``final`` only grows.
        stages: rows (expansion, channels, blocks, stride) of the paper's table 2.
        final: channels of the last convolution.
        layout: key into ``LAYOUTS``.
        drop_path: share of the examples whose branch is dropped in the last residual block while training; residual
            block l of L of the whole network has l / L of it (stochastic depth, see ``layers.DropPath``).
    """

    width: float = 1.0
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    final: int = 1280
    layout: str = "keras"
    drop_path: float = 0.0

    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        layout = LAYOUTS[self.layout]
        norm_options = (*layout, nn.relu6, self.dtype)
        widths = [round_channels(channels * self.width) for channels in (32, *(row[1] for row in self.stages))]
        stages: list[tuple[str, StageFactory]] = [
            ("stem", partial(ConvNorm, widths[0], 3, 2, *norm_options, name="stem"))
        ]
        all_rates = block_drop_rates(self.drop_path, widths, self.stages)
        rows = zip(self.stages, widths[1:], all_rates, strict=True)
        for i, ((expansion, _, _, stride), channels, rates) in enumerate(rows, start=1):
            stage = partial(Stage, expansion, channels, rates, stride, layout, self.dtype, name=f"stage{i}")
            stages.append((f"stage{i}", stage))
        final_channels = round_channels(self.final * max(1.0, self.width))
        return [*stages, ("final", partial(ConvNorm, final_channels, 1, 1, *norm_options, name="final"))]
