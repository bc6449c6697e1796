"""Numbers of channels other than three: turned into one another, and scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tl_jax.data.preprocess import SCALINGS, convert_channels, scale
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_same_number_changes_nothing(count: int) -> None:
    images = jnp.zeros((1, 2, 2, count), jnp.uint8)
    assert convert_channels(images, count) is images


def test_luma_is_that_of_pillow(colours: np.ndarray) -> None:
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])[..., None]
    for turn in (convert_channels, jax.jit(convert_channels, static_argnums=1)):
        grey = turn(jnp.asarray(colours), 1)
        assert grey.dtype == jnp.uint8
        np.testing.assert_array_equal(grey, expected)
    real = convert_channels(jnp.asarray(colours, jnp.float32), 1)
    assert real.dtype == jnp.float32 and np.abs(real - expected).max() <= 0.51  # Pillow rounds


def test_grey_is_repeated_and_comes_back(colours: np.ndarray) -> None:
    grey = jnp.asarray(colours[..., :1])
    three = convert_channels(grey, 3)
    assert three.dtype == jnp.uint8 and three.shape == colours.shape
    np.testing.assert_array_equal(three, np.repeat(colours[..., :1], 3, -1))
    np.testing.assert_array_equal(convert_channels(three, 1), grey)


@pytest.mark.parametrize(("have", "want"), [(4, 3), (3, 4), (2, 1), (1, 2), (3, 2)])
def test_other_numbers_are_refused(have: int, want: int) -> None:
    with pytest.raises(UserError, match=f"with {have} channels cannot be converted to {want};"):
        convert_channels(jnp.zeros((1, 2, 2, have)), want)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("name", SCALINGS)
def test_other_numbers_are_scaled_by_the_average(name: str, count: int) -> None:
    rule = SCALINGS[name]
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 3, count)).astype(np.uint8)
    expected = (images * rule.scale - np.mean(rule.mean)) / np.mean(rule.std)
    scaled = scale(jnp.asarray(images), name)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-5)
