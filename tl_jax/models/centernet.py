"""CenterNet: object detection as center points, on any image network; heads, targets, box decoding and box overlap.

CenterNet (Zhou et al. 2019, "Objects as Points", arXiv:1904.07850) predicts one map of object centers and of the
distances from there to the sides of the box, trained as in TTFNet (Liu et al. 2020, arXiv:1909.00700). It was chosen
over FCOS (Tian et al. 2019, arXiv:1904.01355) because it has one fine map instead of a pyramid's five. At 128 to 256
pixels most objects would be on the finest pyramid level, whose 8 pixel cells are too coarse for them, and with 200
images each level would see few objects. CenterNet learns a center from all of its surroundings (a Gaussian), not from
one cell.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.backbone import Backbone
from tl_jax.models.layers import Conv
from tl_jax.utils.errors import UserError

STRIDE = 4  # pixels per cell of the map
# Initial center probability of a new head: nearly all cells have no center (arXiv:1708.02002).
CENTER_PRIOR = 0.01
INITIAL_DISTANCE = 2 * STRIDE  # initial distance in pixels from a center to each side
MAX_LOG_DISTANCE = 6.0  # limit of the absolute log distance: 0.02 to 3,200 pixels
# Channels per group of GroupNorm, which, unlike BatchNorm, works with small batches (arXiv:1803.08494).
GROUP_SIZE = 8


class Head(nn.Module):
    """Neck and outputs: maps from fine to coarse -> ``heat`` (N, h, w, K) logits and ``sides`` (N, h, w, 4).

    Coarse maps are upsampled and added to the finer ones, as in a feature pyramid (arXiv:1612.03144). ``sides`` are the
    distances in pixels from the center of a cell to the left, top, right and bottom of its object.
    """

    num_classes: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], shape: tuple[int, int]) -> dict[str, jax.Array]:
        """Apply to maps (N, h, w, C) by name; ``shape`` (h, w) is the size of the output."""
        coarse, *finer = reversed(maps)
        x = self._lateral(maps[coarse], coarse)
        for name in finer:
            lateral = self._lateral(maps[name], name)
            x = lateral + _resize(x, lateral.shape[1:3])
        x = self._block(_resize(x, shape), "shared")
        heat = self._output(self.num_classes, self._block(x, "heat_block"), "heat")
        sides = self._output(4, self._block(x, "sides_block"), "sides")
        return {
            "heat": heat + math.log(CENTER_PRIOR / (1 - CENTER_PRIOR)),
            "sides": INITIAL_DISTANCE * jnp.exp(jnp.clip(sides, -MAX_LOG_DISTANCE, MAX_LOG_DISTANCE)),
        }

    def _lateral(self, x: jax.Array, name: str) -> jax.Array:
        return Conv(self.width, 1, use_bias=True, dtype=self.dtype, name=f"lateral_{name}")(x)

    def _block(self, x: jax.Array, name: str) -> jax.Array:
        x = Conv(self.width, 3, dtype=self.dtype, name=f"{name}_conv")(x)
        return nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP_SIZE, dtype=self.dtype, name=f"{name}_norm")(x))

    def _output(self, features: int, x: jax.Array, name: str) -> jax.Array:
        small = nn.initializers.normal(0.01)
        x = Conv(features, 1, use_bias=True, dtype=self.dtype, kernel_init=small, name=name)(x)
        return x.astype(jnp.float32)


class Detector(nn.Module):
    """A network with a detection head, (N, H, W, C) float -> ({``heat``, ``sides``}, endpoints of the network).

    The parameters of the network keep their names; those of the head are under ``head``.

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
        patch = getattr(self.backbone, "patch", 1)
        if x.shape[1] % patch or x.shape[2] % patch:  # the last patch would be cropped, and maps be out of place
            size = f"{x.shape[1]}x{x.shape[2]}"
            raise UserError(f"images of {size} pixels: choose config.input.size as a multiple of {patch}")
        _, endpoints = self.backbone(x, train)
        shape, names = map_shape(x.shape[1:3]), self.stage_names()
        maps = {name: self.backbone.to_map(endpoints[name], x.shape[1:3]) for name in names}
        return self.head({name: maps[name] for name in head_stages(names, maps, shape)}, shape), endpoints

    def stage_names(self) -> tuple[str, ...]:
        """Return the names of the network's stages, input first."""
        return self.backbone.stage_names()

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.backbone.channels

    @property
    def min_size(self) -> int:
        """Smallest side of an image in pixels."""
        return self.backbone.min_size


