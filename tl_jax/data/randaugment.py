"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): a few operations drawn from a list, all of the same strength.

The operations on values are Pillow's (``ImageOps``, ``ImageEnhance``), on pictures float32 (H, W, C) in [0, 255], C 1
or 3; dm-pix has others under the same names. The ranges are torchvision's, in which a higher magnitude always changes
more.
"""

import jax
import jax.numpy as jnp

from tl_jax.data import preprocess

# What strength 1 does: degrees counter-clockwise; pixels to the right per pixel up, and up per pixel to the right;
# shares of the width to the right and of the height down.
AFFINE_RANGES = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331, "translate_y": 150 / 331}
FILL = 128.0  # where a move uncovers what is beyond the picture
ENHANCE_RANGE = 0.9  # added to or taken from a factor of 1
POSTERIZE_BITS = 4  # bits taken from 8


def grey(image: jax.Array) -> jax.Array:
    """Return the luma of ITU-R 601 in every channel."""
    return jnp.broadcast_to(preprocess.convert_channels(image[None], 1)[0], image.shape)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with black: 0 gives black, 1 the picture, more a brighter one."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the mean luma: 0 gives an even grey, 1 the picture, more a stronger one."""
    return _blend(jnp.full_like(image, grey(image).mean()), image, factor)


def colour(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grey picture: 0 gives grey, 1 the picture, more stronger colours."""
    return _blend(grey(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the smoothed picture: 0 gives the smooth one, 1 the picture, more a sharper one; the rim is kept."""
    if min(image.shape[:2]) < 3:
        return image
    across = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    total = across[:-2] + across[1:-1] + across[2:]
    smooth = (total + 4 * image[1:-1, 1:-1]) / 13  # the centre counts five times
    return _blend(image.at[1:-1, 1:-1].set(smooth), image, factor)


def auto_contrast(image: jax.Array) -> jax.Array:
    """Stretch each channel to [0, 255]; one whose values are less than 1 apart, by rounding perhaps, is kept."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    stretched = (image - low) * (255.0 / jnp.maximum(high - low, 1.0))
    return jnp.where(high - low >= 1.0, jnp.clip(stretched, 0.0, 255.0), image)


def equalize(image: jax.Array) -> jax.Array:
    """Spread each channel's values, rounded to integers, over [0, 255]; pictures below 256 pixels are kept."""
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
    """Invert values from ``threshold`` on."""
    return jnp.where(image < threshold, image, 255.0 - image)


def _blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(other + factor * (image - other), 0.0, 255.0)


# Of (picture, strength in [-1, 1]).
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
    """Move an image about its centre, bilinear, by the one of ``parameters`` (5,) that is not 0.

    Their order is that of ``AFFINE_RANGES``. What comes from outside is grey, or with the ``mode`` "nearest" continues
    the edge.
    """
    angle, shear_x, shear_y, shift_x, shift_y = parameters
    h, w, _ = image.shape
    centre_y, centre_x = (h - 1) / 2, (w - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(h) - centre_y, jnp.arange(w) - centre_x, indexing="ij")
    # Where each pixel of the result comes from; by hand, as a matrix product rounds to 10 bits on many a GPU.
    sin, cos = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    from_x = cos * x - (sin - shear_x) * y - shift_x * w + centre_x
    from_y = cos * y + (sin + shear_y) * x - shift_y * h + centre_y

    def resample(channel):
        return jax.scipy.ndimage.map_coordinates(channel, [from_y, from_x], order=1, mode=mode, cval=FILL)

    return jax.vmap(resample, in_axes=-1, out_axes=-1)(image)


def apply_operation(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Return the picture after ``OPERATIONS[operation]`` of a strength in [-1, 1]; values in [0, 255]."""
    # Under vmap every branch of a switch is computed: the moves share one resampling, which is the costly part.
    parameters = jnp.where(
        operation == jnp.arange(len(AFFINE_RANGES)), strength * jnp.asarray([*AFFINE_RANGES.values()]), 0.0
    )
    image = affine(image, parameters)
    colour_operation = jnp.maximum(operation - len(AFFINE_RANGES), 0)  # "identity" after a move
    return jnp.clip(jax.lax.switch(colour_operation, [*COLOUR_OPERATIONS.values()], image, strength), 0.0, 255.0)


def randaugment(image: jax.Array, key: jax.Array, count: int, magnitude: float) -> jax.Array:
    """Return the picture (H, W, C) after ``count`` operations drawn with replacement, one after another.

    Args:
        image: float32 (H, W, C) in [0, 255].
        key: of this picture.
        count: operations.
        magnitude: strength, 0 (only auto_contrast and equalize change anything) to 10; the sign is drawn.
    """

    def step(image, key):
        operation, negative = jnp.divmod(jax.random.randint(key, (), 0, 2 * len(OPERATIONS)), 2)
        return apply_operation(image, operation, (1 - 2 * negative) * magnitude / 10), None

    return jax.lax.scan(step, image, jax.random.split(key, count))[0]
