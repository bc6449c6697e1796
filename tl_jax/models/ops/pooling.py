"""Max and average pooling; on CPU as comparisons and sums of shifted images, elsewhere by XLA.

XLA's CPU gradient of max pooling visits the windows one by one: at 224x224 that is a quarter of a training step of
VGG16 (``experiments/benchmarks/ops.py``).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.models.ops import conv


def max_pool(x: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Max pooling over windows of (N, H, W, C), padded with minus infinity on each side.

    The gradient goes to the first maximum of a window, in row-major order.
    """
    if not conv.on_cpu():
        return nn.max_pool(x, (window, window), (stride, stride), _symmetric_padding(pad))
    if pad:
        padding = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        x = jnp.pad(x, padding, constant_values=-jnp.inf)
    return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


def _symmetric_padding(pad: int) -> Any:
    """Return the padding of an image's two sides; flax's types only allow names."""
    return [(pad, pad)] * 2


def mean_pool(x: jax.Array, count_padding: bool) -> jax.Array:
    """Average pooling over 3x3 windows at stride 1 of (N, H, W, C), padded by one.

    Keras excludes the padding from the mean; torchvision's Inception counts it as zeros.
    """
    if not conv.on_cpu():
        return nn.avg_pool(x, (3, 3), (1, 1), _symmetric_padding(1), count_include_pad=count_padding)
    if count_padding:
        return _sum_3x3(x) / 9
    rows, columns = (
        3 - (positions == 0) - (positions == side - 1) for side in x.shape[1:3] for positions in [np.arange(side)]
    )
    return _sum_3x3(x) / np.multiply.outer(rows, columns)[None, :, :, None].astype(x.dtype)


def adaptive_mean_pool(x: jax.Array, size: int) -> jax.Array:
    """Average over ``size`` windows per axis that cover (N, H, W, C) evenly, as PyTorch's AdaptiveAvgPool2d."""
    rows, columns = (_averaging_matrix(s, size).astype(x.dtype) for s in x.shape[1:3])
    return x if x.shape[1:3] == (size, size) else jnp.einsum("nhwc,ih,jw->nijc", x, rows, columns)


def _max_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    """Return the maximum over windows of one axis."""
    count = (x.shape[axis] - window) // stride + 1
    if window == stride:  # a reshape tells XLA that windows do not overlap
        trimmed = jax.lax.slice_in_dim(x, 0, count * stride, axis=axis)
        windows = trimmed.reshape(*x.shape[:axis], count, stride, *x.shape[axis + 1 :])
        shifted = [jax.lax.index_in_dim(windows, i, axis + 1, keepdims=False) for i in range(window)]
    else:
        last = (count - 1) * stride + 1
        shifted = [jax.lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(window)]
    return functools.reduce(_maximum, shifted)


def _maximum(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the maximum, the first if tied; NaN propagates, so divergence is noticed."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)


@jax.custom_vjp
def _sum_3x3(x: jax.Array) -> jax.Array:
    """Return the sum over 3x3 windows with zero padding; it is its own transpose."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


_sum_3x3.defvjp(lambda x: (_sum_3x3(x), None), lambda _, dy: (_sum_3x3(dy),))


def _averaging_matrix(length: int, size: int) -> jax.Array:
    """Return the matrix (size, length) whose row i averages from i to i + 1, in units of length / size."""
    row, column = jnp.arange(size)[:, None], jnp.arange(length)[None]
    inside = (column >= row * length // size) & (column < -(-(row + 1) * length // size))
    return inside / inside.sum(axis=1, keepdims=True)
