"""Drawn pictures: the same at every call, evenly many of each class, and with something to learn."""

import numpy as np
import pytest

from tl_jax.data import synthetic

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("draw", [synthetic.draw_gratings, synthetic.draw_shapes])
def test_they_are_the_same_at_every_call(draw):
    first, again = draw(train=200, test=50), draw(train=200, test=50)
    for part, other in ((first.train, again.train), (first.test, again.test)):
        assert part.inputs.dtype == np.uint8 and part.inputs.shape[1:] == (32, 32, 3) and part.labels.dtype == np.int32
        np.testing.assert_array_equal(part.inputs, other.inputs)
        np.testing.assert_array_equal(part.labels, other.labels)
        assert set(np.bincount(part.labels, minlength=10)) <= {len(part.labels) // 10, len(part.labels) // 10 + 1}
    assert not np.array_equal(first.train.inputs[:50], first.test.inputs)


def test_shapes_have_the_size_of_their_kind():
    source = synthetic.draw_shapes(train=500, test=100)
    assert source.classes == tuple(synthetic.SHAPES) and len(source.train.inputs) == 500
    v, u = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j]
    areas = {name: inside(u, v).mean() * 9 for name, inside in synthetic.SHAPES.items()}
    assert areas["disc"] == pytest.approx(np.pi, rel=0.02) and areas["half"] == pytest.approx(np.pi / 2, rel=0.03)
    assert areas["square"] == pytest.approx(1.6**2, rel=0.03) and areas["bar"] == pytest.approx(1.0, rel=0.05)
    assert areas["ellipse"] == pytest.approx(np.pi / np.sqrt(5), rel=0.03)
    assert all(area > 0.3 for area in areas.values())


def test_shapes_stand_out_from_what_is_behind_them():
    images = synthetic.draw_shapes(train=100, test=100).train.inputs[:10].astype(float)
    assert images.std(axis=(1, 2)).max(1).min() > 15
