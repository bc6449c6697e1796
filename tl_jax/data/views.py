"""Test-time augmentation: fixed views of a picture, over which a prediction is averaged."""

import jax
import jax.numpy as jnp

from tl_jax.errors import UserError

COUNTS = (1, 2, 10)
SIDE = 7 / 8  # of a crop: 224 of 256 pixels, as in Krizhevsky et al. 2012 (AlexNet), section 4.1


def views(images: jax.Array, count: int) -> jax.Array:
    """Return ``count`` views of each picture, (N, H, W, C) -> (count, N, H, W, C).

    Args:
        images: (N, H, W, C) in [0, 255], uint8 or float.
        count: 1, the pictures themselves; 2, and their mirror images; 10, five crops of 7/8 of the sides (top left, top
            right, bottom left, bottom right, centre), enlarged to the picture's size and float32, then their mirrors.

    Raises:
        UserError: another count.
    """
    if count not in COUNTS:
        raise UserError(f"{count} views of a picture: there are {', '.join(map(str, COUNTS))}")
    images = jnp.asarray(images)
    if count == 1:
        return images[None]
    upright = images[None] if count == 2 else _five_crops(images.astype(jnp.float32))
    return jnp.concatenate([upright, jnp.flip(upright, axis=-2)])


def _five_crops(images: jax.Array) -> jax.Array:
    _, height, width, _ = images.shape
    h, w = round(SIDE * height), round(SIDE * width)
    down, right = height - h, width - w
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = jnp.stack([images[:, top : top + h, left : left + w] for top, left in corners])
    return jnp.clip(jax.image.resize(crops, (5, *images.shape), "linear"), 0.0, 255.0)
