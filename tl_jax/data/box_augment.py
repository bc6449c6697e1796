"""Random changes to pictures with boxes, which follow them; on the device, keyed as those of ``augment``."""

import jax
import jax.numpy as jnp

from tl_jax.data.augment import CROP_STRETCH, Augment, augment, enlarged, rectangle
from tl_jax.data.boxes import CLASS, NONE

COLOURS = 11  # folded into the key; the pictures' own keys are split from it


def augment_boxes(
    images: jax.Array, labels: jax.Array, key: jax.Array, how: Augment, visible: float
) -> tuple[jax.Array, jax.Array]:
    """Return changed pictures (N, H, W, C) in [0, 255], and labels (N, M, 6) whose boxes lie where the objects are now.

    A crop cuts boxes at its edge; those of which less than ``visible`` or nothing is left are dropped: their class is
    then -1.

    Args:
        images: (N, H, W, C) in [0, 255].
        labels: float32 (N, M, 6), see ``boxes.assemble``.
        key: of the batch; each picture gets its own.
        how: what may happen; ``flip``, ``resized_crop`` and what changes colours only.
        visible: least share of a box's area that stays in the picture.
    """
    # What moves pixels. Rotations and RandAugment turn boxes into what is none, shifts are crops too.
    if how.flip or how.resized_crop:
        keys = jax.random.split(key, len(images))
        move = jax.vmap(lambda image, label, k: _move_one(image, label, k, how, visible))
        images, labels = move(images, labels, keys)
    return augment(images, jax.random.fold_in(key, COLOURS), how._replace(flip=False, resized_crop=0.0)), labels


def _move_one(
    image: jax.Array, label: jax.Array, key: jax.Array, how: Augment, visible: float
) -> tuple[jax.Array, jax.Array]:
    flip_key, crop_key = jax.random.split(key)
    boxes = label[:, :4]
    if how.flip:
        flipped = jax.random.bernoulli(flip_key)
        image = jnp.where(flipped, image[:, ::-1], image)
        boxes = jnp.where(flipped, mirrored(boxes, image.shape[1]), boxes)
    if how.resized_crop:
        cut = rectangle(crop_key, (how.resized_crop, 1.0), CROP_STRETCH)
        image = enlarged(image.astype(jnp.float32), *cut)
        boxes, seen = within(boxes, cut, image.shape[:2])
        label = label.at[:, CLASS].set(jnp.where((seen > 0) & (seen >= visible), label[:, CLASS], NONE))
    return image, label.at[:, :4].set(boxes)


def mirrored(boxes: jax.Array, width: int) -> jax.Array:
    """Return boxes (M, 4) in pixels as they lie in the picture mirrored left to right."""
    x0, y0, x1, y1 = boxes.T
    return jnp.stack([width - x1, y0, width - x0, y1], axis=1)


def within(boxes: jax.Array, cut: tuple[jax.Array, ...], shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return boxes (M, 4) as they lie in a crop that is enlarged to the whole picture, and the shares that are left.

    Args:
        boxes: in pixels of the whole.
        cut: top, left, height and width of the crop, as shares of the picture's sides.
        shape: (H, W) of the picture, before and after.
    """
    top, left, height, width = cut
    high, wide = shape
    corner = jnp.stack([left * wide, top * high, left * wide, top * high])
    moved = (boxes - corner[None]) / jnp.stack([width, height, width, height])[None]
    kept = jnp.clip(moved, 0.0, jnp.array([wide, high, wide, high], jnp.float32)[None])
    sides, whole = (jnp.prod(each[:, 2:] - each[:, :2], axis=1) for each in (kept, moved))
    return kept, sides / jnp.maximum(whole, 1e-6)
