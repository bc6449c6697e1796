"""RandAugment's operations against Pillow's, and how they are drawn."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tl_jax.data import randaugment

pytestmark = pytest.mark.fast

apply = jax.jit(randaugment.apply_operation)


@functools.cache
def photo(channels: int = 3) -> np.ndarray:
    """A picture with a tint and a little noise, no square, neither black nor white in it."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    image = np.asarray(coarse.resize((40, 33), Image.Resampling.BICUBIC)) * np.array([0.4, 0.9, 0.5])
    image = (20 + image + rng.uniform(0, 15, image.shape)).astype(np.uint8)
    return image[..., :channels]


def ours(name: str, strength: float, image: np.ndarray) -> np.ndarray:
    return np.asarray(apply(image.astype(np.float32), randaugment.OPERATIONS.index(name), strength))


def pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


PEERS = {
    "identity": lambda image, s: image,
    "auto_contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
EXACT = {"identity", "equalize", "posterize", "solarize"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", PEERS)
def test_operations_on_values_are_those_of_pillow(name, strength, channels):
    image = photo(channels)
    expected = np.asarray(PEERS[name](pillow(image), strength)).reshape(image.shape)
    # Pillow cuts off fractions, of the result and (enhanced up to 1.9 fold) of the grey that it blends with.
    assert np.abs(ours(name, strength, image) - expected).max() <= (0 if name in EXACT else 2)
    if name != "identity" and abs(strength) == 1 and (name, channels) != ("colour", 1):
        assert np.abs(expected - image.astype(int)).max() > 5  # there was something to get wrong


def test_every_operation_is_compared():
    assert {*PEERS, *MATRICES, "rotate"} == set(randaugment.OPERATIONS)


@pytest.mark.parametrize("angle", [-1.0, 0.5])
def test_rotation_is_counter_clockwise_about_the_centre(angle):
    image = photo()
    expected = pillow(image).rotate(30 * angle, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    assert_alike(ours("rotate", angle, image), np.asarray(expected))


# Where a pixel of the result comes from, about the centre (cx, cy) = (20, 16.5) in Pillow's coordinates: x' = a x + b y
# + c, y' = d x + e y + f.
MATRICES = {
    "shear_x": lambda s: (1, 0.3 * s, -0.3 * s * 16.5, 0, 1, 0),
    "shear_y": lambda s: (1, 0, 0, 0.3 * s, 1, -0.3 * s * 20),
    "translate_x": lambda s: (1, 0, -s * 40 * 150 / 331, 0, 1, 0),
    "translate_y": lambda s: (1, 0, 0, 0, 1, -s * 33 * 150 / 331),
}


@pytest.mark.parametrize("strength", [-0.9, 0.6])
@pytest.mark.parametrize("name", MATRICES)
def test_moves_are_those_of_pillow(name, strength):
    image = photo()
    expected = pillow(image).transform(
        (40, 33), Image.Transform.AFFINE, MATRICES[name](strength), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    assert_alike(ours(name, strength, image), np.asarray(expected))


def assert_alike(result: np.ndarray, expected: np.ndarray) -> None:
    """Assert equality but for rounding, and for a rim of the moved picture, which Pillow does not blend."""
    off = np.abs(result - expected).max(-1) > 1.1
    filled = (expected == 128).all(-1)
    rim = np.zeros_like(filled)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            rim |= np.roll(filled, (down, right), (0, 1)) != filled
    rim[[0, -1]] = rim[:, [0, -1]] = True  # a corner may look out of the picture by less than a pixel
    assert filled.sum() > 10 and not (off & ~rim).any() and (~rim & ~filled).sum() > 200


def test_a_translation_moves_right_and_down():
    image = np.zeros((33, 40, 1), np.float32)
    image[10, 12] = 255
    for name, axis in (("translate_x", 1), ("translate_y", 0)):
        moved = ours(name, 331 / 150 * 4 / image.shape[axis], image) * (ours(name, 0.5, image) != 128)
        assert np.argwhere(moved[..., 0] > 200).tolist() == [[10 + 4 * (axis == 0), 12 + 4 * (axis == 1)]]


@functools.cache
def tiny() -> np.ndarray:
    return photo()[::2, ::2].astype(np.float32)  # 340 pixels: one that is smaller is not equalized


@jax.jit
def each(image: jax.Array, magnitude: float) -> jax.Array:
    """Return the picture after each operation with either sign, (28, H, W, C)."""
    operations, signs = np.repeat(np.arange(14), 2), np.tile(np.array([1.0, -1.0], np.float32), 14)
    return jax.vmap(randaugment.apply_operation, (None, 0, 0))(image, operations, signs * (magnitude / 10))


def drawn(count: int, magnitude: float, n: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), n)
    draw = jax.jit(jax.vmap(lambda key: randaugment.randaugment(tiny(), key, count, magnitude)))
    return np.asarray(draw(keys))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([np.abs(image[None] - b).max((1, 2, 3)) for image in a])


def test_operations_are_drawn_evenly_and_with_both_signs():
    found = distances(drawn(1, 7.0, 700), np.asarray(each(tiny(), 7.0))) < 0.01
    assert found.any(1).all()
    counts = np.bincount(found.argmax(1), minlength=28).reshape(14, 2)  # a draw is counted at the first sign that fits
    assert (np.abs(counts.sum(1) - 50) < 25).all()  # 50 expected, with a standard deviation of 7
    signed = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "colour", "contrast", "brightness"]
    assert (counts[[randaugment.OPERATIONS.index(name) for name in signed]] > 8).all()


def test_two_operations_are_one_after_another():
    twice = drawn(2, 7.0, 20)
    once = np.asarray(each(tiny(), 7.0))
    pairs = np.concatenate([each(image, 7.0) for image in once])
    assert (distances(twice, pairs).min(1) < 0.01).all()
    assert (distances(twice, once).min(1) > 1).mean() > 0.5


def test_at_magnitude_zero_only_the_spreading_of_values_changes_anything():
    image = tiny()
    for name, result in zip(randaugment.OPERATIONS, each(image, 0.0)[::2], strict=True):
        assert np.array_equal(result, image) != (name in ("auto_contrast", "equalize")), name


def test_an_even_picture_is_not_stretched_by_its_rounding():
    even = np.full((20, 20, 3), 77, np.float32) + np.random.default_rng(0).uniform(-1e-4, 1e-4, (20, 20, 3))
    for name in ("auto_contrast", "equalize"):
        assert np.abs(ours(name, 0.5, even) - 77).max() < 1e-3
    assert (ours("posterize", 1.0, even - 13) == 64).all()  # and not 48


def test_pictures_too_small_for_an_operation_are_kept():
    for shape in ((1, 1, 3), (2, 5, 1)):
        image = np.full(shape, 200, np.float32)
        for name in ("sharpness", "equalize", "auto_contrast", "rotate"):
            out = ours(name, 0.5, image)
            assert out.shape == shape and np.isfinite(out).all()
        np.testing.assert_array_equal(ours("sharpness", 0.5, image), image)
