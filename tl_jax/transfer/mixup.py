"""Mixup and CutMix: mixtures of two training examples and of their targets."""

import jax
import jax.numpy as jnp

from tl_jax.utils.errors import UserError


def mixup(images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Blend each image with another image of the batch: Mixup (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        images: (N, H, W, C), uint8 or float.
        targets: (N, K); each row is a distribution, possibly times the example's weight.
        key: samples one ``share`` from Beta(alpha, alpha) for the batch, and the partners, a permutation.
        alpha: above 0; small values leave most batches nearly unchanged.

    Returns:
        ``share * x + (1 - share) * x[partners]`` for images and targets, float32.

    Raises:
        UserError: ``alpha`` is not above 0.
    """
    share, partners = _draw_share(key, len(images), alpha)
    images, targets = jnp.asarray(images, jnp.float32), jnp.asarray(targets, jnp.float32)
    return _blend(images, images[partners], share), _blend(targets, targets[partners], share)


def cutmix(images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Paste a box from another image of the batch into each image: CutMix (Yun et al. 2019, arXiv:1905.04899).

    The box has the image's aspect ratio and 1 - share of its area, rounded down to whole pixels (eq. 1 and 2). Its
    center is uniform over the image, and the box is clipped at the border. All images of a batch have the same box.

    Args:
        images: (N, H, W, C), uint8 or float.
        targets: (N, K); each row is a distribution, possibly times the example's weight.
        key: samples ``share`` from Beta(alpha, alpha), the partners (a permutation of the batch) and the center.
        alpha: above 0.

    Returns:
        Images, float32, and targets, float32, mixed by the final share of pixels of each image.

    Raises:
        UserError: ``alpha`` is not above 0.
    """
    draw_key, row_key, column_key = jax.random.split(key, 3)
    share, partners = _draw_share(draw_key, len(images), alpha)
    side = jnp.sqrt(1 - share)
    rows, columns = _box_mask(row_key, images.shape[1], side), _box_mask(column_key, images.shape[2], side)
    box = rows[:, None] & columns[None, :]
    images, targets = jnp.asarray(images, jnp.float32), jnp.asarray(targets, jnp.float32)
    mixed = jnp.where(box[None, :, :, None], images[partners], images)
    return mixed, _blend(targets, targets[partners], 1 - box.mean())


def _draw_share(key: jax.Array, examples: int, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Sample the share, a scalar in [0, 1], and a permutation, int (N,)."""
    if not alpha > 0:
        raise UserError(f"alpha={alpha}: must be above 0; to disable mixing, do not call it")
    share_key, partner_key = jax.random.split(key)
    return jax.random.beta(share_key, alpha, alpha), jax.random.permutation(partner_key, examples)


def _box_mask(key: jax.Array, length: int, side: jax.Array) -> jax.Array:
    """Return a mask, bool (length,), of a random interval of ``side * length`` pixels along one axis."""
    size = jnp.floor(length * side).astype(jnp.int32)
    start = jax.random.randint(key, (), 0, length) - size // 2
    positions = jnp.arange(length)
    return (positions >= start) & (positions < start + size)


def _blend(own: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    return share * own + (1 - share) * other
