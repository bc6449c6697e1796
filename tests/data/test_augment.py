"""Every option of augmentation, against Pillow, against NumPy, and by the numbers that its results give away."""

import colorsys
import dataclasses

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from tl_jax.data.augment import AugmentConfig, _shift_hue, augment

pytestmark = pytest.mark.fast

OPTIONS = [
    AugmentConfig(resized_crop=0.3),
    AugmentConfig(jitter=0.8),
    AugmentConfig(grey=0.5),
    AugmentConfig(randaugment=2),
    AugmentConfig(erase=0.7),
    AugmentConfig(True, 2, 20.0, 0.5, 0.4, 0.2, 2, 9.0, 0.5),
]


def ids(how: AugmentConfig) -> str:
    return "+".join(name for name, value in how.to_dict().items() if value and name != "magnitude")


jitted = jax.jit(augment, static_argnums=2)


def run(images: np.ndarray, how: AugmentConfig, seed: int = 0) -> np.ndarray:
    return np.asarray(jitted(images, jax.random.key(seed), how))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Noise, a ramp, and the pictures on which a division by the range of values or by a sum fails."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 12, 14, 3))
    ramp = np.broadcast_to(np.linspace(0, 255, 14)[None, :, None], (12, 14, 3))
    even = [np.full((12, 14, 3), value) for value in (0, 1, 128, 255)]
    extremes = 255 * rng.integers(0, 2, (2, 12, 14, 3))
    return np.concatenate([noise, [ramp], even, extremes]).astype(np.uint8)


def test_the_first_three_options_draw_what_they_always_drew(pictures):
    how, key = AugmentConfig(flip=True, crop_pad=2, rotate=25.0), jax.random.key(5)
    expected, angles = [], []
    for image, k in zip(pictures, jax.random.split(key, len(pictures)), strict=True):
        flip, crop, turn = jax.random.split(k, 3)
        image = image[:, ::-1] if jax.random.bernoulli(flip) else image
        top, left, _ = (int(jax.random.randint(c, (), 0, 5)) for c in jax.random.split(crop, 3))
        image = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")[top : top + 12, left : left + 14]
        expected.append(image)
        angles.append(np.deg2rad(25) * jax.random.uniform(turn, minval=-1, maxval=1))
    np.testing.assert_array_equal(run(pictures, dataclasses.replace(how, rotate=0.0), 5), expected)
    turned = jax.jit(jax.vmap(pix.rotate))(jnp.asarray(expected, jnp.float32), jnp.asarray(angles))
    # What is new comes after, from keys of its own: here it happens to nobody.
    late = dataclasses.replace(how, resized_crop=1.0, grey=1e-9)
    np.testing.assert_allclose(run(pictures, late, 5), turned, atol=1e-2)


@pytest.mark.parametrize("how", OPTIONS, ids=ids)
def test_results_are_in_range_and_depend_on_the_key_alone(pictures, how):
    out = run(pictures, how)
    assert out.dtype == np.float32 and out.shape == pictures.shape
    assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 255
    np.testing.assert_array_equal(out, run(pictures, how))
    other = run(pictures, how, seed=1)
    assert np.abs(out - pictures).max() > 20 and np.abs(out - other).max() > 20
    same = run(np.stack([pictures[0]] * len(pictures)), how)
    assert len({image.tobytes() for image in same}) > 1  # each picture has a key of its own


def test_pictures_of_one_channel_or_with_fractions(pictures):
    for images in (pictures[..., :1] * np.float32(scale) for scale in (1, 0.9999, 0.1)):
        out = run(images, OPTIONS[-1])
        assert out.shape == images.shape and np.isfinite(out).all() and out.min() >= 0 and out.max() <= 255
        assert len({image.tobytes() for image in out}) > 8  # differing, if not the even ones


def test_hues_are_turned_as_by_the_standard_library():
    picture = np.random.default_rng(3).integers(20, 236, (16, 16, 3)).astype(np.float32)
    picture[0], picture[:, 0, 0] = 90, picture[:, 0, 1]  # grey, and two channels alike
    for turn in (-0.1, 0.0, 0.04):
        ours = jax.jit(_shift_hue)(picture, turn)
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in picture.reshape(-1, 3).tolist()]
        peer = np.array([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv])
        np.testing.assert_allclose(np.asarray(ours).reshape(-1, 3), peer, atol=1e-2)


def test_colour_is_not_made_up_where_there_is_none(pictures):
    grey = np.repeat(pictures[..., :1], 3, axis=-1)
    for how in OPTIONS[:4]:
        assert np.ptp(run(grey, how), axis=-1).max() < 1e-2


