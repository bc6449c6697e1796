"""Views for test-time augmentation, against NumPy and Pillow."""

import jax
import numpy as np
import pytest
from PIL import Image

from tl_jax.data.augment import tta_views
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3)).astype(np.uint8)


def test_one_view_is_the_picture_and_two_have_its_mirror_image(pictures):
    np.testing.assert_array_equal(tta_views(pictures, 1), pictures[None])
    two = tta_views(pictures, 2)
    np.testing.assert_array_equal(two, np.stack([pictures, pictures[:, :, ::-1]]))
    assert two.dtype == np.uint8


def test_ten_views_are_five_enlarged_crops_and_their_mirror_images(pictures):
    ten = np.asarray(jax.jit(tta_views, static_argnums=1)(pictures, 10))
    assert ten.shape == (10, 3, 16, 24, 3) and ten.dtype == np.float32 and ten.min() >= 0 and ten.max() <= 255
    np.testing.assert_array_equal(ten[5:], ten[:5, :, :, ::-1])
    boxes = [(0, 0, 21, 14), (3, 0, 24, 14), (0, 2, 21, 16), (3, 2, 24, 16), (1, 1, 22, 15)]
    for view, box in zip(ten, boxes, strict=False):
        for ours, image in zip(view, pictures, strict=True):
            peer = Image.fromarray(image).crop(box).resize((24, 16), Image.Resampling.BILINEAR)
            assert np.abs(ours - np.asarray(peer)).max() <= 1.1  # Pillow rounds after each direction


@pytest.mark.parametrize("channels", [1, 3])
def test_an_even_picture_stays_as_it_is(channels):
    ten = np.asarray(tta_views(np.full((2, 9, 7, channels), 255, np.float32), 10))
    assert ten.shape == (10, 2, 9, 7, channels) and ten.max() <= 255
    np.testing.assert_allclose(ten, 255, rtol=1e-6)


def test_other_counts_are_refused(pictures):
    with pytest.raises(UserError, match="5 views per image: unsupported; use 1, 2, 10"):
        tta_views(pictures, 5)
