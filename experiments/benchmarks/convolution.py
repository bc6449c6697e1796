"""Which way to convolve is fastest on this machine, shape by shape: the ways of ``models/ops/conv.py`` in turns.

    python -m experiments.benchmarks.convolution                        the shapes of ResNet50, VGG16 and InceptionV3
    python -m experiments.benchmarks.convolution --cases=8:3x3:1:128:128  SIDE:KERNEL:STRIDE:INPUTS:OUTPUTS

Each line has the rate of each way in GFLOP/s of the plain sum (the least time of several turns), forward and for both
gradients. "=" stands at the way that is taken, "*" where another is more than 1.1 times as fast. The rules were read
off this table.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from absl import flags

from experiments.benchmarks.depthwise import in_turns
from experiments.benchmarks.turns import machine
from tl_jax.models.ops import conv
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
CASES = flags.DEFINE_list("cases", list(SHAPES), "SIDE:KERNEL:STRIDE:INPUTS:OUTPUTS.")
RESULTS = flags.DEFINE_string("results", "", "JSON file for the numbers; none if empty.")
PIXELS = 2**16  # of all pictures of a batch together, at most 64 of them


def main(_: list[str]) -> None:
    """Print a table."""
    print("side kernel/stride channels      N | forward, GFLOP/s | both gradients, GFLOP/s")
    rows = []
    for case in CASES.value:
        row = measure(case)
        rows.append(row)
        cells = " | ".join("  ".join(shown(row, what)) for what in ("forward", "gradients"))
        side, kernel, stride, inputs, outputs = case.split(":")
        print(f"{side:>4} {kernel}/{stride} {inputs:>5} -> {outputs:>4} {row['batch']:4d} | {cells}", flush=True)
    if RESULTS.value:
        path = Path(RESULTS.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(path, json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


def measure(case: str) -> dict:
    """Return rates of all ways that fit a case, and which one ``conv2d`` takes."""
    side, window, stride, inputs, outputs = case.split(":")
    side, stride, high, wide = int(side), int(stride), *map(int, window.split("x"))
    batch = max(1, min(64, PIXELS // side**2))
    pads = conv.pads((side, side), (high, wide), stride, "half")
    x = jax.random.normal(jax.random.key(0), (batch, side, side, int(inputs)))
    kernel = jax.random.normal(jax.random.key(1), (high, wide, int(inputs), int(outputs)))
    kernel, pads = conv.seeing((side, side), kernel, stride, pads)
    ways: dict[str, Callable] = {
        name: partial(way, stride=stride, padding=pads)
        for name, way in (("xla", conv._conv2d_lax), ("patches", conv._conv2d_patches),
                          ("taps", conv._conv2d_taps))
    }  # fmt: skip
    if kernel.shape[:2] == (3, 3) and stride == 1:
        ways["tiles"] = partial(conv.conv3x3, padding=pads)
    dy = jax.jit(ways["xla"])(x, kernel)
    work = 2 * dy.size * kernel[..., 0].size

    def gradients(way: Callable) -> Callable:
        return jax.jit(lambda x, kernel, dy: jax.vjp(way, x, kernel)[1](dy))

    forward = in_turns([jax.jit(way) for way in ways.values()], x, kernel)
    backward = in_turns([gradients(way) for way in ways.values()], x, kernel, dy)
    return {
        "case": case,
        "batch": batch,
        "chosen": chosen(x, kernel, stride, pads),
        "forward": {name: work / took / 1e6 for name, took in zip(ways, forward, strict=True)},
        "gradients": {name: 2 * work / took / 1e6 for name, took in zip(ways, backward, strict=True)},
    }


def chosen(x: jax.Array, kernel: jax.Array, stride: int, pads: conv.Pads) -> str:
    """Return the way that ``conv2d`` takes."""
    size = [side + sum(pad) - k + 1 for side, pad, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)]
    return conv.way(len(x), size, kernel.shape, stride)


def shown(row: dict, what: str) -> list[str]:
    """Return the cells of a line."""
    best = max(row[what].values())
    mark = "=" if row[what][row["chosen"]] * 1.1 >= best else "*"
    return [f"{name} {rate:3.0f}{mark if name == row['chosen'] else ' '}" for name, rate in row[what].items()]


if __name__ == "__main__":
    command.run(main)
