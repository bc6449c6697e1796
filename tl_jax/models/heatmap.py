"""From boxes to what the maps of a detector should be, and from its maps back to boxes, under jit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.models.box_ops import area, suppressed

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
