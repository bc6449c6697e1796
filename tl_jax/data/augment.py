"""Random augmentation of images, with or without boxes, on the device; and views for test-time augmentation.

Augmentation is deterministic given its key.
"""

from dataclasses import dataclass, replace
from typing import cast

import dm_pix as pix
import jax
import jax.numpy as jnp

from tl_jax.config.options import Options, option
from tl_jax.data import randaugment
from tl_jax.data.detection import CLASS, NO_CLASS
from tl_jax.utils.errors import UserError

VIEW_COUNTS = (1, 2, 10)
CROP_SIDE = 7 / 8  # of a crop, relative: 224 of 256 pixels, as in Krizhevsky et al. 2012 (AlexNet), section 4.1


def tta_views(images: jax.Array, count: int) -> jax.Array:
    """Return ``count`` views of each image, (N, H, W, C) -> (count, N, H, W, C).

    Args:
        images: (N, H, W, C) in [0, 255], uint8 or float.
        count: 1 for the images; 2 for the images and their mirror images; 10 for five crops of 7/8 of the sides (top
            left, top right, bottom left, bottom right, centre), resized to (H, W) as float32, and their mirror images.

    Raises:
        UserError: another count.
    """
    if count not in VIEW_COUNTS:
        raise UserError(f"{count} views per image: unsupported; use {', '.join(map(str, VIEW_COUNTS))}")
    images = jnp.asarray(images)
    if count == 1:
        return images[None]
    upright = images[None] if count == 2 else _five_crops(images.astype(jnp.float32))
    return jnp.concatenate([upright, jnp.flip(upright, axis=-2)])


def _five_crops(images: jax.Array) -> jax.Array:
    _, height, width, _ = images.shape
    h, w = round(CROP_SIDE * height), round(CROP_SIDE * width)
    down, right = height - h, width - w
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = jnp.stack([images[:, top : top + h, left : left + w] for top, left in corners])
    return jnp.clip(jax.image.resize(crops, (5, *images.shape), "linear"), 0.0, 255.0)


MAX_CROP_ASPECT = 4 / 3  # largest aspect ratio of a resized crop (Szegedy et al. 2015, arXiv:1409.4842, section 6)
MAX_HUE_SHIFT = 0.1  # of the colour circle, at jitter 1
ERASE_AREA = (0.02, 0.33)  # share of the area that is erased
MAX_ERASE_ASPECT = 10 / 3  # largest aspect ratio of the erased rectangle


@dataclass(frozen=True)
class AugmentConfig(Options):
    """Random changes of training images, in this order; ``magnitude`` is that of ``randaugment``."""

    flip: bool = option(False, "mirror training images left to right with probability 1/2")
    # The border repeats the edge.
    crop_pad: int = option(0, "border in pixels added before a random crop to the stored size; 0 for none", low=0)
    rotate: float = option(0.0, "largest rotation in degrees, in either direction; 0 for none", low=0.0, high=180.0)
    # The aspect ratio changes by up to MAX_CROP_ASPECT; the crop is resized to the size of the image.
    resized_crop: float = option(0.0, "smallest share of the area that a crop keeps; 0 for none", low=0.0, high=1.0)
    # At s, factors in [1 - s, 1 + s] and a shift of the hue by s * MAX_HUE_SHIFT; no colours if C is 1.
    jitter: float = option(0.0, "strength of changes to brightness, contrast, saturation, hue", low=0.0, high=1.0)
    grey: float = option(0.0, "probability of converting an image to grey", low=0.0, high=1.0)
    # See randaugment.OPERATIONS (arXiv:1909.13719).
    randaugment: int = option(0, "random operations per image", low=0, high=10)
    magnitude: float = option(9.0, "magnitude of these operations, from 0 to 10", low=0.0, high=10.0)
    # Area from ERASE_AREA, filled with noise (arXiv:1708.04896).
    erase: float = option(0.0, "probability of erasing a random rectangle of an image", low=0.0, high=1.0)


