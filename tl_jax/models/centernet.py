"""CenterNet: object detection as center points, on any image network; heads, targets, box decoding and box overlap.

CenterNet (Zhou et al. 2019, "Objects as Points", arXiv:1904.07850) predicts one map of object centers and of the
distances from there to the sides of the box, which are trained as in TTFNet (Liu et al. 2020, arXiv:1909.00700). Of the
anchor-free detectors it was chosen over FCOS (Tian et al. 2019, arXiv:1904.01355) because it has one fine map instead
of a pyramid's five. At 128 to 256 pixels most objects would be on the finest level of a pyramid anyway, whose cells of
8 pixels are too coarse for them, and on 200 images every level would see few. The center of an object is learned from
all of its surroundings (a Gaussian), not from one cell.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


TINY = 1e-7  # square pixels, against division by 0


def area(boxes: jax.Array) -> jax.Array:
    """Return the areas (...,) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the intersection over union (A, B) of each of boxes (A, 4) with each of boxes (B, 4); 0 without area."""
    shared, union = _overlap(a[:, None], b[None])
    return shared / jnp.maximum(union, TINY)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the generalised intersection over union (...,) of boxes (..., 4), pair by pair, in (-1, 1].

    Where boxes do not meet it falls with the emptiness of the box around both (Rezatofighi et al. 2019,
    arXiv:1902.09630).
    """
    shared, union = _overlap(a, b)
    around = jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1)
    hull = jnp.maximum(area(around), TINY)
    return shared / jnp.maximum(union, TINY) - (hull - union) / hull


def _overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the areas of intersection and union of boxes that broadcast."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
    return shared, area(a) + area(b) - shared


def suppressed(boxes: jax.Array, classes: jax.Array, scores: jax.Array, overlap: float) -> jax.Array:
    """Return the scores (D,) with those of boxes put to 0 that lie on a better one of their class.

    Non-maximum suppression: in the order of their scores, a box is dropped if its IoU with one that was kept is above
    ``overlap``.

    Args:
        boxes: (D, 4).
        classes: (D,).
        scores: (D,) in descending order.
        overlap: IoU above which two boxes of a class count as one.
    """
    on = (iou(boxes, boxes) > overlap) & (classes[:, None] == classes[None])
    later = jnp.arange(len(boxes))[None] > jnp.arange(len(boxes))[:, None]
    on &= later

    def one(kept, row):
        return kept & ~(on[row] & kept[row]), None

    kept, _ = jax.lax.scan(one, jnp.ones(len(boxes), bool), jnp.arange(len(boxes)))
    return jnp.where(kept, scores, 0.0)


CENTRE = 0.54  # share of a box's sides that a Gaussian covers (alpha in TTFNet)


class Targets(NamedTuple):
    """What the maps (h, w) of one picture should be.

    Attributes:
        heat: (h, w, K) in [0, 1], 1 in the cell with the middle of an object and a Gaussian around it.
        boxes: (h, w, 4) in pixels, of the object that a cell belongs to.
        weights: (h, w) of the cells in the loss of boxes, 1 in all for each object.
        counted: (h, w) 0 where a cell says nothing of what is not there.
    """

    heat: jax.Array
    boxes: jax.Array
    weights: jax.Array
    counted: jax.Array


def targets(
    boxes: jax.Array,
    classes: jax.Array,
    crowd: jax.Array,
    count: int,
    shape: tuple[int, int],
    cell: tuple[float, float],
) -> Targets:
    """Return what the maps of one picture should be.

    Where Gaussians meet, a cell belongs to the smallest object, which has no other place.

    Args:
        boxes: (M, 4) in pixels.
        classes: (M,) int, below 0 where there is no object.
        crowd: (M,) bool, of objects that are neither learned nor held against the detector.
        count: K.
        shape: (h, w).
        cell: height and width of a cell in pixels.
    """
    learned = (classes >= 0) & ~crowd
    size = jnp.array([cell[1], cell[0]], jnp.float32)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    at = jnp.floor(middle / size[None])
    reach = jnp.floor((boxes[:, 2:] - boxes[:, :2]) / size[None] * CENTRE / 2)  # cells to each side
    across, along = (
        _gaussian(jnp.arange(length), at[:, axis], reach[:, axis]) for axis, length in ((1, shape[0]), (0, shape[1]))
    )
    peaks = across[:, :, None] * along[:, None, :] * learned[:, None, None]  # (M, h, w)
    heat = jnp.zeros((count, *shape)).at[jnp.maximum(classes, 0)].max(peaks)
    sizes = jnp.where(peaks > 0, area(boxes)[:, None, None], jnp.inf)
    owner = jnp.argmin(sizes, axis=0)
    own = peaks * (owner[None] == jnp.arange(len(boxes))[:, None, None])
    weights = (own / jnp.maximum(own.sum((1, 2), keepdims=True), 1e-6)).sum(0)
    inside = _inside(boxes, shape, cell) & (crowd & (classes >= 0))[:, None, None]
    return Targets(jnp.moveaxis(heat, 0, -1), boxes[owner], weights, 1.0 - inside.any(0))


