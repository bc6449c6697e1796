"""EfficientNet-Lite 0 to 4: EfficientNet (Tan and Le 2019, arXiv:1905.11946) for mobile devices.

The variant is TensorFlow's (github.com/tensorflow/tpu, models/official/efficientnet/lite). It differs from the paper's
network in three things: no squeeze-and-excitation, ReLU6 in place of swish, and a stem and a last convolution that have
the same width in every size. The first and the last stage keep their one block, too.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn

from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import ConvNorm, Norm
from tl_jax.models.mobilenet import Layout, Stage, block_drop_rates, round_channels

LAYOUT = Layout("same", Norm(1e-3, 0.99))

StageRow = tuple[int, int, int, int, int]  # expansion, channels, blocks, stride, side of the depthwise kernel
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
        width: factor on the channels of every stage, which are rounded to multiples of 8.
        depth: factor on the blocks of every stage but the first and the last, rounded up.
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
        stages: rows (expansion, channels, blocks, stride, side of the depthwise kernel); ``scale_stages`` makes them.
        stem: channels of the first convolution.
        final: channels of the last convolution.
        drop_path: share of the examples whose branch is dropped in the last residual block while training; residual
            block l of L of the whole network has l / L of it (stochastic depth, see ``layers.DropPath``).
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


# name -> (class, fixed arguments)
MODELS: Mapping[str, tuple[type[EfficientNetLite], Mapping[str, Any]]] = {
    "efficientnet_lite0": (EfficientNetLite, {}),
    "efficientnet_lite1": (EfficientNetLite, {"stages": scale_stages(1.0, 1.1)}),
    "efficientnet_lite2": (EfficientNetLite, {"stages": scale_stages(1.1, 1.2)}),
    "efficientnet_lite3": (EfficientNetLite, {"stages": scale_stages(1.2, 1.4)}),
    "efficientnet_lite4": (EfficientNetLite, {"stages": scale_stages(1.4, 1.8)}),
    "efficientnet_lite0_tiny": (EfficientNetLite, {"stages": _TINY_STAGES, "stem": 8, "final": 64}),
}
