"""Boxes follow their pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_jax.data import augment
from tl_jax.data.augment import AugmentConfig, augment_boxes, crop_boxes, flip_boxes

pytestmark = pytest.mark.fast
SIDES = (48, 64)
HOW = AugmentConfig(flip=True, resized_crop=0.3)
changed = jax.jit(augment_boxes, static_argnums=(3, 4))


def filled(box):
    """A black picture (48, 64) with a white rectangle, its label, and a row that pads."""
    x0, y0, x1, y1 = box
    image = np.zeros((1, *SIDES, 3), np.uint8)
    image[:, y0:y1, x0:x1] = 255
    return image, np.array([[[*box, 2, 0], [0, 0, 0, 0, -1, 0]]], np.float32)


def test_mirrored_worked_by_hand():
    np.testing.assert_array_equal(flip_boxes(jnp.array([[1.0, 2.0, 5.0, 8.0]]), 64), [[59, 2, 63, 8]])


@pytest.mark.parametrize(
    ("box", "moved", "left"),
    [
        ((16, 12, 32, 24), (0, 0, 32, 24), 1.0),  # the crop's corner is the box's, twice the size
        ((0, 0, 16, 12), (0, 0, 0, 0), 0.0),  # outside
        ((8, 12, 24, 24), (0, 0, 16, 24), 0.5),  # its left half is cut off
        ((0, 0, 64, 48), (0, 0, 64, 48), 0.25),
    ],
)
def test_a_crop_worked_by_hand(box, moved, left):
    """The crop is the middle quarter of 64x48 pixels."""
    cut = tuple(jnp.float32(v) for v in (0.25, 0.25, 0.5, 0.5))
    boxes, shares = crop_boxes(jnp.array([box], jnp.float32), cut, SIDES)
    np.testing.assert_allclose(boxes[0], moved, atol=1e-4)
    assert shares[0] == pytest.approx(left, abs=1e-6)


@given(st.integers(0, 2**31 - 1), st.integers(0, 50), st.integers(0, 36), st.integers(8, 40), st.integers(8, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_box_still_bounds_its_pixels(seed, x0, y0, width, height):
    """A white rectangle after flips and crops: the pixels that are mostly white are bounded by its box."""
    box = (x0, y0, min(x0 + width, SIDES[1]), min(y0 + height, SIDES[0]))
    images, labels = changed(*filled(box), jax.random.key(seed), HOW, 0.0)
    white = np.asarray(images)[0, ..., 0] > 127.5
    got = np.asarray(labels)[0, 0]
    if not white.any():
        assert (got[2] - got[0]) * (got[3] - got[1]) < 4.0  # a sliver at the most
        return
    (rows,), (columns,) = white.any(1).nonzero(), white.any(0).nonzero()
    bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(got[:4], bounds, atol=1.0)
    assert got[4] == 2 and (np.asarray(labels)[0, 1] == [0, 0, 0, 0, -1, 0])[4]


def test_boxes_that_leave_the_crop_are_dropped_by_their_visible_share(monkeypatch):
    cut = tuple(jnp.float32(v) for v in (0.0, 0.25, 1.0, 0.75))
    monkeypatch.setattr(augment, "random_rectangle", lambda *_: cut)
    image, _ = filled((8, 0, 24, 48))
    rows = [8, 0, 24, 48, 1, 0], [0, 0, 20, 10, 0, 0], [20, 0, 40, 9, 1, 1], [0, 0, 15, 9, 1, 0]  # the last is gone
    labels = np.array([rows], np.float32)
    for visible, classes in ((0.3, [1, -1, 1, -1]), (0.6, [-1, -1, 1, -1]), (0.1, [1, 0, 1, -1]), (0.0, [1, 0, 1, -1])):
        _, got = changed(image, labels, jax.random.key(0), AugmentConfig(resized_crop=0.5), visible)
        assert got[0, :, 4].tolist() == classes and got[0, :, 5].tolist() == [0, 0, 1, 0]


def test_colours_leave_boxes_where_they_are_and_nothing_leaves_all():
    _, labels = filled((8, 8, 24, 30))
    image = np.random.default_rng(0).integers(0, 256, (1, *SIDES, 3), np.uint8)
    same, unmoved = augment_boxes(image, labels, jax.random.key(0), AugmentConfig(), 0.3)
    np.testing.assert_array_equal(same, image)
    images, moved = changed(image, labels, jax.random.key(0), AugmentConfig(jitter=0.5), 0.3)
    np.testing.assert_array_equal(unmoved, labels)
    np.testing.assert_array_equal(moved, labels)
    assert not np.array_equal(images, image)


def test_half_are_mirrored_and_keys_decide():
    image, labels = filled((0, 0, 10, 10))
    many = np.repeat(image, 64, 0), np.repeat(labels, 64, 0)
    _, got = changed(*many, jax.random.key(1), AugmentConfig(flip=True), 0.3)
    assert 16 < (np.asarray(got)[:, 0, 0] == 54).sum() < 48
    again = changed(*many, jax.random.key(1), AugmentConfig(flip=True), 0.3)[1]
    np.testing.assert_array_equal(got, again)