def map_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the map size (h, w) for images (H, W)."""
    height, width = (-(-side // STRIDE) for side in shape)
    return height, width


def head_stages(stages: Sequence[str], endpoints: Mapping[str, jax.Array], shape: tuple[int, int]) -> list[str]:
    """Return the stages that the head reads: the last of each map size, up to ``shape`` (h, w)."""
    last = {endpoints[name].shape[1:3]: name for name in stages}
    fitting = [name for size, name in last.items() if size[0] <= shape[0] and size[1] <= shape[1]]
    return fitting or [stages[-1]]


def _resize(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Upsample maps (N, h, w, C) to ``shape``."""
    if x.shape[1:3] == shape:
        return x
    return jax.image.resize(x, (len(x), *shape, x.shape[-1]), "linear")


EPSILON = 1e-7  # square pixels, avoids division by 0


def area(boxes: jax.Array) -> jax.Array:
    """Return the areas (...,) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the intersection over union (A, B) of each of boxes (A, 4) with each of boxes (B, 4); 0 without area."""
    intersection, union = _intersection_union(a[:, None], b[None])
    return intersection / jnp.maximum(union, EPSILON)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the pairwise generalized intersection over union (...,) of boxes (..., 4), in (-1, 1].

    For disjoint boxes it decreases with the empty area of their common bounding box (Rezatofighi et al. 2019,
    arXiv:1902.09630).
    """
    intersection, union = _intersection_union(a, b)
    enclosing = jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1)
    enclosing_area = jnp.maximum(area(enclosing), EPSILON)
    return intersection / jnp.maximum(union, EPSILON) - (enclosing_area - union) / enclosing_area


def _intersection_union(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the areas of intersection and union of boxes, with broadcasting."""
    top_left, bottom_right = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = jnp.prod(jnp.maximum(bottom_right - top_left, 0.0), axis=-1)
    return intersection, area(a) + area(b) - intersection


def suppress_non_maxima(boxes: jax.Array, classes: jax.Array, scores: jax.Array, iou_threshold: float) -> jax.Array:
    """Return the scores (D,), with 0 for boxes that overlap a better box of their class.

    Non-maximum suppression: in descending order of scores, a box is dropped if its IoU with a kept box exceeds
    ``iou_threshold``.

    Args:
        boxes: (D, 4).
        classes: (D,).
        scores: (D,) in descending order.
        iou_threshold: IoU above which two boxes of a class are duplicates.
    """
    overlaps = (iou(boxes, boxes) > iou_threshold) & (classes[:, None] == classes[None])
    is_later = jnp.arange(len(boxes))[None] > jnp.arange(len(boxes))[:, None]
    overlaps &= is_later

    def suppress(keep, row):
        return keep & ~(overlaps[row] & keep[row]), None

    keep, _ = jax.lax.scan(suppress, jnp.ones(len(boxes), bool), jnp.arange(len(boxes)))
    return jnp.where(keep, scores, 0.0)


GAUSSIAN_SHARE = 0.54  # size of the Gaussian relative to the box (alpha in TTFNet)


class Targets(NamedTuple):
    """Training targets: the maps (h, w) of one image.

    Attributes:
        heatmap: (h, w, K) in [0, 1], 1 in the cell of an object's center, with a Gaussian around it.
        boxes: (h, w, 4) in pixels, of the object to which a cell is assigned.
        weights: (h, w) weights of the cells in the box loss, with sum 1 for each object.
        heat_mask: (h, w) 0 for negative cells that the loss ignores.
    """

    heatmap: jax.Array
    boxes: jax.Array
    weights: jax.Array
    heat_mask: jax.Array


