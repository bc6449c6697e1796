"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), in the layouts of published weights.

layout        padding at stride 2               BatchNorm epsilon   momentum kept   weights
"keras"       TensorFlow's, depends on size     1e-3                0.999           keras.applications
"torchvision" one pixel on each side            1e-5                0.9             torchvision, timm
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from tl_jax.models import keras_names
from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import ConvNorm, DropPath, Norm, linear_drop_rates
from tl_jax.models.registry import (
    GOOGLE,
    KERAS_LAYOUT,
    TORCH_LAYOUT,
    keras_weights,
    register_model,
    timm_weights,
    torchvision_weights,
)
from tl_jax.models.rules import (
    COUNTERS,
    NATIVE_RULE,
    Rule,
    Shapes,
    Table,
    hwc1_to_hw1c,
    keras_layer,
    keras_norm,
    torch_conv,
    torch_dense,
    torch_norm,
)


class Layout(NamedTuple):
    """Differences between sources of weights."""

    padding: str
    norm: Norm


LAYOUTS = {"keras": Layout("same", Norm(1e-3, 0.999)), "torchvision": Layout("half", Norm(1e-5, 0.9))}

# Table 2 of the paper: expansion t, channels c, blocks n and stride s of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round channels to a multiple of ``divisor``, but not down by more than 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Block(nn.Module):
    """Inverted residual: ``expand`` 1x1, ``depthwise`` of size ``kernel``, ``project`` 1x1 without activation.

    The block has a shortcut, which ``drop_rate`` needs, only if it keeps the shape.
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
    """A sequence of blocks, one for each of ``drop_rates``; the first has the stride."""

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
    """Return the DropPath rates of the blocks of each stage, 0 for a first block without a shortcut.

    Args:
        last: rate of the network's last block with a shortcut; see ``linear_drop_rates``.
        channels: channels of the stem and of each stage in the network.
        rows: (expansion, channels, blocks, stride, ...) of each stage.
    """
    pairs = zip(rows, pairwise(channels), strict=True)
    no_shortcut = [row[3] != 1 or before != after for row, (before, after) in pairs]
    rates = linear_drop_rates(last, [row[2] - first for row, first in zip(rows, no_shortcut, strict=True)])
    return [(0.0, *stage) if first else stage for stage, first in zip(rates, no_shortcut, strict=True)]


class MobileNetV2(Backbone):
    """MobileNetV2; endpoints ``stem``, ``stage1`` to ``stage7``, ``final`` (N, H / 32, W / 32, 1280), ``features``.

    Attributes:
        width: multiplier of all channels; ``final`` is only increased.
        stages: rows (expansion, channels, blocks, stride) of the paper's table 2.
        final: channels of the last convolution.
        layout: key into ``LAYOUTS``.
        drop_path: stochastic depth rate of the last residual block; block l of L has the rate l / L * drop_path (see
            ``layers.DropPath``).
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


# ---- names in files of other libraries

_MOBILENET_UNITS = ("expand", "depthwise", "project")


def _mobilenet_blocks(depths: Sequence[int]) -> Iterator[tuple[int, int, int, tuple[str, ...]]]:
    """Yield (number from 0 on, stage, block, its units) for every block; the first does not expand."""
    number = 0
    for stage, depth in enumerate(depths, start=1):
        for block in range(1, depth + 1):
            yield number, stage, block, _MOBILENET_UNITS[number == 0 :]
            number += 1


