"""Residual networks (He et al. 2016, arXiv:1512.03385), in the layouts of published weights.

The layouts compute different functions from the same shapes, so weights of one give wrong results in the other:

    layout        stride 2 is in         conv bias   BatchNorm epsilon   momentum kept   weights
    "keras"       the first 1x1 (v1)     yes         1.001e-5            0.99            keras.applications
    "torchvision" the 3x3 (v1.5)         no          1e-5                0.9             torchvision

``ResNetV2`` is the pre-activation network (arXiv:1603.05027) as built by keras.applications. Unlike the paper's, the
stride of a stage is in its last block, and the stem has neither BatchNorm nor ReLU.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models import keras_names
from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import Conv, DropPath, Norm, linear_drop_rates
from tl_jax.models.ops.batch_norm import BatchNorm
from tl_jax.models.ops.pooling import max_pool
from tl_jax.models.registry import (
    HE,
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
    Table,
    keras_layer,
    keras_norm,
    torch_conv,
    torch_dense,
    torch_norm,
)


class Layout(NamedTuple):
    """Differences between sources of weights; ``momentum`` is the fraction of the old statistics that is kept."""

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

    ``bottleneck`` blocks are 1x1, 3x3, 1x1 with expansion 4; basic blocks 3x3, 3x3 with expansion 1. The first block of
    a stage has a ``shortcut`` convolution if the shape changes. ``drop_rate`` is that of ``DropPath``.
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
    """First layers: 7x7 at stride 2 and max pooling (``kernel=7``), or one 3x3 for small images (``kernel=3``)."""

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
    """A sequence of blocks at one resolution, one for each of ``drop_rates``; the first has the stride."""

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
        bottleneck: whether blocks are 1x1-3x3-1x1, else 3x3-3x3.
        stem_kernel: 7 (with max pooling, ImageNet) or 3 (CIFAR-style).
        stem_stride: stride of the stem convolution.
        layout: key into ``LAYOUTS``.
        drop_path: stochastic depth rate of the last block; block l of L has the rate l / L * drop_path (see
            ``layers.DropPath``).
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
    """One block for each of ``drop_rates``; the first has a convolution on its shortcut, the last has the stride."""

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
    """7x7 convolution at stride 2 and max pooling with zero padding, which matters since inputs may be negative."""

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
        drop_path: stochastic depth rate of the last block; block l of L has the rate l / L * drop_path (see
            ``layers.DropPath``).
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


# ---- names in files of other libraries

_TOP = "(?:probs|predictions)"  # in the published file (Keras 2), and in later versions


def _resnet_keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``conv2_block1_1_conv/kernel``; block convolutions count from 1, the shortcut is 0."""
    norms = [("([123])_bn", r"bn\1"), ("0_bn", "shortcut_bn")]
    layers = [("stem/conv", "conv"), ("stem/bn", "norm")]
    for block, first in _resnet_blocks(depths):
        for unit in ("1", "2", "shortcut", "3") if first else ("1", "2", "3"):  # by distance from the sum
            conv, norm = ("shortcut_conv", "shortcut_bn") if unit == "shortcut" else (f"conv{unit}", f"bn{unit}")
            layers += [(f"{block}/{conv}", "conv"), (f"{block}/{norm}", "norm")]
    return _resnet_keras_table(keras_norm("conv1_bn", "stem/bn"), norms, layers)


def _resnet_v2_keras(depths: Sequence[int]) -> Table:
    """keras.applications' pre-activation networks: ``conv2_block1_preact_bn/gamma``."""
    norms = [("([12])_bn", r"bn\1"), ("preact_bn", "preact_bn")]
    layers = [("stem/conv", "conv")]
    for block, first in _resnet_blocks(depths):
        convs = ("conv1", "conv2", "shortcut_conv", "conv3") if first else ("conv1", "conv2", "conv3")
        layers += [(f"{block}/{conv}", "conv") for conv in convs]
        layers += [(f"{block}/{norm}", "norm") for norm in ("preact_bn", "bn1", "bn2")]
    return _resnet_keras_table(keras_norm("post_bn", "final/bn"), norms, [*layers, ("final/bn", "norm")])


