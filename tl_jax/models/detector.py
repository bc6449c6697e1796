"""A detector on any image network: one map of where objects have their middle, and how far their sides are from it.

CenterNet (Zhou et al. 2019, "Objects as Points", arXiv:1904.07850), with the sides trained as TTFNet does (Liu et al.
2020, arXiv:1909.00700). Of the two anchor-free kinds it was taken rather than FCOS (Tian et al. 2019,
arXiv:1904.01355) because it has one fine map instead of a pyramid's five: at 128 to 256 pixels most objects would fall
to the finest level of a pyramid anyway, whose cells of 8 pixels are too coarse for them, and on 200 pictures every
level would see few. The middle of an object is learned from all of its surroundings (a Gaussian), not from one cell.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.backbone import Backbone
from tl_jax.models.layers import Conv

STRIDE = 4  # pixels of a cell of the map
RARE = 0.01  # probability of a middle that a new head gives everywhere: nearly all cells have none (arXiv:1708.02002)
UNIT = 2 * STRIDE  # pixels from a middle to each side that a new head gives
REACH = 6.0  # of the logarithm of a distance in units, either way: 0.02 to 3,200 pixels
GROUP = 8  # channels of a group in GroupNorm, which unlike BatchNorm does not mind small batches (arXiv:1803.08494)


class Head(nn.Module):
    """Neck and outputs: maps from fine to coarse -> ``heat`` (N, h, w, K) logits and ``sides`` (N, h, w, 4).

    The coarse maps are brought to the size of the finer ones and added, as in a feature pyramid (arXiv:1612.03144).
    ``sides`` are the distances in pixels from the middle of a cell to the left, top, right and bottom of its object.
    """

    num_classes: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], shape: tuple[int, int]) -> dict[str, jax.Array]:
        """Apply to maps (N, h, w, C) by name; ``shape`` (h, w) is that of what comes out."""
        coarse, *finer = reversed(maps)
        x = self._lateral(maps[coarse], coarse)
        for name in finer:
            lateral = self._lateral(maps[name], name)
            x = lateral + _resized(x, lateral.shape[1:3])
        x = self._block(_resized(x, shape), "shared")
        heat = self._output(self.num_classes, self._block(x, "heat_block"), "heat")
        sides = self._output(4, self._block(x, "sides_block"), "sides")
        return {"heat": heat + math.log(RARE / (1 - RARE)), "sides": UNIT * jnp.exp(jnp.clip(sides, -REACH, REACH))}

    def _lateral(self, x: jax.Array, name: str) -> jax.Array:
        return Conv(self.width, 1, use_bias=True, dtype=self.dtype, name=f"lateral_{name}")(x)

    def _block(self, x: jax.Array, name: str) -> jax.Array:
        x = Conv(self.width, 3, dtype=self.dtype, name=f"{name}_conv")(x)
        return nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP, dtype=self.dtype, name=f"{name}_norm")(x))

    def _output(self, features: int, x: jax.Array, name: str) -> jax.Array:
        small = nn.initializers.normal(0.01)
        x = Conv(features, 1, use_bias=True, dtype=self.dtype, kernel_init=small, name=name)(x)
        return x.astype(jnp.float32)


class Detector(nn.Module):
    """A network with a detection head, (N, H, W, C) float -> ({``heat``, ``sides``}, endpoints of the network).

    The parameters of the network keep their names, those of the head stand under ``head``.

    Attributes:
        backbone: without a head.
        num_classes: K.
        width: channels of the head, a multiple of 8.
    """

    backbone: Backbone
    num_classes: int
    width: int = 64

    def setup(self) -> None:
        nn.share_scope(self, self.backbone)
        self.head = Head(self.num_classes, self.width, self.backbone.dtype)

    def __call__(self, x: jax.Array, train: bool = False) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Apply the network; ``train`` uses batch statistics."""
        _, end = self.backbone(x, train)
        shape = cells(x.shape[1:3])
        return self.head({name: end[name] for name in levels(self.part_names(), end, shape)}, shape), end

    def part_names(self) -> tuple[str, ...]:
        """Return the names of the network's parts from the input on."""
        return self.backbone.part_names()

    @property
    def channels(self) -> int:
        """Channels of the pictures."""
        return self.backbone.channels

    @property
    def min_size(self) -> int:
        """Smallest side of a picture in pixels."""
        return self.backbone.min_size


def cells(shape: Sequence[int]) -> tuple[int, int]:
    """Return (h, w) of the map for pictures (H, W)."""
    high, wide = (-(-side // STRIDE) for side in shape)
    return high, wide


def levels(parts: Sequence[str], end: Mapping[str, jax.Array], shape: tuple[int, int]) -> list[str]:
    """Return the parts whose maps the head reads: the last one of each size that is not above ``shape`` (h, w)."""
    last = {end[name].shape[1:3]: name for name in parts}
    fitting = [name for size, name in last.items() if size[0] <= shape[0] and size[1] <= shape[1]]
    return fitting or [parts[-1]]


def _resized(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return maps (N, h, w, C) enlarged to ``shape``."""
    if x.shape[1:3] == shape:
        return x
    return jax.image.resize(x, (len(x), *shape, x.shape[-1]), "linear")
