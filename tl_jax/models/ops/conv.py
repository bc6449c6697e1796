"""Convolutions by the fastest method for the platform, including Winograd's F(2x2, 3x3).

All methods agree up to float32 rounding.

F(2x2, 3x3) of Lavin and Gray 2016, arXiv:1509.09308, needs 16 products for 2x2 output pixels instead of 36. Images are
divided into 4x4 tiles that overlap by 2. Tiles and kernels are transformed, multiplied elementwise (a matrix product
over the channels for each of the 16 entries), and transformed back. The transforms only add and halve.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

# Tiles to transform at once; more would exceed the cache and take memory.
MAX_TILES = 3136


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolve (N, H, W, C) with (3, 3, C, F) at stride 1."""
    transformed = _transform_kernel(kernel)
    return _map_chunks(lambda x: _winograd(x, transformed, padding), _count_tiles(x, padding), x)


def _conv3x3_forward(x, kernel, padding):
    return conv3x3(x, kernel, padding), (x, kernel)


def _conv3x3_backward(padding, residuals, dy):
    """Return the gradients: of images by a convolution with the flipped kernel, of the kernel also by tiles."""
    x, kernel = residuals
    (top, bottom), (left, right) = padding
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = conv3x3(dy, flipped, ((2 - top, 2 - bottom), (2 - left, 2 - right)))
    gradients = _map_chunks(
        lambda x, dy: _winograd_kernel_gradient(x, dy, padding)[None], _count_tiles(x, padding), x, dy
    )
    u = gradients.sum(0)
    rows = _transform_taps_transposed(
        [jnp.stack(_transform_taps_transposed([u[i, j] for j in range(4)])) for i in range(4)]
    )
    return dx, jnp.stack(rows).astype(kernel.dtype)


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _winograd(x: jax.Array, transformed: list[list[jax.Array]], padding: Padding) -> jax.Array:
    (n, h, w, _), f = x.shape, transformed[0][0].shape[-1]
    h, w = h + sum(padding[0]) - 2, w + sum(padding[1]) - 2
    tiles = _transform_images(x, padding)
    m = [[_transformed_product(tiles[i][j], transformed[i][j]) for j in range(4)] for i in range(4)]
    rows = [[m[0][j] + m[1][j] + m[2][j] for j in range(4)], [m[1][j] - m[2][j] - m[3][j] for j in range(4)]]
    positions = [[r[0] + r[1] + r[2], r[1] - r[2] - r[3]] for r in rows]
    y = jnp.stack([jnp.stack(row, 3) for row in positions], 2)  # (N, H/2, 2, W/2, 2, F)
    return y.reshape(n, h + h % 2, w + w % 2, f)[:, :h, :w]


