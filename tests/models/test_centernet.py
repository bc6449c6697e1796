"""Arithmetic of boxes beside COCO's own code and numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco

from tl_jax.models import centernet

pytestmark = pytest.mark.fast
detections = jax.jit(centernet.decode_detections, static_argnums=(1, 2))
made = jax.jit(centernet.make_targets, static_argnums=(3, 4, 5))


def drawn(rng, n):
    """Boxes with corners in [0, 40)."""
    low = rng.uniform(0, 20, (n, 2))
    return np.concatenate([low, low + rng.uniform(0.5, 20, (n, 2))], 1)


def test_iou_is_that_of_coco():
    rng = np.random.default_rng(0)
    a, b = drawn(rng, 30), drawn(rng, 20)
    measured = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], 1) for x in (a, b)]
    theirs = coco.iou(*measured, [0] * 20)
    np.testing.assert_allclose(jax.jit(centernet.iou)(a, b), theirs, atol=1e-5)
    assert 0 < (theirs > 0).mean() < 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # 2 of 6 shared, nothing empty in the box around both
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),  # nothing shared, a third of the box around both empty
        ((0, 0, 1, 1), (1, 1, 2, 2), -1 / 2),
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4),
    ],
)
def test_giou_worked_by_hand(a, b, expected):
    assert centernet.giou(jnp.array(a, float), jnp.array(b, float)) == pytest.approx(expected, abs=1e-6)


def literal_nms(boxes, classes, scores, overlap):
    """Non-maximum suppression as its definition says, with COCO's IoU."""
    kept = []
    measured = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    for i in np.argsort(-scores):
        same = [j for j in kept if classes[j] == classes[i]]
        if not same or coco.iou(measured[i : i + 1], measured[same], [0] * len(same)).max() <= overlap:
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("overlap", [0.1, 0.35])
def test_suppression_is_as_defined(overlap):
    rng = np.random.default_rng(1)
    boxes, classes = drawn(rng, 60), rng.integers(0, 2, 60)
    scores = np.sort(rng.uniform(0.1, 1, 60))[::-1].copy()
    out = jax.jit(centernet.suppress_non_maxima)(*map(jnp.asarray, (boxes, classes, scores)), overlap)
    expected = literal_nms(boxes, classes, scores, overlap)
    assert np.flatnonzero(out).tolist() == expected and 5 < len(expected) < 55


def targets(boxes, classes, crowd=None, shape=(8, 8), cell=(4.0, 4.0)):
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    return made(np.array(boxes, np.float32), np.array(classes), np.array(crowd), 2, shape, cell)


def test_targets_worked_by_hand():
    """A box of 16x8 pixels around (14, 10): 4x2 cells, one cell covered to each side across, none along."""
    got = targets([(6, 6, 22, 14), (0, 0, 0, 0)], [1, -1])
    heat = np.zeros((8, 8, 2))
    heat[2, 2:5, 1] = np.exp(-2.0), 1.0, np.exp(-2.0)  # the deviation is 3 / 6 cells
    np.testing.assert_allclose(got.heatmap, heat, atol=1e-6)
    share = np.exp(-2.0) / (1 + 2 * np.exp(-2.0))
    np.testing.assert_allclose(got.weights[2, 2:5], [share, 1 - 2 * share, share], atol=1e-6)
    assert got.weights.sum() == pytest.approx(1.0) and (got.heat_mask == 1).all()
    np.testing.assert_array_equal(got.boxes[2, 3], [6, 6, 22, 14])


def test_of_two_objects_on_a_cell_it_belongs_to_the_smaller():
    got = targets([(0, 0, 32, 32), (12, 12, 20, 20)], [0, 0])
    assert got.boxes[4, 4].tolist() == [12, 12, 20, 20] and got.boxes[4, 5].tolist() == [0, 0, 32, 32]
    assert got.weights.sum() == pytest.approx(2.0)


def test_nothing_is_said_where_a_crowd_is():
    got = targets([(8, 8, 16, 16), (0, 0, 8, 8)], [0, 1], crowd=[True, False])
    assert (np.asarray(got.heat_mask)[2:4, 2:4] == 0).all() and got.heat_mask.sum() == 60
    assert got.heatmap[..., 0].max() == 0 and got.heatmap[..., 1].max() == 1 and got.weights.sum() == pytest.approx(1.0)


def test_what_the_targets_say_is_decoded_to_the_boxes():
    """Maps made from boxes, cells of 4x5 pixels, give the boxes back: two classes, an edge, two neighbours."""
    boxes = np.array([(0, 0, 10, 9), (20, 12, 39, 30), (14, 12, 24, 30), (20, 12, 39, 31)], float)
    classes, cell, shape = [0, 1, 1, 0], (4.0, 5.0), (8, 8)
    wanted = targets(boxes, classes, shape=shape, cell=cell)
    y, x = np.meshgrid((np.arange(8) + 0.5) * 4, (np.arange(8) + 0.5) * 5, indexing="ij")
    middle, own = np.stack([x, y], -1), np.asarray(wanted.boxes)
    sides = np.concatenate([middle - own[..., :2], own[..., 2:] - middle], -1)
    heat = np.log(np.asarray(wanted.heatmap) + 1e-6) - np.log(1 - np.asarray(wanted.heatmap) + 1e-6)
    found = detections({"heat": heat[None], "sides": sides[None]}, (32, 40), 20, 0.6)
    sure = np.asarray(found[0])[np.asarray(found[0, :, 5]) > 0.99]
    assert len(sure) == 4
    for box, k in zip(boxes, classes, strict=True):
        same = sure[(sure[:, 4] == k)]
        assert np.abs(same[:, :4] - box).max(1).min() < 1.01  # of two that share a cell one has the other's sides


def test_of_equal_boxes_the_surest_is_kept():
    heat = np.full((1, 8, 8, 2), -9.0)
    heat[0, 2, 2, 0], heat[0, 2, 4, 0], heat[0, 2, 4, 1] = 3.0, 2.0, 1.0
    sides = np.full((1, 8, 8, 4), 20.0)
    found = np.asarray(detections({"heat": heat, "sides": sides}, (32, 32), 5, 0.6))[0]
    scores = 1 / (1 + np.exp([-3.0, -1.0]))
    np.testing.assert_allclose(found[:2, 5], scores, atol=1e-6)  # the second of class 0 lies on the first
    assert found[:2, 4].tolist() == [0, 1] and (found[2:, 5] < 0.01).all()