def _resnet_blocks(depths: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Yield the path of each block, and whether it is the first of its stage, with a convolution on its shortcut."""
    for stage, depth in enumerate(depths, start=1):
        yield from ((f"stage{stage}/block{i}", i == 1) for i in range(1, depth + 1))


def _resnet_keras_table(
    own_rules: list[Rule], norms: Sequence[tuple[str, str]], layers: Sequence[tuple[str, str]]
) -> Table:
    """Return the table of a Keras ResNet from its own rules, BatchNorm rules of blocks, and the order of its layers."""
    rules = [*own_rules, *keras_layer("conv1_conv", "stem/conv"), *keras_layer(_TOP, "head")]
    for stage in (1, 2, 3, 4):
        block, ours = rf"conv{stage + 1}_block(\d+)", rf"stage{stage}/block\1"
        rules += keras_layer(rf"{block}_([123])_conv", rf"{ours}/conv\2")
        rules += keras_layer(rf"{block}_0_conv", f"{ours}/shortcut_conv")
        for theirs, name in norms:
            rules += keras_norm(f"{block}_{theirs}", f"{ours}/" + name.replace(r"\1", r"\2"))
    keras_layers = keras_names.make_layers([*layers, ("head", "dense")])
    return Table(
        [*rules, NATIVE_RULE],
        map_names=keras_names.make_renamer(keras_layers),
        layers=keras_layers,
        trunk_pattern=r"(?:conv\d+_|post_bn).*",
    )


def _resnet_torchvision() -> Table:
    """torchvision: ``layer1.0.conv1.weight``; blocks count from 0, ours from 1, so each has its own rules."""
    rules = torch_conv("conv1", "stem/conv") + torch_norm("bn1", "stem/bn") + torch_dense("fc", "head")
    for index in range(36):  # ResNet-152's longest stage
        theirs, ours = rf"layer(\d)\.{index}", rf"stage\1/block{index + 1}"
        rules += torch_conv(rf"{theirs}\.conv(\d)", rf"{ours}/conv\2") + torch_norm(
            rf"{theirs}\.bn(\d)", rf"{ours}/bn\2"
        )
        rules += torch_conv(rf"{theirs}\.downsample\.0", f"{ours}/shortcut_conv")
        rules += torch_norm(rf"{theirs}\.downsample\.1", f"{ours}/shortcut_bn")
    return Table(rules, COUNTERS)


RESNET_TORCHVISION = _resnet_torchvision()


def resnet_tables(depths: Sequence[int], bottleneck: bool = True) -> dict[str, Table]:
    """Return the tables by source; timm uses torchvision's names, and Keras has no networks with basic blocks."""
    torch = {"torchvision": RESNET_TORCHVISION, "timm": RESNET_TORCHVISION}
    return {"keras": _resnet_keras(depths), **torch} if bottleneck else torch


def resnet_v2_tables(depths: Sequence[int]) -> dict[str, Table]:
    """Return the tables of the pre-activation networks by source."""
    return {"keras": _resnet_v2_keras(depths)}


# ---- the networks of the family, and their weights

BASIC_BLOCKS = {"bottleneck": False, "layout": "torchvision"}  # Keras publishes none with basic blocks
TINY_WIDTHS = (8, 8, 16, 16)
R18, R50, R101, R152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)  # blocks of each stage
TINY_DEPTHS, TINY_V2_DEPTHS = (2, 1, 1, 1), (2, 2, 1, 2)

