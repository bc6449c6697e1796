"""Depthwise 3x3 convolution at MobileNetV2's shapes: the sum of shifted pictures against XLA's grouped convolution.

    python -m experiments.benchmarks.depthwise

Each line has the least of five turns of either, taken in turns, in milliseconds, forward and gradient. On 2 CPU cores
(JAX 0.10.2) shifted pictures were 8 to 34 times as fast forward, the least at stride 2, and 12 to 38 times backward.
"""

import time

import jax

from tl_jax.models.ops import conv

SHAPES = ((112, 32, 1), (112, 96, 2), (56, 144, 1), (28, 192, 1), (14, 576, 1), (7, 960, 1))  # side, channels, stride
BATCH, TURNS = 16, 5


def main() -> None:
    """Print a table."""
    print(f"batch {BATCH}, ms      shifted   grouped   ratio   | gradient: shifted   grouped   ratio")
    for side, channels, stride in SHAPES:
        x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels))
        pads = conv.pads((side, side), (3, 3), stride, "same")

        def shifted(x, kernel, stride=stride, pads=pads):
            return conv.depthwise2d(x, kernel, stride, pads)

        def grouped(x, kernel, stride=stride, pads=pads):
            return conv._conv2d_lax(x, kernel, stride, pads, groups=x.shape[-1])

        forward = in_turns([jax.jit(shifted), jax.jit(grouped)], x, kernel)
        backward = in_turns([jax.jit(gradient(shifted)), jax.jit(gradient(grouped))], x, kernel)
        cells = "   | ".join(f"{a:8.1f} {b:9.1f} {b / a:7.1f}" for a, b in (forward, backward))
        print(f"{side:4d} x {channels:3d} / {stride}   {cells}", flush=True)


def gradient(function):
    """Return the gradient of the sum of squares of a convolution, for picture and kernel."""
    return jax.grad(lambda x, kernel: (function(x, kernel) ** 2).sum(), (0, 1))


def in_turns(functions, *arrays):
    """Return the least time of each function in milliseconds; they run one after another, compiled before."""
    times = [[] for _ in functions]
    for turn in range(TURNS + 1):
        for i, function in enumerate(functions):
            begin = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            if turn:  # the first one compiles
                times[i].append(1e3 * (time.perf_counter() - begin))
    return [min(each) for each in times]


if __name__ == "__main__":
    main()
