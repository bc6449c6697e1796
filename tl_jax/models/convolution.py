"""Convolutions by the way that is fastest where they run; all give the same values up to float32 rounding."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tl_jax.models import winograd
from tl_jax.models.winograd import Pads, rows_product

# Where XLA's CPU convolution falls behind a matrix product (see Conv): pictures of at most this many pixels a side.
SMALL_PICTURE = 8
# From where on Winograd's tiles save more than they cost: channels in and out, places of all pictures together.
FEW_CHANNELS, FEW_PLACES = 32, 1024


def pads(size: tuple[int, ...], window: tuple[int, int], stride: int, padding: str) -> Pads:
    """Return the zeros before and after each axis.

    Args:
        size: (H, W) of the picture.
        window: (height, width) of the kernel.
        stride: step of the window, both axes.
        padding: "half" is (k - 1) // 2 on both sides, as PyTorch's models have it; "same" is TensorFlow's, which at
            stride 2 depends on the size and puts the odd zero last; "valid" is none.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "half":
        high, wide = ((k - 1) // 2 for k in window)
        return (high, high), (wide, wide)
    if padding != "same":
        raise ValueError(f"padding {padding!r} is none of half, same, valid")
    total = [max(0, (-(-s // stride) - 1) * stride + k - s) for s, k in zip(size, window, strict=True)]
    return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)


def seeing(size: tuple[int, ...], kernel: jax.Array, stride: int, padding: Pads) -> tuple[jax.Array, Pads]:
    """Return the part of a kernel that meets pictures of (H, W), and its padding; the rest meets zeros only.

    Of a 3x3 kernel on pictures of one pixel that is the middle, a ninth of the work: ResNet's last stage at 32x32.
    """
    met, left = [], []
    for axis, (length, (before, after)) in enumerate(zip(size, padding, strict=True)):
        side = kernel.shape[axis]
        starts = range(0, length + before + after - side + 1, stride)
        taps = [tap for tap in range(side) if any(0 <= start + tap - before < length for start in starts)]
        low, high = (taps[0], taps[-1] + 1) if taps else (0, side)
        met.append(slice(low, high))
        left.append((before - low, after - (side - high)))
    return kernel[met[0], met[1]], (left[0], left[1])


_PLAIN = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Convolve as XLA does in what is traced meanwhile: programs for other platforms, any N, operations asked for."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def on_cpu() -> bool:
    """Whether to compute in the ways that are fastest on CPU."""
    return jax.default_backend() == "cpu" and not _PLAIN.get()


def on_gpu() -> bool:
    """Whether to compute in the ways that are fastest on a GPU."""
    return jax.default_backend() == "gpu" and not _PLAIN.get()


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Convolve (N, H, W, C) with (h, w, C, F)."""
    kernel, padding = seeing(x.shape[1:3], kernel, stride, padding)
    size = [side + sum(pad) - k + 1 for side, pad, k in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)]
    match way(x.shape[0], size, kernel.shape, stride):
        case "patches":
            return _conv2d_patches(x, kernel, stride, padding)
        case "tiles":
            return winograd.conv3x3(x, kernel, padding)
        case "taps":
            return _conv2d_taps(x, kernel, stride, padding)
        case "product" if not any(map(sum, padding)):
            return x[:, ::stride, ::stride] @ kernel[0, 0]
    return _conv2d_lax(x, kernel, stride, padding)


def way(count: int, size: Sequence[int], kernel: Sequence[int], stride: int) -> str:
    """Return the fastest way to convolve on this platform (``experiments/benchmarks/convolution.py``).

    Args:
        count: N, pictures.
        size: places (H, W) of the window at stride 1: that of the pictures where zeros around them keep it.
        kernel: (h, w, C, F), as it meets them.
        stride: of the window.

    Returns:
        "xla"; on CPU also "patches" times a matrix, "tiles" (Winograd's), or "taps": XLA's, but for the gradient; on a
        GPU also the "product" that a 1x1 kernel is. Written so, XLA adds biases, sums and ReLUs in one loop behind it,
        where behind the convolution it first writes each bias out at the size of the maps: on an H100 the forward pass
        of ResNet50 took 17.2 ms and takes 13.1 (256 pictures, bfloat16), a step 56.2 and 53.5.
    """
    high, wide, *channels = kernel
    if not on_cpu():
        return "product" if high * wide == 1 and on_gpu() else "xla"
    many = min(channels) >= FEW_CHANNELS
    if (high, wide, stride) == (3, 3, 1) and many and count * size[0] * size[1] >= FEW_PLACES:
        return "tiles"
    if high * wide == 1 or (max(size) <= SMALL_PICTURE and high * wide <= 9):
        return "patches"
    return "taps" if high * wide <= 9 and many else "xla"


def depthwise2d(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Convolve each channel of (N, H, W, C) with its own filter of (h, w, 1, C).

    On CPU as a sum of shifted pictures, which is several times to tens of times as fast as XLA's grouped convolution
    (``experiments/benchmarks/depthwise.py``).
    """
    kernel, padding = seeing(x.shape[1:3], kernel, stride, padding)
    if not on_cpu():
        return _conv2d_lax(x, kernel, stride, padding, groups=x.shape[-1])
    return _shifted(x, kernel, stride, padding)


def _sum_of_shifted(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    h, w = kernel.shape[:2]
    shifted = _windows(x, (h, w), stride, padding)
    return sum(part * kernel[i // w, i % w][None, None] for i, part in enumerate(shifted))  # pyright: ignore


_shifted = jax.custom_vjp(_sum_of_shifted, nondiff_argnums=(2, 3))


def _shifted_forward(x, kernel, stride, padding):
    return _sum_of_shifted(x, kernel, stride, padding), (x, kernel)


def _shifted_backward(stride, padding, kept, dy):
    """Return the gradients of picture and kernel.

    That of the kernel is nine sums over the batch, the height and the width. They are taken over the batch first,
    picture by picture, which XLA fuses into one loop over what is in the cache; all at once, it writes nine products
    to memory and reads them back, which is 2 to 8 times as slow on 2 cores.
    """
    x, kernel = kept
    window = kernel.shape[:2]
    (dx,) = jax.linear_transpose(lambda x: _sum_of_shifted(x, kernel, stride, padding), x)(dy)

    def add(sums, pair):
        picture, d = pair
        parts = _windows(picture[None], window, stride, padding)
        return tuple(total + part[0] * d for total, part in zip(sums, parts, strict=True)), None

    zeros = tuple(jnp.zeros(dy.shape[1:], dy.dtype) for _ in range(window[0] * window[1]))
    sums, _ = lax.scan(add, zeros, (x, dy))
    return dx, jnp.stack([total.sum((0, 1)) for total in sums]).reshape(kernel.shape)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _conv2d_lax(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads, groups: int = 1) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dims, feature_group_count=groups
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_taps(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Convolve as ``lax`` does, but take the gradient of the kernel tap by tap.

    XLA's own is a convolution with pictures as kernels, at 20 to 90 GFLOP/s where these products come to 70 to 140.
    """
    return _conv2d_lax(x, kernel, stride, padding)


def _taps_forward(x, kernel, stride, padding):
    return _conv2d_lax(x, kernel, stride, padding), (x, kernel)


def _taps_backward(stride, padding, kept, dy):
    x, kernel = kept
    (dx,) = jax.linear_transpose(lambda x: _conv2d_lax(x, kernel, stride, padding), x)(dy)
    taps = [rows_product(tap, dy) for tap in _windows(x, kernel.shape[:2], stride, padding)]
    return dx, jnp.stack(taps).reshape(kernel.shape)


_conv2d_taps.defvjp(_taps_forward, _taps_backward)


def _conv2d_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    patches = jnp.concatenate(_windows(x, kernel.shape[:2], stride, padding), axis=-1)
    return _product(patches, kernel.reshape(-1, kernel.shape[-1]))


def features_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **how: Any) -> jax.Array:
    """Multiply (N, D) by (D, K), as ``dot_general`` of ``nn.Dense``: on CPU with the gradient of ``rows_product``."""
    return _product(x, kernel) if on_cpu() else lax.dot_general(x, kernel, dimensions, **how)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply (..., C) by (C, F)."""
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(kept, dy):
    x, kernel = kept
    return dy @ kernel.T, rows_product(x, dy)


_product.defvjp(_product_forward, _product_backward)


def _windows(x: jax.Array, window: tuple[int, ...], stride: int, padding: Pads) -> list[jax.Array]:
    """Return the picture as each tap of the window sees it, row by row: h * w arrays (N, H', W', C)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    n, h, w, c = x.shape
    high, wide = ((s - k) // stride * stride + 1 for s, k in zip((h, w), window, strict=True))
    steps = (1, stride, stride, 1)
    return [
        lax.slice(x, (0, i, j, 0), (n, i + high, j + wide, c), steps)
        for i in range(window[0])
        for j in range(window[1])
    ]
