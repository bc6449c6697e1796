"""Arithmetic of boxes (x0, y0, x1, y1), under jit: overlaps, and of boxes on one object the best."""

import jax
import jax.numpy as jnp

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