register_model(
    "resnet18",
    ResNet,
    {**BASIC_BLOCKS, "depths": R18},
    tables=resnet_tables(R18, bottleneck=False),
    weights=(
        torchvision_weights("resnet18-f37072fd.pth", 69.758, 89.078, 11_689_512, options=TORCH_LAYOUT),
        timm_weights(
            "resnet18.a1_in1k",
            73.158,
            91.026,
            11_689_512,
            sha256="80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
            crop=0.95,
            interpolation="bicubic",
            options=TORCH_LAYOUT,
        ),
    ),
)
register_model(
    "resnet34",
    ResNet,
    {**BASIC_BLOCKS, "depths": R50},
    tables=resnet_tables(R50, bottleneck=False),
    weights=(
        torchvision_weights("resnet34-b627a593.pth", 73.314, 91.42, 21_797_672, options=TORCH_LAYOUT),
        timm_weights(
            "resnet34.a1_in1k", 77.918, 93.766, 21_797_672, crop=0.95, interpolation="bicubic", options=TORCH_LAYOUT
        ),
    ),
)
register_model(
    "resnet50",
    ResNet,
    tables=resnet_tables(R50),
    weights=(
        keras_weights(
            "resnet/resnet50_*",
            HE,
            74.9,
            92.1,
            25_636_712,
            md5=("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
            scaling="caffe",
            options=KERAS_LAYOUT,
        ),
        torchvision_weights("resnet50-0676ba61.pth", 76.13, 92.862, 25_557_032, options=TORCH_LAYOUT),
        timm_weights(
            "resnet50.a1_in1k",
            81.214,
            95.102,
            25_557_032,
            sha256="773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
            crop=0.95,
            interpolation="bicubic",
            options=TORCH_LAYOUT,
        ),
    ),
)
register_model(
    "resnet101",
    ResNet,
    {"depths": R101},
    tables=resnet_tables(R101),
    weights=(
        keras_weights(
            "resnet/resnet101_*",
            HE,
            76.4,
            92.8,
            44_707_176,
            md5=("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
            scaling="caffe",
            options=KERAS_LAYOUT,
        ),
        torchvision_weights("resnet101-63fe2227.pth", 77.374, 93.546, 44_549_160, options=TORCH_LAYOUT),
        timm_weights(
            "resnet101.a1h_in1k",
            82.778,
            96.31,
            44_549_160,
            sha256="1a076c0384295e7d3704f201c5711ff245507db934230bab72ff3014a95f90fe",
            crop=0.95,
            interpolation="bicubic",
            options=TORCH_LAYOUT,
        ),
    ),
)
register_model(
    "resnet152",
    ResNet,
    {"depths": R152},
    tables=resnet_tables(R152),
    weights=(
        keras_weights(
            "resnet/resnet152_*",
            HE,
            76.6,
            93.1,
            60_419_944,
            md5=("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
            scaling="caffe",
            options=KERAS_LAYOUT,
        ),
        torchvision_weights("resnet152-394f9c45.pth", 78.312, 94.046, 60_192_808, options=TORCH_LAYOUT),
        timm_weights(
            "resnet152.a1h_in1k", 83.45, 96.538, 60_192_808, crop=0.95, interpolation="bicubic", options=TORCH_LAYOUT
        ),
    ),
)
register_model(
    "resnet50v2",
    ResNetV2,
    tables=resnet_v2_tables(R50),
    weights=(
        keras_weights(
            "resnet/resnet50v2_*",
            HE,
            76.0,
            93.0,
            25_613_800,
            md5=("3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
            scaling="tf",
        ),
    ),
)
# CIFAR-style: one 3x3 stem at stride 2 and basic blocks, 0.31 M parameters.
register_model("resnet8", ResNet, {**BASIC_BLOCKS, "depths": (1, 1, 1), "widths": (32, 64, 128), "stem_kernel": 3})
# All kinds of layers of the family, for tests and smoke tests.
register_model(
    "resnet50_tiny",
    ResNet,
    {"widths": TINY_WIDTHS, "depths": TINY_DEPTHS},
    tables=resnet_tables(TINY_DEPTHS),
    like="resnet50",
)
# All kinds of layers of the family, for tests and smoke tests.
register_model(
    "resnet50v2_tiny",
    ResNetV2,
    {"widths": TINY_WIDTHS, "depths": TINY_V2_DEPTHS},
    tables=resnet_v2_tables(TINY_V2_DEPTHS),
    like="resnet50v2",
)
