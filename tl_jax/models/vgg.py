"""VGG networks (Simonyan and Zisserman 2015, arXiv:1409.1556), with and without BatchNorm."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import Conv
from tl_jax.models.ops.batch_norm import BatchNorm
from tl_jax.models.ops.dropout import Dropout
from tl_jax.models.ops.pooling import adaptive_mean_pool, max_pool

GRID = 7  # side of the feature map that fc1 sees


class Stage(nn.Module):
    """3x3 convolutions with ReLU, then 2x2 max pooling, (N, H, W, C) -> (N, H / 2, W / 2, width)."""

    depth: int
    width: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.depth + 1):
            x = Conv(self.width, 3, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            if self.norm:
                # Only torchvision has such weights: its epsilon, and its momentum 0.1 of the new statistics.
                norm = BatchNorm(epsilon=1e-5, momentum=0.9, dtype=self.dtype, name=f"bn{i}")
                x = norm(x, use_running_average=not train)
            x = nn.relu(x)
        return max_pool(x, window=2, stride=2, pad=0)


class VGG(Backbone):
    """VGG; endpoints ``stage1`` to ``stage5`` (after pooling), ``features``, and with ``fc`` also ``fc1`` and ``fc2``.

    Attributes:
        depths: convolutions in each stage.
        widths: channels of each stage.
        norm: BatchNorm after each convolution.
        fc: put the head on two hidden layers over a 7x7 grid of the last map, as the paper does (averaged to 7x7 at
            other sizes, as torchvision does); otherwise it sits on ``features``.
        fc_width: outputs of each hidden layer.
        fc_dropout: share of their outputs that is dropped while training.
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: bool = False
    fc: bool = True
    fc_width: int = 4096
    fc_dropout: float = 0.5

    min_size: ClassVar[int] = 32  # five halvings

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        sizes = enumerate(zip(self.depths, self.widths, strict=True), start=1)
        return [(f"stage{i}", partial(Stage, d, w, self.norm, self.dtype, name=f"stage{i}")) for i, (d, w) in sizes]

    def head_input(self) -> str:
        return self._last_stage() if self.fc else super().head_input()

    def _last_stage(self) -> str:
        return self.endpoint or f"stage{len(self.depths)}"

    def classify(self, endpoints: dict[str, jax.Array], train: bool) -> jax.Array:
        if not self.fc:
            return super().classify(endpoints, train)
        x = adaptive_mean_pool(endpoints[self._last_stage()], GRID)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc1", "fc2"):
            x = endpoints[name] = nn.relu(nn.Dense(self.fc_width, dtype=self.dtype, name=name)(x))
            x = Dropout(self.fc_dropout, name=f"{name}_dropout")(x, train)
        return self.dense_head(x, train)