def augment(images: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    """Augment images (N, H, W, C) in [0, 255]; keeps the dtype if they are only flipped or shifted, else float32.

    Args:
        images: (N, H, W, C) in [0, 255], uint8 or float; C is 1 or 3 if colours change.
        key: random key of the batch; each image gets its own.
        config: augmentation options.
    """
    if config == AugmentConfig():
        return images
    return jax.vmap(lambda image, k: _augment_one(image, k, config))(images, jax.random.split(key, len(images)))


def _augment_one(image: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    # Keep these three keys, on which the published figures depend; newer steps fold in numbers from 3 on.
    flip_key, crop_key, rotate_key = jax.random.split(key, 3)
    if config.flip:
        image = cast(jax.Array, pix.random_flip_left_right(flip_key, image))  # pix annotates chex.Array
    if config.crop_pad:
        pad = config.crop_pad
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        image = cast(jax.Array, pix.random_crop(crop_key, padded, image.shape))
    if config.rotate:
        angle = config.rotate * jax.random.uniform(rotate_key, minval=-1.0, maxval=1.0)
        image = randaugment.affine(image.astype(jnp.float32), jnp.zeros(5).at[0].set(angle), "nearest")
    if config.resized_crop:
        image = _resized_crop(image.astype(jnp.float32), jax.random.fold_in(key, 3), config.resized_crop)
    if config.jitter:
        image = _jitter(image.astype(jnp.float32), jax.random.fold_in(key, 4), config.jitter)
    if config.grey:
        image = _random_grey(image.astype(jnp.float32), jax.random.fold_in(key, 5), config.grey)
    if config.randaugment:
        image = randaugment.randaugment(
            image.astype(jnp.float32), jax.random.fold_in(key, 6), config.randaugment, config.magnitude
        )
    if config.erase:
        image = _erase(image.astype(jnp.float32), jax.random.fold_in(key, 7), config.erase)
    return image


def random_rectangle(key: jax.Array, area_range: tuple[float, float], max_aspect: float) -> tuple[jax.Array, ...]:
    """Sample a rectangle: top, left, height and width, each relative to the side of the image.

    The area is uniform in ``area_range``. The aspect ratio, relative to that of the image, is log-uniform in
    [1 / max_aspect, max_aspect], limited to values that fit into the image: no resampling or clipping, which would
    reduce the area, is needed.
    """
    area, ratio, top, left = jax.random.uniform(key, (4,))
    area = area_range[0] + (area_range[1] - area_range[0]) * area
    log_limit = jnp.minimum(jnp.log(max_aspect), -jnp.log(area))
    root = jnp.exp(log_limit * (ratio - 0.5))  # square root of the aspect ratio
    height, width = (jnp.minimum(jnp.sqrt(area) * factor, 1.0) for factor in (1 / root, root))  # 1.0000001 is rounding
    return top * (1 - height), left * (1 - width), height, width


def _resized_crop(image: jax.Array, key: jax.Array, min_area: float) -> jax.Array:
    return crop_and_resize(image, *random_rectangle(key, (min_area, 1.0), MAX_CROP_ASPECT))


def crop_and_resize(
    image: jax.Array, top: jax.Array, left: jax.Array, height: jax.Array, width: jax.Array
) -> jax.Array:
    """Crop a rectangle, see ``random_rectangle``, and resize it to the size of the image (H, W, C), float32."""
    scale = 1 / jnp.stack([height, width])
    shift = -jnp.stack([top * image.shape[0], left * image.shape[1]]) * scale
    # Crops are only enlarged, so antialiasing would have no effect.
    image = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, shift, "linear", antialias=False)
    return jnp.clip(image, 0.0, 255.0)


def _jitter(image: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    *changes, hue_shift = strength * jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    factors = [jnp.maximum(1 + change, 0.0) for change in changes]
    image = randaugment.brightness(image, factors[0])
    image = randaugment.contrast(image, factors[1])
    if image.shape[-1] == 1:
        return image
    image = randaugment.colour(image, factors[2])
    return _shift_hue(image, MAX_HUE_SHIFT * hue_shift)


def _shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Shift the hue of HSV by ``shift`` turns, keeping saturation and value.

    ``pix.adjust_hue`` tests which channel equals the maximum. Under jit the two sides may be rounded differently; then
    no channel is equal, and the hue is off by a third of a turn. The formula here is continuous.
    """
    red, green, blue = jnp.moveaxis(image, -1, 0)
    high = image.max(-1)
    spread = high - image.min(-1)
    slope = 1 / jnp.where(spread > 0, spread, 1.0)
    hue = jnp.where(green >= blue, 2 + slope * (blue - red), 4 + slope * (red - green))
    hue = jnp.where(red >= jnp.maximum(green, blue), slope * (green - blue), hue) / 6
    saturation = spread / jnp.where(high > 0, high, 1.0)
    # dm-pix expects values in [0, 1], but this function is linear.
    return jnp.clip(pix.hsv_to_rgb(jnp.stack([hue + shift, saturation, high], -1)), 0.0, 255.0)


def _random_grey(image: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, probability), randaugment.grey(image), image)


def _erase(image: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Fill a rectangle with noise uniform in [0, 255), as the paper recommends."""
    chance_key, box_key, noise_key = jax.random.split(key, 3)
    top, left, height, width = random_rectangle(box_key, ERASE_AREA, MAX_ERASE_ASPECT)
    rows, columns = ((jnp.arange(side) + 0.5) / side for side in image.shape[:2])  # centres of pixels
    inside = ((rows >= top) & (rows < top + height))[:, None] & ((columns >= left) & (columns < left + width))[None]
    inside &= jax.random.bernoulli(chance_key, probability)
    return jnp.where(inside[..., None], jax.random.uniform(noise_key, image.shape, maxval=255.0), image)


COLOUR_KEY = 11  # folded into the key before it is split per image


def augment_boxes(
    images: jax.Array, labels: jax.Array, key: jax.Array, config: AugmentConfig, min_visibility: float
) -> tuple[jax.Array, jax.Array]:
    """Augment images (N, H, W, C) in [0, 255] and their labels (N, M, 6).

    Crops clip boxes at their edge. A box with a visible share below ``min_visibility``, or of 0, gets the class -1.

    Args:
        images: (N, H, W, C) in [0, 255].
        labels: float32 (N, M, 6), see ``detection.build_dataset``.
        key: random key of the batch; each image gets its own.
        config: augmentation options; only ``flip``, ``resized_crop`` and those of colours apply.
        min_visibility: smallest share of a box's area inside the crop.
    """
    # Geometric operations. Rotations and RandAugment would not keep boxes axis-aligned; shifts are crops.
    if config.flip or config.resized_crop:
        keys = jax.random.split(key, len(images))
        augment_all = jax.vmap(lambda image, label, k: _augment_boxes_one(image, label, k, config, min_visibility))
        images, labels = augment_all(images, labels, keys)
    return augment(images, jax.random.fold_in(key, COLOUR_KEY), replace(config, flip=False, resized_crop=0.0)), labels


def _augment_boxes_one(
    image: jax.Array, label: jax.Array, key: jax.Array, config: AugmentConfig, min_visibility: float
) -> tuple[jax.Array, jax.Array]:
    flip_key, crop_key = jax.random.split(key)
    boxes = label[:, :4]
    if config.flip:
        flipped = jax.random.bernoulli(flip_key)
        image = jnp.where(flipped, image[:, ::-1], image)
        boxes = jnp.where(flipped, flip_boxes(boxes, image.shape[1]), boxes)
    if config.resized_crop:
        crop = random_rectangle(crop_key, (config.resized_crop, 1.0), MAX_CROP_ASPECT)
        image = crop_and_resize(image.astype(jnp.float32), *crop)
        boxes, visibility = crop_boxes(boxes, crop, image.shape[:2])
        label = label.at[:, CLASS].set(
            jnp.where((visibility > 0) & (visibility >= min_visibility), label[:, CLASS], NO_CLASS)
        )
    return image, label.at[:, :4].set(boxes)


def flip_boxes(boxes: jax.Array, width: int) -> jax.Array:
    """Mirror boxes (M, 4) in pixels left to right."""
    x0, y0, x1, y1 = boxes.T
    return jnp.stack([width - x1, y0, width - x0, y1], axis=1)


def crop_boxes(boxes: jax.Array, crop: tuple[jax.Array, ...], shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return boxes (M, 4) after cropping and resizing to the image size, and their visible shares (M,).

    Args:
        boxes: in pixels of the image.
        crop: top, left, height and width of the crop, relative to the sides of the image.
        shape: (H, W) of the image, before and after.
    """
    top, left, height, width = crop
    high, wide = shape
    corner = jnp.stack([left * wide, top * high, left * wide, top * high])
    moved = (boxes - corner[None]) / jnp.stack([width, height, width, height])[None]
    clipped = jnp.clip(moved, 0.0, jnp.array([wide, high, wide, high], jnp.float32)[None])
    clipped_areas, areas = (jnp.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (clipped, moved))
    return clipped, clipped_areas / jnp.maximum(areas, 1e-6)
