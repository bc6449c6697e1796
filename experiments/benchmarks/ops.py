"""Benchmark of convolution and pooling by shape: the methods of ``models/ops`` against XLA's own, in turns.

    python -m experiments.benchmarks.ops                               convolutions of ResNet50, VGG16 and InceptionV3
    python -m experiments.benchmarks.ops --cases=8:3x3:1:128:128       SIDE:KERNEL:STRIDE:INPUTS:OUTPUTS
    python -m experiments.benchmarks.ops --op=depthwise                3x3 at MobileNetV2's shapes
    python -m experiments.benchmarks.ops --op=pooling                  at those of VGG16, ResNet50 and InceptionV3

A line of a convolution has the GFLOP/s of each method (the fastest of several turns), forward and for both gradients.
"=" marks the method that is used, "*" one that is more than 1.1 times as fast; the rules in ``models/ops/conv.py`` are
based on this table. The other lines have the fastest of five turns in milliseconds: sums of shifted images against
XLA's grouped convolution or windows. On 2 CPU cores (JAX 0.10.2), shifted images were 8 to 34 times as fast forward in
a depthwise convolution, slowest at stride 2, and 12 to 38 times backward.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmarks.turns import describe_machine
from tl_jax.models.ops import conv, pooling
from tl_jax.utils import command, disk

# Those of the networks at 32 and at 224 pixels (299 for Inception) that differ in kind.
SHAPES = (
    "1:1x1:1:2048:512", "1:3x3:1:512:512", "2:1x1:1:1024:256", "2:3x3:1:256:256", "4:3x3:1:128:128", "8:3x3:1:64:64",
    "8:3x3:1:128:128", "16:3x3:1:16:16", "16:3x3:1:64:64", "32:7x7:2:3:64", "7:1x1:1:2048:512", "7:3x3:1:512:512",
    "14:1x1:1:1024:256", "14:3x3:1:256:256", "14:3x3:2:256:256", "28:3x3:1:128:128", "28:3x3:2:128:128",
    "56:1x1:1:64:256", "56:3x3:1:64:64", "224:7x7:2:3:64", "14:3x3:1:512:512", "28:3x3:1:512:512", "56:3x3:1:256:256",
    "112:3x3:1:128:128", "224:3x3:1:3:64", "224:3x3:1:64:64", "17:1x7:1:192:192", "35:5x5:1:48:64", "35:3x3:1:96:96",
    "147:3x3:1:32:64",
)  # fmt: skip
# side, channels, stride
DEPTHWISE = ((112, 32, 1), (112, 96, 2), (56, 144, 1), (28, 192, 1), (14, 576, 1), (7, 960, 1))
# side, channels, then window, stride and padding of a maximum; none for a mean
POOLING = ((224, 64, 2, 2, 0), (56, 256, 2, 2, 0), (112, 64, 3, 2, 1), (147, 64, 3, 2, 0), (71, 192, 3, 2, 0),
          (17, 768, 3, 2, 0), (35, 288), (17, 768), (8, 1280))  # fmt: skip
OP = flags.DEFINE_enum("op", "convolution", ["convolution", "depthwise", "pooling"], "Operation to measure.")
CASES = flags.DEFINE_list("cases", list(SHAPES), "SIDE:KERNEL:STRIDE:INPUTS:OUTPUTS.")
RESULTS = flags.DEFINE_string("results", "", "Output file (JSON); none if empty.")
PIXELS = 2**16  # of all images of a batch together in a convolution, at most 64 images
BATCH, TURNS = 16, 5


def main(_: list[str]) -> None:
    """Print a table."""
    {"convolution": measure_convolutions, "depthwise": measure_depthwise, "pooling": measure_pooling}[OP.value]()


def measure_convolutions() -> None:
    """Print the rates of each way, and write them."""
    print("side kernel/stride channels      N | forward, GFLOP/s | both gradients, GFLOP/s")
    rows = []
    for case in CASES.value:
        row = measure_case(case)
        rows.append(row)
        cells = " | ".join("  ".join(format_cells(row, direction)) for direction in ("forward", "gradients"))
        side, kernel, stride, inputs, outputs = case.split(":")
        print(f"{side:>4} {kernel}/{stride} {inputs:>5} -> {outputs:>4} {row['batch']:4d} | {cells}", flush=True)
    if RESULTS.value:
        path = Path(RESULTS.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(path, json.dumps({**describe_machine(), "rows": rows}, indent=1) + "\n")


def measure_case(case: str) -> dict:
    """Return rates of all ways that fit a case, and which one ``conv2d`` takes."""
    side, window, stride, inputs, outputs = case.split(":")
    side, stride, kernel_height, kernel_width = int(side), int(stride), *map(int, window.split("x"))
    batch = max(1, min(64, PIXELS // side**2))
    pads = conv.compute_padding((side, side), (kernel_height, kernel_width), stride, "half")
    x = jax.random.normal(jax.random.key(0), (batch, side, side, int(inputs)))
    kernel = jax.random.normal(jax.random.key(1), (kernel_height, kernel_width, int(inputs), int(outputs)))
    kernel, pads = conv.crop_kernel((side, side), kernel, stride, pads)
    ways: dict[str, Callable] = {
        name: partial(way, stride=stride, padding=pads)
        for name, way in (("xla", conv._conv2d_lax), ("patches", conv._conv2d_patches),
                          ("taps", conv._conv2d_taps))
    }  # fmt: skip
    if kernel.shape[:2] == (3, 3) and stride == 1:
        ways["tiles"] = partial(conv.conv3x3, padding=pads)
    dy = jax.jit(ways["xla"])(x, kernel)
    num_flops = 2 * dy.size * kernel[..., 0].size

    def gradients(way: Callable) -> Callable:
        return jax.jit(lambda x, kernel, dy: jax.vjp(way, x, kernel)[1](dy))

    forward = time_functions([jax.jit(way) for way in ways.values()], x, kernel)
    backward = time_functions([gradients(way) for way in ways.values()], x, kernel, dy)
    return {
        "case": case,
        "batch": batch,
        "chosen": chosen_way(x, kernel, stride, pads),
        "forward": {name: num_flops / milliseconds / 1e6 for name, milliseconds in zip(ways, forward, strict=True)},
        "gradients": {
            name: 2 * num_flops / milliseconds / 1e6 for name, milliseconds in zip(ways, backward, strict=True)
        },
    }


def chosen_way(x: jax.Array, kernel: jax.Array, stride: int, pads: conv.Padding) -> str:
    """Return the way that ``conv2d`` takes."""
    size = [side + sum(pad) - k + 1 for side, pad, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)]
    return conv.fastest_method(len(x), size, kernel.shape, stride)


def format_cells(row: dict, direction: str) -> list[str]:
    """Return the cells of a line."""
    best = max(row[direction].values())
    mark = "=" if row[direction][row["chosen"]] * 1.1 >= best else "*"
    return [f"{name} {rate:3.0f}{mark if name == row['chosen'] else ' '}" for name, rate in row[direction].items()]


def measure_depthwise() -> None:
    """Print the times of depthwise convolutions."""
    print(f"batch {BATCH}, ms      shifted   grouped   ratio   | gradient: shifted   grouped   ratio")
    for side, channels, stride in DEPTHWISE:
        x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels))
        pads = conv.compute_padding((side, side), (3, 3), stride, "same")

        def shifted(x, kernel, stride=stride, pads=pads):
            return conv.depthwise2d(x, kernel, stride, pads)

        def grouped(x, kernel, stride=stride, pads=pads):
            return conv._conv2d_lax(x, kernel, stride, pads, groups=x.shape[-1])

        forward = time_functions([jax.jit(shifted), jax.jit(grouped)], x, kernel)
        backward = time_functions([jax.jit(sum_gradient(shifted)), jax.jit(sum_gradient(grouped))], x, kernel)
        cells = "   | ".join(f"{a:8.1f} {b:9.1f} {b / a:7.1f}" for a, b in (forward, backward))
        print(f"{side:4d} x {channels:3d} / {stride}   {cells}", flush=True)


def sum_gradient(function):
    """Return the gradient of the sum of squares of a convolution, for picture and kernel."""
    return jax.grad(lambda x, kernel: (function(x, kernel) ** 2).sum(), (0, 1))


def measure_pooling() -> None:
    """Print the times of poolings."""
    print(f"batch {BATCH}, ms            shifted    windows   ratio   | with gradient: shifted    windows   ratio")
    for side, channels, *window in POOLING:
        x = jax.nn.relu(jax.random.normal(jax.random.key(0), (BATCH, side, side, channels)))
        pool = partial(pooling.max_pool, window=window[0], stride=window[1], pad=window[2]) if window else mean_pool

        def plain(x, pool=pool):
            with conv.xla_only():
                return pool(x)

        dy = jnp.ones_like(pool(x))
        forward = time_functions([jax.jit(pool), jax.jit(plain)], x)
        backward = time_functions([jax.jit(with_gradient(pool)), jax.jit(with_gradient(plain))], x, dy)
        cells = "   | ".join(f"{a:10.1f} {b:10.1f} {b / a:7.1f}" for a, b in (forward, backward))
        print(f"{side:4d} x {channels:4d} {'max' if window else 'mean'}   {cells}", flush=True)


def mean_pool(x):
    """Average as Keras' InceptionV3 does."""
    return pooling.mean_pool(x, count_padding=False)


def with_gradient(pool):
    """Return the gradient of a pooling, which computes its value as well."""
    return lambda x, dy: jax.vjp(pool, x)[1](dy)


def time_functions(functions: list[Callable[..., Any]], *arrays: jax.Array) -> list[float]:
    """Return the least time of each function in milliseconds; they run one after another, compiled before."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(TURNS + 1):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            if turn:  # the first one compiles
                times[i].append(1e3 * (time.perf_counter() - start))
    return [min(values) for values in times]


if __name__ == "__main__":
    command.run(main)