def make_targets(
    boxes: jax.Array,
    classes: jax.Array,
    crowd: jax.Array,
    num_classes: int,
    shape: tuple[int, int],
    cell_size: tuple[float, float],
) -> Targets:
    """Return the training targets of one image.

    If Gaussians overlap, the cell is assigned to the smallest object.

    Args:
        boxes: (M, 4) in pixels.
        classes: (M,) int, below 0 for padding.
        crowd: (M,) bool, crowd objects, which the loss ignores.
        num_classes: K.
        shape: (h, w).
        cell_size: height and width of a cell in pixels.
    """
    is_target = (classes >= 0) & ~crowd
    size = jnp.array([cell_size[1], cell_size[0]], jnp.float32)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    center_cells = jnp.floor(centers / size[None])
    radii = jnp.floor((boxes[:, 2:] - boxes[:, :2]) / size[None] * GAUSSIAN_SHARE / 2)  # cells to each side
    vertical, horizontal = (
        _gaussian(jnp.arange(length), center_cells[:, axis], radii[:, axis])
        for axis, length in ((1, shape[0]), (0, shape[1]))
    )
    peaks = vertical[:, :, None] * horizontal[:, None, :] * is_target[:, None, None]  # (M, h, w)
    heatmap = jnp.zeros((num_classes, *shape)).at[jnp.maximum(classes, 0)].max(peaks)
    sizes = jnp.where(peaks > 0, area(boxes)[:, None, None], jnp.inf)
    owner = jnp.argmin(sizes, axis=0)
    owned = peaks * (owner[None] == jnp.arange(len(boxes))[:, None, None])
    weights = (owned / jnp.maximum(owned.sum((1, 2), keepdims=True), 1e-6)).sum(0)
    in_crowd = _cells_in_boxes(boxes, shape, cell_size) & (crowd & (classes >= 0))[:, None, None]
    return Targets(jnp.moveaxis(heatmap, 0, -1), boxes[owner], weights, 1.0 - in_crowd.any(0))


def _gaussian(positions: jax.Array, centers: jax.Array, radii: jax.Array) -> jax.Array:
    """Return Gaussians (M, n) around ``centers`` (M,), 0 beyond ``radii`` (M,), with sigma a sixth of their width."""
    distance = jnp.abs(positions[None] - centers[:, None])
    sigma = (2 * radii[:, None] + 1) / 6
    return jnp.where(distance <= radii[:, None], jnp.exp(-0.5 * (distance / sigma) ** 2), 0.0)


def _cells_in_boxes(boxes: jax.Array, shape: tuple[int, int], cell_size: tuple[float, float]) -> jax.Array:
    """Return whether the centers of cells are in boxes, (M, h, w)."""
    rows, columns = ((jnp.arange(length) + 0.5) * side for length, side in zip(shape, cell_size, strict=True))
    x0, y0, x1, y1 = boxes.T[:, :, None]
    in_rows = (rows[None] >= y0) & (rows[None] < y1)
    in_columns = (columns[None] >= x0) & (columns[None] < x1)
    return in_rows[:, :, None] & in_columns[:, None, :]


def decode_boxes(sides: jax.Array, cell_size: tuple[float, float]) -> jax.Array:
    """Return boxes (..., h, w, 4) in pixels from the distances (..., h, w, 4) between cell centers and box sides."""
    height, width = sides.shape[-3:-1]
    y, x = ((jnp.arange(length) + 0.5) * side for length, side in zip((height, width), cell_size, strict=True))
    centers = jnp.stack([*jnp.meshgrid(x, y)] * 2, axis=-1).reshape((1,) * (sides.ndim - 3) + (height, width, 4))
    return centers + sides * jnp.array([-1.0, -1.0, 1.0, 1.0]).reshape((1,) * (sides.ndim - 1) + (4,))


def decode_detections(outputs: Any, shape: tuple[int, int], max_detections: int, iou_threshold: float) -> jax.Array:
    """Return the best boxes of each image, (N, D, 6): x0, y0, x1, y1, class, score, best first.

    A cell is a candidate for a class if it is the maximum of its 3x3 neighborhood. Duplicates of better boxes of the
    same class get score 0.

    Args:
        outputs: ``heat`` (N, h, w, K) logits and ``sides`` (N, h, w, 4) of a detector.
        shape: (H, W) of the images in pixels.
        max_detections: maximum D; at most h * w * K.
        iou_threshold: IoU above which two boxes of a class are duplicates.
    """
    heat = jax.nn.sigmoid(outputs["heat"])
    n, height, width, num_classes = heat.shape
    local_max = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    scores, indices = jax.lax.top_k(
        jnp.where(heat == local_max, heat, 0.0).reshape(n, -1), min(max_detections, height * width * num_classes)
    )
    boxes = decode_boxes(outputs["sides"], (shape[0] / height, shape[1] / width)).reshape(n, -1, 4)
    boxes = jnp.take_along_axis(boxes, (indices // num_classes)[..., None], axis=1)
    boxes = jnp.clip(boxes, 0.0, jnp.array([shape[1], shape[0]] * 2, jnp.float32)[None, None])
    classes = indices % num_classes
    scores = jax.vmap(suppress_non_maxima, in_axes=(0, 0, 0, None))(boxes, classes, scores, iou_threshold)
    detections = jnp.concatenate([boxes, classes[..., None].astype(jnp.float32), scores[..., None]], axis=-1)
    order = jnp.argsort(-scores, axis=1)
    return jnp.take_along_axis(detections, order[..., None], axis=1)