def _mobilenet_keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``block_1_expand``; published files, with names like ``mobl1_conv_1_expand``, go by order."""
    rules = keras_layer("Conv1", "stem/conv") + keras_norm("bn_Conv1", "stem/bn")
    rules += keras_layer("Conv_1", "final/conv") + keras_norm("Conv_1_bn", "final/bn")
    rules += keras_layer("predictions", "head")
    layers = [("stem/conv", "conv"), ("stem/bn", "norm")]
    for number, stage, block, units in _mobilenet_blocks(depths):
        for unit in units:
            theirs, ours = (
                f"block_{number}_{unit}" if number else f"expanded_conv_{unit}",
                f"stage{stage}/block{block}/{unit}",
            )
            depthwise = unit == "depthwise"
            rules += keras_layer(theirs, f"{ours}/conv", *([hwc1_to_hw1c] if depthwise else []))
            rules += keras_norm(f"{theirs}_BN", f"{ours}/bn")
            layers += [(f"{ours}/conv", "depthwise" if depthwise else "conv"), (f"{ours}/bn", "norm")]
    layers += [("final/conv", "conv"), ("final/bn", "norm"), ("head", "dense")]
    by_order = [Rule(r"(params/.*/depthwise/conv/kernel)", r"\1", hwc1_to_hw1c)]
    by_order.append(NATIVE_RULE._replace(pattern=r"((?:params|batch_stats)/(?!.*/depthwise/conv/kernel).*)"))
    trunk = r"(?:Conv1|bn_Conv1|Conv_1(_bn)?|(expanded_conv|block_\d+)_(expand|depthwise|project)(_BN)?)"
    keras_layers = keras_names.make_layers(layers)
    names = keras_names.make_renamer(keras_layers, sequential=True, known_names=f"{trunk}|predictions")
    return Table([*rules, *by_order], map_names=names, layers=keras_layers, trunk_pattern=f"{trunk}/.*")


def _mobilenet_torchvision(depths: Sequence[int]) -> Table:
    """torchvision: ``features.1.conv.0.0.weight``, blocks numbered consecutively, including the last convolution.

    Older files (``features.1.conv.0.weight``) number the convolutions, BatchNorms and ReLU6s of a block consecutively.
    """
    last = sum(depths) + 1
    rules = torch_conv(r"features\.0\.0", "stem/conv") + torch_norm(r"features\.0\.1", "stem/bn")
    rules += torch_conv(rf"features\.{last}\.0", "final/conv") + torch_norm(rf"features\.{last}\.1", "final/bn")
    rules += torch_dense(r"classifier\.1", "head")
    for number, stage, block, units in _mobilenet_blocks(depths):
        for i, unit in enumerate(units):
            prefix, ours = rf"features\.{number + 1}\.conv\.", f"stage{stage}/block{block}/{unit}"
            conv, norm = (f"{i}", f"{i + 1}") if unit == "project" else (rf"{i}\.0", rf"{i}\.1")
            rules += torch_conv(prefix + conv, f"{ours}/conv") + torch_norm(prefix + norm, f"{ours}/bn")
    return Table(rules, COUNTERS, map_names=_modern_names)


def _modern_names(arrays: Mapping[str, np.ndarray], _: Shapes) -> Mapping[str, str]:
    """Map the names in files from before torchvision 0.3 to current ones."""
    if not any(re.fullmatch(r"features\.\d+\.conv\.[4-7]\..*", name) for name in arrays):
        return {name: name for name in arrays}
    blocks = {m[1] for name in arrays if (m := re.fullmatch(r"features\.(\d+)\.conv\.[67]\..*", name))}

    def rename(match: re.Match[str]) -> str:
        """Return the current name of a layer; the last convolution of a block and its BatchNorm have no sub-index."""
        unit, position = divmod(int(match[2]), 3)
        last = 2 if match[1] in blocks else 1
        return f"features.{match[1]}.conv.{unit + position if unit == last else f'{unit}.{position}'}."

    return {name: re.sub(r"^features\.(\d+)\.conv\.(\d)\.", rename, name) for name in arrays}


def _mobilenet_timm(depths: Sequence[int]) -> Table:
    """timm: ``blocks.1.0.conv_pw.weight``, with stages and blocks numbered from 0."""
    rules = torch_conv("conv_stem", "stem/conv") + torch_norm("bn1", "stem/bn")
    rules += torch_conv("conv_head", "final/conv") + torch_norm("bn2", "final/bn") + torch_dense("classifier", "head")
    for number, stage, block, units in _mobilenet_blocks(depths):
        names = ("conv_pw", "conv_dw", "conv_pwl") if number else ("conv_dw", "conv_pw")
        for i, (unit, name) in enumerate(zip(units, names, strict=True), start=1):
            prefix, ours = rf"blocks\.{stage - 1}\.{block - 1}\.", f"stage{stage}/block{block}/{unit}"
            rules += torch_conv(prefix + name, f"{ours}/conv") + torch_norm(f"{prefix}bn{i}", f"{ours}/bn")
    return Table(rules, COUNTERS)


def mobilenet_tables(depths: Sequence[int]) -> dict[str, Table]:
    """Return the tables by source."""
    return {
        "keras": _mobilenet_keras(depths),
        "torchvision": _mobilenet_torchvision(depths),
        "timm": _mobilenet_timm(depths),
    }


# ---- the networks of the family, and their weights

_BLOCKS = tuple(row[2] for row in STAGES)
_TINY_STAGES = ((1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 1, 2), (6, 16, 1, 2))

register_model(
    "mobilenet_v2",
    MobileNetV2,
    tables=mobilenet_tables(_BLOCKS),
    weights=(
        keras_weights(
            "mobilenet_v2/mobilenet_v2_*_1.0_224",
            GOOGLE,
            71.3,
            90.1,
            3_538_984,
            headless="_no_top",
            scaling="tf",
            options=KERAS_LAYOUT,
        ),
        torchvision_weights("mobilenet_v2-b0353104.pth", 71.878, 90.286, 3_504_872, options=TORCH_LAYOUT),
        timm_weights(
            "mobilenetv2_100.ra_in1k",
            72.976,
            91.01,
            3_504_872,
            sha256="55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e",
            interpolation="bicubic",
            options=TORCH_LAYOUT,
        ),
    ),
)
register_model(
    "mobilenet_v2_035",
    MobileNetV2,
    {"width": 0.35},
    tables=mobilenet_tables(_BLOCKS),
    weights=(
        keras_weights(
            "mobilenet_v2/mobilenet_v2_*_0.35_224",
            GOOGLE,
            60.1,
            82.4,
            1_691_208,
            headless="_no_top",
            scaling="tf",
            options=KERAS_LAYOUT,
        ),
    ),
)
register_model(
    "mobilenet_v2_050",
    MobileNetV2,
    {"width": 0.5},
    tables=mobilenet_tables(_BLOCKS),
    weights=(
        keras_weights(
            "mobilenet_v2/mobilenet_v2_*_0.5_224",
            GOOGLE,
            65.2,
            86.1,
            1_987_224,
            headless="_no_top",
            scaling="tf",
            options=KERAS_LAYOUT,
        ),
        timm_weights(
            "mobilenetv2_050.lamb_in1k", 65.95, 86.088, 1_968_680, interpolation="bicubic", options=TORCH_LAYOUT
        ),
    ),
)
register_model(
    "mobilenet_v2_075",
    MobileNetV2,
    {"width": 0.75},
    tables=mobilenet_tables(_BLOCKS),
    weights=(
        keras_weights(
            "mobilenet_v2/mobilenet_v2_*_0.75_224",
            GOOGLE,
            69.5,
            89.2,
            2_663_064,
            headless="_no_top",
            scaling="tf",
            options=KERAS_LAYOUT,
        ),
    ),
)
register_model(
    "mobilenet_v2_130",
    MobileNetV2,
    {"width": 1.3},
    tables=mobilenet_tables(_BLOCKS),
    weights=(
        keras_weights(
            "mobilenet_v2/mobilenet_v2_*_1.3_224",
            GOOGLE,
            74.7,
            92.1,
            5_431_048,
            headless="_no_top",
            scaling="tf",
            options=KERAS_LAYOUT,
        ),
    ),
)
register_model(
    "mobilenet_v2_140",
    MobileNetV2,
    {"width": 1.4},
    tables=mobilenet_tables(_BLOCKS),
    weights=(
        keras_weights(
            "mobilenet_v2/mobilenet_v2_*_1.4_224",
            GOOGLE,
            75.2,
            92.4,
            6_156_712,
            headless="_no_top",
            scaling="tf",
            options=KERAS_LAYOUT,
        ),
        timm_weights(
            "mobilenetv2_140.ra_in1k", 76.52, 92.986, 6_108_776, interpolation="bicubic", options=TORCH_LAYOUT
        ),
    ),
)
# All kinds of layers of the family, for tests and smoke tests.
register_model(
    "mobilenet_v2_tiny",
    MobileNetV2,
    {"width": 0.5, "stages": _TINY_STAGES, "final": 64},
    tables=mobilenet_tables((1, 2, 1, 1)),
    like="mobilenet_v2",
)
