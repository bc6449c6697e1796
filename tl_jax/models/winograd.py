"""3x3 convolutions with 16 products for 2x2 places instead of 36: F(2x2, 3x3) of Lavin and Gray 2016, arXiv:1509.09308.

Pictures are cut into tiles of 4x4 that overlap by 2; tiles and kernels are transformed, multiplied entry by entry
(a matrix product over the channels for each of the 16), and transformed back to 2x2 places. The transforms add and
halve only, so values differ from those of the plain sum by float32 rounding.
"""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]

# Tiles that are transformed at once: what is made of more would leave the cache, and take memory.
TILES = 3136


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, padding: Pads) -> jax.Array:
    """Convolve (N, H, W, C) with (3, 3, C, F) at stride 1."""
    transformed = _kernel(kernel)
    return _in_turns(lambda x: _forward(x, transformed, padding), _tiles(x, padding), x)


def _kept(x, kernel, padding):
    return conv3x3(x, kernel, padding), (x, kernel)


def _backward(padding, kept, dy):
    """Return the gradients: of pictures a convolution with the kernel turned round, of the kernel by tiles as well."""
    x, kernel = kept
    (top, bottom), (left, right) = padding
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = conv3x3(dy, turned, ((2 - top, 2 - bottom), (2 - left, 2 - right)))
    parts = _in_turns(lambda x, dy: _product_of(x, dy, padding)[None], _tiles(x, padding), x, dy)
    u = parts.sum(0)
    rows = _taps([jnp.stack(_taps([u[i, j] for j in range(4)])) for i in range(4)])
    return dx, jnp.stack(rows).astype(kernel.dtype)


conv3x3.defvjp(_kept, _backward)


def _forward(x: jax.Array, transformed: list[list[jax.Array]], padding: Pads) -> jax.Array:
    (n, h, w, _), f = x.shape, transformed[0][0].shape[-1]
    h, w = h + sum(padding[0]) - 2, w + sum(padding[1]) - 2
    tiles = _pictures(x, padding)
    m = [[_product(tiles[i][j], transformed[i][j]) for j in range(4)] for i in range(4)]
    rows = [[m[0][j] + m[1][j] + m[2][j] for j in range(4)], [m[1][j] - m[2][j] - m[3][j] for j in range(4)]]
    places = [[r[0] + r[1] + r[2], r[1] - r[2] - r[3]] for r in rows]
    y = jnp.stack([jnp.stack(row, 3) for row in places], 2)  # (N, H/2, 2, W/2, 2, F)
    return y.reshape(n, h + h % 2, w + w % 2, f)[:, :h, :w]


def _product_of(x: jax.Array, dy: jax.Array, padding: Pads) -> jax.Array:
    """Return the gradient of the transformed kernel, (4, 4, C, F), of some pictures."""
    h, w = dy.shape[1:3]
    tiles = _pictures(x, padding)
    dy = jnp.pad(dy, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    spread = [_spread(row, 2) for row in _spread(dy, 1)]
    found = [rows_product(tiles[i][j], spread[i][j]) for i, j in itertools.product(range(4), range(4))]
    return jnp.stack(found).reshape(4, 4, x.shape[-1], dy.shape[-1])


def rows_product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum the products of (..., C) and (..., F) over all positions: (C, F), the gradient of a matrix.

    XLA's CPU product turns its left factor over in memory first. With ``dy`` on the left, where that has fewer
    channels, it is the small result that has to be turned over instead, at 1.3 to 4 times the speed where that saves
    something; without the barrier XLA would swap the factors back.
    """
    rows, d = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    over = (((0,), (0,)), ((), ()))
    (count, c), f = rows.shape, d.shape[-1]
    if count * (c - f) <= c * f:
        return lax.dot_general(rows, d, over)
    return lax.optimization_barrier(lax.dot_general(d, rows, over)).T


def _pictures(x: jax.Array, padding: Pads) -> list[list[jax.Array]]:
    """Return the transformed tiles: 4 x 4 arrays (N, H/2, W/2, C)."""
    (top, bottom), (left, right) = padding
    high, wide = x.shape[1] + top + bottom, x.shape[2] + left + right
    x = jnp.pad(x, ((0, 0), (top, bottom + high % 2), (left, right + wide % 2), (0, 0)))
    return [_overlapping(row, 2) for row in _overlapping(x, 1)]


def _overlapping(x: jax.Array, axis: int) -> list[jax.Array]:
    """Transform tiles of 4 that overlap by 2 along an axis."""
    count = (x.shape[axis] - 2) // 2
    a, b, c, d = (lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _spread(y: jax.Array, axis: int) -> list[jax.Array]:
    """Spread pairs along an axis over tiles of 4: the transpose of how tiles become pairs."""
    a, b = (lax.slice_in_dim(y, i, y.shape[axis], 2, axis) for i in range(2))
    return [a, a + b, a - b, -b]


def _kernel(kernel: jax.Array) -> list[list[jax.Array]]:
    """Return the transformed kernel: 4 x 4 arrays (C, F)."""
    rows = _thirds([kernel[i] for i in range(3)])
    return [_thirds([row[j] for j in range(3)]) for row in rows]


def _thirds(k: list[jax.Array]) -> list[jax.Array]:
    """Transform 3 taps to 4: G of the paper, equation 7."""
    ends, middle = (k[0] + k[2]) / 2, k[1] / 2
    return [k[0], ends + middle, ends - middle, k[2]]


def _taps(u: list[jax.Array]) -> list[jax.Array]:
    """Return 3 taps of 4: the transpose of ``_thirds``."""
    ends, middle = (u[1] + u[2]) / 2, (u[1] - u[2]) / 2
    return [u[0] + ends, middle, ends + u[3]]


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _tiles(x: jax.Array, padding: Pads) -> int:
    """Return how many tiles a picture has."""
    return -(-(x.shape[1] + sum(padding[0]) - 2) // 2) * -(-(x.shape[2] + sum(padding[1]) - 2) // 2)


def _in_turns(function: Callable[..., jax.Array], tiles: int, *arrays: jax.Array) -> jax.Array:
    """Apply a function to some pictures after others; what it returns is joined along the leading axis."""
    count = len(arrays[0])
    some = max(d for d in range(1, count + 1) if count % d == 0 and (d == 1 or d * tiles <= TILES))
    if some == count or jax.device_count() > 1:  # devices that share the batch would have to wait for one another
        return function(*arrays)
    split = [array.reshape(count // some, some, *array.shape[1:]) for array in arrays]
    found = lax.map(lambda few: function(*few), split)
    return found.reshape(-1, *found.shape[2:])
