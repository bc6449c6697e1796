"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): random operations from a list, all of the same strength.

The operations on values are Pillow's (``ImageOps``, ``ImageEnhance``), for images float32 (H, W, C) in [0, 255], C 1 or
3; dm-pix has others under the same names. The ranges are torchvision's, in which a higher magnitude always changes
more.
"""

import jax
import jax.numpy as jnp

from tl_jax.data import preprocess

# Effect of strength 1: degrees counter-clockwise; pixels to the right per pixel up, and up per pixel to the right;
# shares of the width to the right and of the height down.
AFFINE_RANGES = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331, "translate_y": 150 / 331}
FILL = 128.0  # value of pixels from outside the image
ENHANCE_RANGE = 0.9  # largest change of a factor of 1
POSTERIZE_BITS = 4  # largest number of dropped bits of 8


def grey(image: jax.Array) -> jax.Array:
    """Return the luma of ITU-R 601 in every channel."""
    return jnp.broadcast_to(preprocess.convert_channels(image[None], 1)[0], image.shape)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with black: factor 0 gives black, 1 the image, above 1 a brighter image."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the mean luma: factor 0 gives uniform grey, 1 the image, above 1 a higher contrast."""
    return _blend(jnp.full_like(image, grey(image).mean()), image, factor)


def colour(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grey image: factor 0 gives grey, 1 the image, above 1 stronger colours."""
    return _blend(grey(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the smoothed image: factor 0 gives it, 1 the image, above 1 a sharper one; the border is unchanged."""
    if min(image.shape[:2]) < 3:
        return image
    across = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    total = across[:-2] + across[1:-1] + across[2:]
    smooth = (total + 4 * image[1:-1, 1:-1]) / 13  # the centre has weight 5
    return _blend(image.at[1:-1, 1:-1].set(smooth), image, factor)


def auto_contrast(image: jax.Array) -> jax.Array:
    """Stretch each channel to [0, 255]; a channel with a range below 1, perhaps from rounding, is unchanged."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    stretched = (image - low) * (255.0 / jnp.maximum(high - low, 1.0))
    return jnp.where(high - low >= 1.0, jnp.clip(stretched, 0.0, 255.0), image)


def equalize(image: jax.Array) -> jax.Array:
    """Equalize the histogram of each channel, rounded to integers; images below 256 pixels are unchanged."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: jax.Array) -> jax.Array:
    levels = jnp.round(channel).astype(jnp.int32)
    counts = jnp.bincount(levels.ravel(), length=256)
    step = (levels.size - counts[levels.max()]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[levels].astype(jnp.float32), channel)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest ``bits`` (an integer) of 8, of values rounded to integers."""
    step = jnp.left_shift(1, 8 - bits)
    return jnp.floor(jnp.round(image) / step) * step


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert values of at least ``threshold``."""
    return jnp.where(image < threshold, image, 255.0 - image)


def _blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(other + factor * (image - other), 0.0, 255.0)


# Functions of (image, strength in [-1, 1]).
COLOUR_OPERATIONS = {
    "identity": lambda image, s: image,
    "auto_contrast": lambda image, s: auto_contrast(image),
    "equalize": lambda image, s: equalize(image),
    "posterize": lambda image, s: posterize(image, 8 - jnp.round(POSTERIZE_BITS * jnp.abs(s)).astype(int)),
    "solarize": lambda image, s: solarize(image, 256.0 * (1 - jnp.abs(s))),
    "colour": lambda image, s: colour(image, 1 + ENHANCE_RANGE * s),
    "contrast": lambda image, s: contrast(image, 1 + ENHANCE_RANGE * s),
    "brightness": lambda image, s: brightness(image, 1 + ENHANCE_RANGE * s),
    "sharpness": lambda image, s: sharpness(image, 1 + ENHANCE_RANGE * s),
}
OPERATIONS = (*AFFINE_RANGES, *COLOUR_OPERATIONS)


def affine(image: jax.Array, parameters: jax.Array, mode: str = "constant") -> jax.Array:
    """Transform an image about its centre, bilinear, by the one of ``parameters`` (5,) that is not 0.

    Their order is that of ``AFFINE_RANGES``. Pixels from outside are grey, or with the ``mode`` "nearest" repeat the
    edge.
    """
    angle, shear_x, shear_y, shift_x, shift_y = parameters
    h, w, _ = image.shape
    centre_y, centre_x = (h - 1) / 2, (w - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(h) - centre_y, jnp.arange(w) - centre_x, indexing="ij")
    # Source coordinates of each pixel, without a matrix product, which many GPUs round to 10 bits.
    sin, cos = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    from_x = cos * x - (sin - shear_x) * y - shift_x * w + centre_x
    from_y = cos * y + (sin + shear_y) * x - shift_y * h + centre_y

    def resample(channel):
        return jax.scipy.ndimage.map_coordinates(channel, [from_y, from_x], order=1, mode=mode, cval=FILL)

    return jax.vmap(resample, in_axes=-1, out_axes=-1)(image)


def apply_operation(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Apply ``OPERATIONS[operation]`` with a strength in [-1, 1] to an image; values in [0, 255]."""
    # Under vmap every branch of a switch is computed, so the affine operations share the costly resampling.
    parameters = jnp.where(
        operation == jnp.arange(len(AFFINE_RANGES)), strength * jnp.asarray([*AFFINE_RANGES.values()]), 0.0
    )
    image = affine(image, parameters)
    colour_operation = jnp.maximum(operation - len(AFFINE_RANGES), 0)  # "identity" after an affine operation
    return jnp.clip(jax.lax.switch(colour_operation, [*COLOUR_OPERATIONS.values()], image, strength), 0.0, 255.0)


def randaugment(image: jax.Array, key: jax.Array, count: int, magnitude: float) -> jax.Array:
    """Apply ``count`` random operations, drawn with replacement, to an image (H, W, C).

    Args:
        image: float32 (H, W, C) in [0, 255].
        key: random key of this image.
        count: number of operations.
        magnitude: strength, 0 (only auto_contrast and equalize have an effect) to 10; the sign is random.
    """

    def step(image, key):
        operation, negative = jnp.divmod(jax.random.randint(key, (), 0, 2 * len(OPERATIONS)), 2)
        return apply_operation(image, operation, (1 - 2 * negative) * magnitude / 10), None

    return jax.lax.scan(step, image, jax.random.split(key, count))[0]