def _winograd_kernel_gradient(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    """Return the gradient of the transformed kernel, (4, 4, C, F), for some images."""
    h, w = dy.shape[1:3]
    tiles = _transform_images(x, padding)
    dy = jnp.pad(dy, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    expanded = [_expand_pairs(row, 2) for row in _expand_pairs(dy, 1)]
    products = [weight_gradient(tiles[i][j], expanded[i][j]) for i, j in itertools.product(range(4), range(4))]
    return jnp.stack(products).reshape(4, 4, x.shape[-1], dy.shape[-1])


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum the products of (..., C) and (..., F) over all positions: (C, F), the gradient of a matrix.

    XLA's CPU product first transposes its left factor in memory. If ``dy`` has fewer channels, it goes on the left, so
    that only the small result is transposed, at 1.3 to 4 times the speed. Without the barrier XLA would swap the
    factors back.
    """
    rows, d = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    contraction = (((0,), (0,)), ((), ()))
    (count, c), f = rows.shape, d.shape[-1]
    if count * (c - f) <= c * f:
        return lax.dot_general(rows, d, contraction)
    return lax.optimization_barrier(lax.dot_general(d, rows, contraction)).T


def _transform_images(x: jax.Array, padding: Padding) -> list[list[jax.Array]]:
    """Return the transformed tiles: 4 x 4 arrays (N, H/2, W/2, C)."""
    (top, bottom), (left, right) = padding
    height, width = x.shape[1] + top + bottom, x.shape[2] + left + right
    x = jnp.pad(x, ((0, 0), (top, bottom + height % 2), (left, right + width % 2), (0, 0)))
    return [_transform_tiles(row, 2) for row in _transform_tiles(x, 1)]


def _transform_tiles(x: jax.Array, axis: int) -> list[jax.Array]:
    """Transform tiles of 4 that overlap by 2 along an axis."""
    count = (x.shape[axis] - 2) // 2
    a, b, c, d = (lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _expand_pairs(y: jax.Array, axis: int) -> list[jax.Array]:
    """Spread pairs along an axis over tiles of 4, the transpose of the output transform."""
    a, b = (lax.slice_in_dim(y, i, y.shape[axis], 2, axis) for i in range(2))
    return [a, a + b, a - b, -b]


def _transform_kernel(kernel: jax.Array) -> list[list[jax.Array]]:
    """Return the transformed kernel: 4 x 4 arrays (C, F)."""
    rows = _transform_taps([kernel[i] for i in range(3)])
    return [_transform_taps([row[j] for j in range(3)]) for row in rows]


def _transform_taps(k: list[jax.Array]) -> list[jax.Array]:
    """Transform 3 taps to 4: G in the paper, equation 7."""
    ends, middle = (k[0] + k[2]) / 2, k[1] / 2
    return [k[0], ends + middle, ends - middle, k[2]]


def _transform_taps_transposed(u: list[jax.Array]) -> list[jax.Array]:
    """Return 3 taps from 4, the transpose of ``_transform_taps``."""
    ends, middle = (u[1] + u[2]) / 2, (u[1] - u[2]) / 2
    return [u[0] + ends, middle, ends + u[3]]


def _transformed_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _count_tiles(x: jax.Array, padding: Padding) -> int:
    """Return the number of tiles per image."""
    return -(-(x.shape[1] + sum(padding[0]) - 2) // 2) * -(-(x.shape[2] + sum(padding[1]) - 2) // 2)


def _map_chunks(function: Callable[..., jax.Array], tiles: int, *arrays: jax.Array) -> jax.Array:
    """Apply a function to chunks of the images sequentially, and concatenate the results along the leading axis."""
    count = len(arrays[0])
    chunk = max(d for d in range(1, count + 1) if count % d == 0 and (d == 1 or d * tiles <= MAX_TILES))
    if chunk == count or jax.device_count() > 1:  # devices that share the batch would wait for each other
        return function(*arrays)
    chunks = [array.reshape(count // chunk, chunk, *array.shape[1:]) for array in arrays]
    outputs = lax.map(lambda batch: function(*batch), chunks)
    return outputs.reshape(-1, *outputs.shape[2:])


# Image side up to which XLA's CPU convolution is slower than a matrix product (see Conv).
SMALL_IMAGE = 8
# Minimum input and output channels, and positions over all images, for which Winograd's tiles pay off.
MIN_CHANNELS, MIN_POSITIONS = 32, 1024


def compute_padding(size: tuple[int, ...], window: tuple[int, int], stride: int, padding: str) -> Padding:
    """Return the padding before and after each axis.

    Args:
        size: (H, W) of the image.
        window: (height, width) of the kernel.
        stride: stride of the window, both axes.
        padding: "half" is (k - 1) // 2 on both sides, as in PyTorch's models; "same" is TensorFlow's, which at stride 2
            depends on the size and puts the extra zero last; "valid" is none.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "half":
        vertical, horizontal = ((k - 1) // 2 for k in window)
        return (vertical, vertical), (horizontal, horizontal)
    if padding != "same":
        raise ValueError(f"padding {padding!r} is unknown; use half, same or valid")
    total = [max(0, (-(-s // stride) - 1) * stride + k - s) for s, k in zip(size, window, strict=True)]
    return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)


def crop_kernel(size: tuple[int, ...], kernel: jax.Array, stride: int, padding: Padding) -> tuple[jax.Array, Padding]:
    """Crop a kernel, and its padding, to the taps that reach images of (H, W); the others only multiply zeros.

    For a 3x3 kernel on 1x1 images only the center is left, a ninth of the work: ResNet's last stage at 32x32.
    """
    slices, remaining = [], []
    for axis, (length, (before, after)) in enumerate(zip(size, padding, strict=True)):
        side = kernel.shape[axis]
        starts = range(0, length + before + after - side + 1, stride)
        taps = [tap for tap in range(side) if any(0 <= start + tap - before < length for start in starts)]
        low, high = (taps[0], taps[-1] + 1) if taps else (0, side)
        slices.append(slice(low, high))
        remaining.append((before - low, after - (side - high)))
    return kernel[slices[0], slices[1]], (remaining[0], remaining[1])


_XLA_ONLY = contextvars.ContextVar("xla_only", default=False)


@contextlib.contextmanager
def xla_only() -> Iterator[None]:
    """Use XLA's own convolutions while tracing, for other platforms, symbolic N, or operation counts."""
    token = _XLA_ONLY.set(True)
    try:
        yield
    finally:
        _XLA_ONLY.reset(token)


def on_cpu() -> bool:
    """Return whether to use the methods that are fastest on CPU."""
    return jax.default_backend() == "cpu" and not _XLA_ONLY.get()


def on_gpu() -> bool:
    """Return whether to use the methods that are fastest on GPU."""
    return jax.default_backend() == "gpu" and not _XLA_ONLY.get()


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve (N, H, W, C) with (h, w, C, F)."""
    kernel, padding = crop_kernel(x.shape[1:3], kernel, stride, padding)
    size = [side + sum(pad) - k + 1 for side, pad, k in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)]
    match fastest_method(x.shape[0], size, kernel.shape, stride):
        case "patches":
            return _conv2d_patches(x, kernel, stride, padding)
        case "tiles":
            return conv3x3(x, kernel, padding)
        case "taps":
            return _conv2d_taps(x, kernel, stride, padding)
        case "product" if not any(map(sum, padding)):
            return x[:, ::stride, ::stride] @ kernel[0, 0]
    return _conv2d_lax(x, kernel, stride, padding)


def fastest_method(count: int, size: Sequence[int], kernel: Sequence[int], stride: int) -> str:
    """Return the fastest convolution method on this platform (``experiments/benchmarks/ops.py``).

    Args:
        count: N, number of images.
        size: positions (H, W) of the window at stride 1, the image size if padding preserves it.
        kernel: (h, w, C, F), after cropping.
        stride: stride of the window.

    Returns:
        "xla"; on CPU also "patches" (matrix product), "tiles" (Winograd), or "taps": XLA's with another kernel
        gradient. On GPU also "product", for a 1x1 kernel. XLA fuses biases, sums and ReLUs into one loop after a
        product, whereas after a convolution it first writes each bias at the size of the maps. On an H100 the forward
        pass of ResNet50 went from 17.2 to 13.1 ms (256 images, bfloat16), a step from 56.2 to 53.5 ms.
    """
    height, width, *channels = kernel
    if not on_cpu():
        return "product" if height * width == 1 and on_gpu() else "xla"
    many_channels = min(channels) >= MIN_CHANNELS
    if (height, width, stride) == (3, 3, 1) and many_channels and count * size[0] * size[1] >= MIN_POSITIONS:
        return "tiles"
    if height * width == 1 or (max(size) <= SMALL_IMAGE and height * width <= 9):
        return "patches"
    return "taps" if height * width <= 9 and many_channels else "xla"


def depthwise2d(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve each channel of (N, H, W, C) with its own filter of (h, w, 1, C).

    On CPU this is a sum of shifted images, which is several to tens of times as fast as XLA's grouped convolution
    (``experiments/benchmarks/ops.py``).
    """
    kernel, padding = crop_kernel(x.shape[1:3], kernel, stride, padding)
    if not on_cpu():
        return _conv2d_lax(x, kernel, stride, padding, groups=x.shape[-1])
    return _depthwise(x, kernel, stride, padding)


def _sum_shifted(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    h, w = kernel.shape[:2]
    shifted = _shifted_windows(x, (h, w), stride, padding)
    return sum(window_values * kernel[i // w, i % w][None, None] for i, window_values in enumerate(shifted))  # pyright: ignore


_depthwise = jax.custom_vjp(_sum_shifted, nondiff_argnums=(2, 3))


def _depthwise_forward(x, kernel, stride, padding):
    return _sum_shifted(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, dy):
    """Return the gradients of image and kernel.

    The kernel's gradient is nine sums over batch, height and width. They are accumulated image by image, which XLA
    fuses into one loop over data in the cache. For the whole batch at once it would write nine products to memory and
    read them back, which is 2 to 8 times as slow on 2 cores.
    """
    x, kernel = residuals
    window = kernel.shape[:2]
    (dx,) = jax.linear_transpose(lambda x: _sum_shifted(x, kernel, stride, padding), x)(dy)

    def add(sums, pair):
        image, d = pair
        windows = _shifted_windows(image[None], window, stride, padding)
        return tuple(total + window_values[0] * d for total, window_values in zip(sums, windows, strict=True)), None

    zeros = tuple(jnp.zeros(dy.shape[1:], dy.dtype) for _ in range(window[0] * window[1]))
    sums, _ = lax.scan(add, zeros, (x, dy))
    return dx, jnp.stack([total.sum((0, 1)) for total in sums]).reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _conv2d_lax(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int = 1) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dims, feature_group_count=groups
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_taps(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve like ``lax``, but compute the gradient of the kernel tap by tap.

    XLA's own gradient is a convolution with images as kernels, at 20 to 90 GFLOP/s; these products reach 70 to 140.
    """
    return _conv2d_lax(x, kernel, stride, padding)


def _taps_forward(x, kernel, stride, padding):
    return _conv2d_lax(x, kernel, stride, padding), (x, kernel)


def _taps_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    (dx,) = jax.linear_transpose(lambda x: _conv2d_lax(x, kernel, stride, padding), x)(dy)
    taps = [weight_gradient(tap, dy) for tap in _shifted_windows(x, kernel.shape[:2], stride, padding)]
    return dx, jnp.stack(taps).reshape(kernel.shape)


_conv2d_taps.defvjp(_taps_forward, _taps_backward)


def _conv2d_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    patches = jnp.concatenate(_shifted_windows(x, kernel.shape[:2], stride, padding), axis=-1)
    return _product(patches, kernel.reshape(-1, kernel.shape[-1]))


def dense_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """Multiply (N, D) by (D, K), for ``dot_general`` of ``nn.Dense``; on CPU the gradient is ``weight_gradient``."""
    return _product(x, kernel) if on_cpu() else lax.dot_general(x, kernel, dimensions, **options)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply (..., C) by (C, F)."""
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(residuals, dy):
    x, kernel = residuals
    return dy @ kernel.T, weight_gradient(x, dy)


_product.defvjp(_product_forward, _product_backward)


def _shifted_windows(x: jax.Array, window: tuple[int, ...], stride: int, padding: Padding) -> list[jax.Array]:
    """Return the shifted images for each tap of the window, row by row: h * w arrays (N, H', W', C)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    n, h, w, c = x.shape
    height, width = ((s - k) // stride * stride + 1 for s, k in zip((h, w), window, strict=True))
    steps = (1, stride, stride, 1)
    return [
        lax.slice(x, (0, i, j, 0), (n, i + height, j + width, c), steps)
        for i in range(window[0])
        for j in range(window[1])
    ]
