"""Random changes to training pictures, on the device, keyed: the same key gives the same pictures."""

from typing import NamedTuple

import dm_pix as pix
import jax
import jax.numpy as jnp


class Augment(NamedTuple):
    """What may happen to a picture.

    Attributes:
        flip: mirror left to right half of the time.
        crop_pad: pixels of border (the edge continued) added on each side before a crop at a random place; 0 for none.
        rotate: largest angle in degrees, either way; 0 for none.
    """

    flip: bool = False
    crop_pad: int = 0
    rotate: float = 0.0


def augment(images: jax.Array, key: jax.Array, how: Augment) -> jax.Array:
    """Return changed pictures (N, H, W, C), float32 in [0, 255] where rotated and else as they came."""
    if how == Augment():
        return images
    return jax.vmap(lambda image, k: _augment_one(image, k, how))(images, jax.random.split(key, len(images)))


def _augment_one(image: jax.Array, key: jax.Array, how: Augment) -> jax.Array:
    flip_key, crop_key, turn_key = jax.random.split(key, 3)
    if how.flip:
        image = pix.random_flip_left_right(flip_key, image)
    if how.crop_pad:
        pad = how.crop_pad
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        image = pix.random_crop(crop_key, padded, image.shape)
    if how.rotate:
        angle = jnp.deg2rad(how.rotate) * jax.random.uniform(turn_key, minval=-1.0, maxval=1.0)
        image = jnp.clip(pix.rotate(image.astype(jnp.float32), angle, order=1, mode="nearest"), 0.0, 255.0)
    return image