@pytest.mark.parametrize("least", [0.1, 0.8])
def test_resized_crops_keep_the_share_and_the_shape_they_should(least):
    n, h, w = 300, 24, 36
    row, column = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    ramps = np.broadcast_to(np.stack([row, column, row], -1), (n, h, w, 3))
    noise = np.random.default_rng(1).integers(0, 256, (n, h, w, 3)).astype(np.uint8)
    out, cropped = (run(images.astype(np.float32), AugmentConfig(resized_crop=least)) for images in (ramps, noise))
    high, wide = out[:, 14, 0, 0] - out[:, 13, 0, 0], out[:, 0, 20, 1] - out[:, 0, 19, 1]  # share of each side
    top, left = out[:, 12, 0, 0] + 0.5 - 12.5 * high, out[:, 0, 18, 1] + 0.5 - 18.5 * wide
    assert top.min() > -1e-3 and left.min() > -1e-3
    assert (top + high * h).max() < h + 1e-3 and (left + wide * w).max() < w + 1e-3
    area, ratio = high * wide, wide / high
    assert least - 1e-4 <= area.min() < least + 0.05 and 0.95 < area.max() <= 1 + 1e-4
    assert 0.749 < ratio.min() < ratio.max() < 1.334
    assert abs(np.log(ratio).mean()) < 0.03 and np.ptp(ratio) > (0.5 if least < 0.5 else 0.3)
    room = high < 0.9
    where = top[room] / (h * (1 - high[room]))
    assert where.min() < 0.1 and where.max() > 0.9 and abs(where.mean() - 0.5) < 0.1
    for i in range(20):
        box = np.clip((left[i], top[i], left[i] + wide[i] * w, top[i] + high[i] * h), 0, (w, h, w, h))
        pillow = Image.fromarray(noise[i]).resize((w, h), Image.Resampling.BILINEAR, box=tuple(map(float, box)))
        assert np.abs(cropped[i] - np.asarray(pillow)).max() <= 1.1  # Pillow rounds after each direction


def chart() -> np.ndarray:
    """A ramp of greys above an even red, all far from 0 and 255."""
    picture = np.empty((8, 8, 3), np.float32)
    picture[:4] = np.linspace(90, 110, 8)[None, :, None]
    picture[4:] = (110, 90, 90)
    return picture


def factors_of(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what brightness and contrast (N,) must have been multiplied by: a * m + a * b * (x - m)."""
    mean = (before @ [0.299, 0.587, 0.114] if before.shape[-1] == 3 else before).mean()
    slope = (after[:, 0, 7, 0] - after[:, 0, 0, 0]) / 20
    brightness = (after[:, 0, 0, 0] + slope * (mean - 90)) / mean
    return brightness, slope / brightness


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_draws_its_factors_from_the_range_it_names(channels):
    picture = chart()[..., :channels]
    out = run(np.stack([picture] * 300), AugmentConfig(jitter=0.4))
    np.testing.assert_allclose(np.diff(out[:, :4], axis=2, n=2), 0, atol=1e-2)  # a line stays a line
    factors = [*factors_of(picture, out)]
    if channels == 3:
        red = out[:, 4, 4]
        factors.append(np.ptp(red, axis=1) / np.ptp(picture[4, 4]) / (factors[0] * factors[1]))
        hues = np.array([(colorsys.rgb_to_hsv(*pixel / 255)[0] + 0.5) % 1 - 0.5 for pixel in red])
        assert np.abs(hues).max() <= 0.0401 and hues.min() < -0.03 and hues.max() > 0.03
    for factor in factors:
        assert 0.599 < factor.min() < 0.65 and 1.35 < factor.max() < 1.401 and abs(factor.mean() - 1) < 0.06
    assert np.abs(np.corrcoef(factors) - np.eye(len(factors))).max() < 0.2  # drawn one by one


def test_grey_pictures_are_as_many_as_asked_and_as_pillow_has_them():
    images = np.random.default_rng(2).integers(0, 256, (400, 3, 4, 3)).astype(np.uint8)
    out = run(images, AugmentConfig(grey=0.3))
    turned = np.ptp(out, axis=-1).max((1, 2)) == 0
    assert 0.22 < turned.mean() < 0.38
    np.testing.assert_array_equal(out[~turned], images[~turned])
    for image, result in zip(images[turned], out[turned], strict=True):
        pillow = np.asarray(ImageOps.grayscale(Image.fromarray(image)))
        assert np.abs(result[..., 0] - pillow).max() <= 0.51


def test_what_is_erased_is_a_rectangle_of_noise_within_its_bounds():
    n, h, w = 500, 60, 90
    out = run(np.full((n, h, w, 1), 7, np.uint8), AugmentConfig(erase=0.4))[..., 0]
    changed = out != 7
    erased = changed.any((1, 2))
    assert 0.33 < erased.mean() < 0.47
    areas, ratios, tops = [], [], []
    for mask, image in zip(changed[erased], out[erased], strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert np.array_equal(mask, rows[:, None] & columns[None])  # the product of two ...
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2 and np.abs(np.diff(columns.astype(int))).sum() <= 2  # runs
        high, wide = rows.sum() / h, columns.sum() / w
        areas.append(high * wide)
        ratios.append(wide / high)
        tops.append(rows.argmax() / max(1, h - rows.sum()))
        noise = image[mask]
        if noise.size > 1000:
            assert abs(noise.mean() - 127.5) < 12 and abs(noise.std() - 255 / 12**0.5) < 8
    # Whole pixels: the smallest rectangle has sides of some 5 and 23, so an area 10 % off is a pixel of one side.
    assert 0.016 < min(areas) < 0.05 and 0.3 < max(areas) < 0.35
    assert 0.27 < min(ratios) < 0.45 and 2.2 < max(ratios) < 3.7
    assert abs(np.mean(areas) - 0.175) < 0.02 and abs(np.log(ratios).mean()) < 0.12
    assert min(tops) < 0.05 and max(tops) > 0.95 and abs(np.mean(tops) - 0.5) < 0.08
