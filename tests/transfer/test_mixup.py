"""Mixup and CutMix: what is mixed with what, in which shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.transfer import mixup
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def test_mixup_blends_pictures_and_targets_alike():
    images, targets = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2, 1), np.eye(8)
    mixed, shares = jax.jit(mixup.mixup, static_argnums=3)(images, targets, jax.random.key(3), 1.0)
    assert mixed.dtype == shares.dtype == jnp.float32
    # Targets tell who was mixed with whom, as no two examples share a class.
    share = float(shares[np.arange(8), np.arange(8)].min())
    partners = [next((j for j in range(8) if j != i and shares[i, j] > 0), i) for i in range(8)]
    assert 0 < share < 1 and sorted(partners) == list(range(8)) and partners != list(range(8))
    for i, j in enumerate(partners):
        np.testing.assert_allclose(mixed[i], share * images[i] + (1 - share) * images[j], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(shares[i], share * targets[i] + (1 - share) * targets[j], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 5.0])
def test_the_share_of_mixup_follows_beta(alpha):
    images, keys = jnp.zeros((16, 1, 1, 1)), jax.random.split(jax.random.key(0), 4000)
    targets = jax.jit(jax.vmap(lambda key: mixup.mixup(images, jnp.eye(16), key, alpha)[1]))(keys)
    shares = jnp.diagonal(targets, axis1=1, axis2=2).min(1)  # 1 for those that met themselves
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.1)


N, HEIGHT, WIDTH = 12, 16, 12
COLOURS = np.arange(N, dtype=np.uint8)[:, None, None, None]


def cut(alpha, draws):
    """Cut pictures of one colour each, ``draws`` times: pictures (draws, N, H, W), targets, boxes (draws, H, W)."""
    images = np.broadcast_to(COLOURS, (N, HEIGHT, WIDTH, 2))
    once = jax.jit(jax.vmap(lambda key: mixup.cutmix(images, jnp.eye(N), key, alpha)))
    mixed, targets = once(jax.random.split(jax.random.key(0), draws))
    assert mixed.dtype == targets.dtype == jnp.float32
    mixed = np.asarray(mixed)
    np.testing.assert_array_equal(mixed[..., 0], mixed[..., 1])
    return mixed[..., 0], np.asarray(targets), (mixed != COLOURS[None]).any((1, 4))


def test_cutmix_has_one_box_and_targets_by_its_exact_area():
    pictures, targets, boxes = cut(1.0, 50)
    for mixed, shares, box in zip(pictures, targets, boxes, strict=True):
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns[None])
        assert all((np.diff(np.flatnonzero(span)) == 1).all() for span in (rows, columns))  # one piece
        expected = [[(picture == other).mean() for other in range(N)] for picture in mixed]
        np.testing.assert_allclose(shares, expected, atol=1e-6)
        partners = [picture[box][0] if box.any() else i for i, picture in enumerate(mixed)]
        assert sorted(partners) == list(range(N))
    assert len(np.unique(boxes.sum((1, 2)))) > 20


def test_the_box_of_cutmix_has_the_area_that_is_drawn():
    _, _, boxes = cut(1e8, 300)  # the share is 0.5, so the sides are sqrt(0.5) of 16 and 12 pixels: 11 and 8
    rows, columns = boxes.any(2), boxes.any(1)
    sizes = np.stack([rows.sum(1), columns.sum(1)])
    whole = ~(rows[:, [0, -1]].any(1) | columns[:, [0, -1]].any(1))
    assert whole.sum() > 10 and np.all(sizes[:, whole] == np.array([[11], [8]]))
    # With its centre on the border about half of it is cut off, and no more.
    assert sizes.max(1).tolist() == [11, 8] and sizes.min(1).tolist() == [6, 4]


@pytest.mark.parametrize("mix", [mixup.mixup, mixup.cutmix])
def test_mixing_is_keyed_and_refuses_an_alpha_of_zero(mix):
    args = np.random.default_rng(0).normal(size=(4, 6, 6, 3)), np.eye(4)
    first, again, other = (mix(*args, jax.random.key(seed), 1.0)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    with pytest.raises(UserError, match="above 0"):
        mix(*args, jax.random.key(0), 0.0)
