"""Which way to convolve is faster on this machine, shape by shape: XLA's convolution or patches times a matrix.

    python -m experiments.benchmarks.convolution                        the shapes of ResNet50, VGG16 and InceptionV3
    python -m experiments.benchmarks.convolution --cases=8:3:1:128:128  SIDE:KERNEL:STRIDE:INPUTS:OUTPUTS

Each line has the least of several turns of either in milliseconds, forward and for both gradients, and their ratio; a
star marks where ``models/convolution.py`` takes the slower one. The rule there was read off this table.
"""

import json
from pathlib import Path

import jax
from absl import flags

from experiments.benchmarks.depthwise import gradient, in_turns
from experiments.benchmarks.turns import machine
from tl_jax import command
from tl_jax.models import convolution

# Those of the networks at 32 and at 224 pixels (299 for Inception) that differ in kind.
SHAPES = (
    "1:1:1:2048:512", "1:3:1:512:512", "2:1:1:1024:256", "2:3:1:256:256", "4:3:1:128:128", "8:3:1:64:64",
    "8:3:1:128:128", "16:3:1:64:64", "32:7:2:3:64", "7:1:1:2048:512", "7:3:1:512:512", "14:1:1:1024:256",
    "14:3:1:256:256", "14:3:2:256:256", "28:3:1:128:128", "28:3:2:128:128", "56:1:1:64:256", "56:3:1:64:64",
    "224:7:2:3:64", "14:3:1:512:512", "28:3:1:512:512", "56:3:1:256:256", "112:3:1:128:128", "224:3:1:3:64",
    "17:7:1:192:192", "35:5:1:48:64", "35:3:1:96:96", "147:3:1:32:64",
)  # fmt: skip
CASES = flags.DEFINE_list("cases", list(SHAPES), "SIDE:KERNEL:STRIDE:INPUTS:OUTPUTS.")
RESULTS = flags.DEFINE_string("results", "", "JSON file for the numbers; none if empty.")
PIXELS = 2**16  # of all pictures of a batch together, at most 64 of them


def main(_: list[str]) -> None:
    """Print a table."""
    print("side kernel/stride  channels     N | forward: xla  patches ratio | gradient: xla  patches ratio")
    rows = []
    for case in CASES.value:
        side, kernel, stride, inputs, outputs = map(int, case.split(":"))
        batch = max(1, min(64, PIXELS // side**2))
        window = (kernel, kernel)
        pads = convolution.pads((side, side), window, stride, "half")
        x = jax.random.normal(jax.random.key(0), (batch, side, side, inputs))
        weights = jax.random.normal(jax.random.key(1), (*window, inputs, outputs))
        weights, pads = convolution.seeing((side, side), weights, stride, pads)
        ways = [
            lambda x, k, way=way, stride=stride, pads=pads: way(x, k, stride, pads)
            for way in (convolution._conv2d_lax, convolution._conv2d_patches)
        ]
        forward = in_turns([jax.jit(way) for way in ways], x, weights)
        backward = in_turns([jax.jit(gradient(way)) for way in ways], x, weights)
        chosen = convolution.as_patches((side, side), weights.shape)
        wrong = [took[chosen] > 1.1 * took[not chosen] for took in (forward, backward)]
        cells = [
            f"{a:7.2f} {b:8.2f} {a / b:5.2f}{'*' if slower else ' '}"
            for (a, b), slower in zip((forward, backward), wrong, strict=True)
        ]
        print(
            f"{side:4d} {kernel}x{kernel}/{stride} {inputs:5d} -> {outputs:4d} {batch:4d} | " + " | ".join(cells),
            flush=True,
        )
        rows.append({"case": case, "batch": batch, "forward_ms": forward, "gradient_ms": backward, "patches": chosen})
    if RESULTS.value:
        path = Path(RESULTS.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    command.run(main)
