"""Preprocess stored pixels to network inputs with pure functions, jitted with the step that uses them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tl_jax.config.options import Options, option
from tl_jax.utils.errors import UserError
from tl_jax.utils.scaling import SCALINGS


@dataclass(frozen=True)
class ImageInputConfig(Options):
    """Options of the preprocessing from stored pixels to network inputs."""

    size: int = option(0, "side of the network's input in pixels; 0 for that of the weights", low=0)
    interpolation: str = option("", "resize method; empty for that of the weights", ("", "bilinear", "bicubic"))
    crop: float = option(1.0, "share of the shortest side that the centre crop keeps", low=0.1, high=1.0)
    scaling: str = option("spec", "pixel scaling; spec for that of the weights", lambda: ("spec", *SCALINGS))


def scale(images: jax.Array, scaling: str) -> jax.Array:
    """Scale pixels in [0, 255] (N, H, W, C) to network inputs, float32 of the same shape.

    Three channels are RGB. Other numbers of channels are kept, and all use the averages of the three means and standard
    deviations.

    Args:
        images: uint8, or float after augmentation.
        scaling: key of ``SCALINGS``.
    """
    rule = SCALINGS[scaling]
    images = images.astype(jnp.float32)
    mean, std = jnp.asarray(rule.mean), jnp.asarray(rule.std)
    if images.shape[-1] != 3:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    elif rule.order == "bgr":
        images = images[..., ::-1]
    return (images * rule.scale - mean[None, None, None]) / std[None, None, None]


def convert_channels(images: jax.Array, count: int) -> jax.Array:
    """Convert images (N, H, W, C) to ``count`` channels of the same dtype: RGB to luma, or grey repeated.

    Raises:
        UserError: C and ``count`` differ and are not 1 and 3.
    """
    given = images.shape[-1]
    if given == count:
        return images
    if (given, count) == (1, 3):
        return jnp.repeat(images, 3, axis=-1)
    if (given, count) == (3, 1):
        return _luma(images)
    raise UserError(f"images with {given} channels cannot be converted to {count}; use images or a network with 1 or 3")


def _luma(images: jax.Array) -> jax.Array:
    """Return the luma of ITU-R 601; for uint8 bit-identical to Pillow's ``convert("L")``."""
    if images.dtype == jnp.uint8:
        weights = jnp.asarray((19595, 38470, 7471))  # over 65,536
        total = (images.astype(jnp.int32) * weights[None, None, None]).sum(-1, keepdims=True)
        return ((total + 32768) >> 16).astype(jnp.uint8)
    weights = jnp.asarray((0.299, 0.587, 0.114), images.dtype)
    return (images * weights[None, None, None]).sum(-1, keepdims=True)


def resize_and_crop(images: jax.Array, size: int, crop: float, interpolation: str) -> jax.Array:
    """Resize the shortest side to ``size / crop`` and crop the centre, (N, H, W, C) -> (N, size, size, C).

    Shrinking is antialiased. Images of the right size are returned unchanged: network inputs are not cropped again.
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
