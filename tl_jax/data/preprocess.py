"""From stored pixels to network inputs: pure functions, jitted with the step that uses them."""

import jax
import jax.numpy as jnp

from tl_jax.specs import SCALINGS


def scale(images: jax.Array, scaling: str) -> jax.Array:
    """Turn pixels in [0, 255] (N, H, W, 3), RGB, into network inputs float32 of the same shape.

    Args:
        images: uint8, or float where augmentation left fractions.
        scaling: key into ``specs.SCALINGS``.
    """
    rule = SCALINGS[scaling]
    images = images.astype(jnp.float32)
    images = images[..., ::-1] if rule.order == "bgr" else images
    return (images * rule.scale - jnp.asarray(rule.mean)[None, None, None]) / jnp.asarray(rule.std)[None, None, None]


def fit(images: jax.Array, size: int, crop: float, interpolation: str) -> jax.Array:
    """Resize the shortest side to ``size / crop`` and cut the centre, (N, H, W, C) -> (N, size, size, C).

    Antialiased when shrinking. Images already of the right size are returned unchanged: a network's own input is not
    cropped again.
    """
    n, h, w, c = images.shape
    if (h, w) == (size, size):
        return images
    ratio = round(size / crop) / min(h, w)
    high, wide = max(size, round(h * ratio)), max(size, round(w * ratio))
    method = {"bilinear": "linear", "bicubic": "cubic"}[interpolation]
    images = jax.image.resize(images.astype(jnp.float32), (n, high, wide, c), method)
    top, left = (high - size) // 2, (wide - size) // 2
    return jnp.clip(images[:, top : top + size, left : left + size], 0.0, 255.0)  # bicubic overshoots