def _gaussian(cells: jax.Array, at: jax.Array, reach: jax.Array) -> jax.Array:
    """Return bells (M, n) about ``at`` (M,), 0 beyond ``reach`` (M,); a sixth of what they cover is their deviation."""
    away = jnp.abs(cells[None] - at[:, None])
    deviation = (2 * reach[:, None] + 1) / 6
    return jnp.where(away <= reach[:, None], jnp.exp(-0.5 * (away / deviation) ** 2), 0.0)


def _inside(boxes: jax.Array, shape: tuple[int, int], cell: tuple[float, float]) -> jax.Array:
    """Return whether the middles of cells lie in boxes, (M, h, w)."""
    rows, columns = ((jnp.arange(length) + 0.5) * side for length, side in zip(shape, cell, strict=True))
    x0, y0, x1, y1 = boxes.T[:, :, None]
    high = (rows[None] >= y0) & (rows[None] < y1)
    wide = (columns[None] >= x0) & (columns[None] < x1)
    return high[:, :, None] & wide[:, None, :]


def boxes_of(sides: jax.Array, cell: tuple[float, float]) -> jax.Array:
    """Return boxes (..., h, w, 4) in pixels from the distances (..., h, w, 4) of their sides to the middle of cells."""
    high, wide = sides.shape[-3:-1]
    y, x = ((jnp.arange(length) + 0.5) * side for length, side in zip((high, wide), cell, strict=True))
    middle = jnp.stack([*jnp.meshgrid(x, y)] * 2, axis=-1).reshape((1,) * (sides.ndim - 3) + (high, wide, 4))
    return middle + sides * jnp.array([-1.0, -1.0, 1.0, 1.0]).reshape((1,) * (sides.ndim - 1) + (4,))


def detections(out: Any, shape: tuple[int, int], most: int, overlap: float) -> jax.Array:
    """Return the best ``most`` boxes of each picture, (N, D, 6): x0, y0, x1, y1, class, score, the best first.

    A cell is a candidate for a class where it is the highest of its 3x3 neighbours. Boxes that lie on better ones of
    their class have the score 0.

    Args:
        out: ``heat`` (N, h, w, K) logits and ``sides`` (N, h, w, 4) of a detector.
        shape: (H, W) of the pictures in pixels.
        most: D at most; there are no more than h * w * K.
        overlap: IoU above which two boxes of a class count as one.
    """
    heat = jax.nn.sigmoid(out["heat"])
    n, high, wide, count = heat.shape
    best = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    scores, at = jax.lax.top_k(jnp.where(heat == best, heat, 0.0).reshape(n, -1), min(most, high * wide * count))
    boxes = boxes_of(out["sides"], (shape[0] / high, shape[1] / wide)).reshape(n, -1, 4)
    boxes = jnp.take_along_axis(boxes, (at // count)[..., None], axis=1)
    boxes = jnp.clip(boxes, 0.0, jnp.array([shape[1], shape[0]] * 2, jnp.float32)[None, None])
    classes = at % count
    scores = jax.vmap(suppressed, in_axes=(0, 0, 0, None))(boxes, classes, scores, overlap)
    found = jnp.concatenate([boxes, classes[..., None].astype(jnp.float32), scores[..., None]], axis=-1)
    order = jnp.argsort(-scores, axis=1)
    return jnp.take_along_axis(found, order[..., None], axis=1)
