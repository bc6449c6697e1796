"""Benchmark of forward passes and training steps of networks: tl_jax against PyTorch and Keras, in turns.

    python -m experiments.benchmarks.networks --cases=resnet50:32:64 --results=FILE.json
    python -m experiments.benchmarks.networks                       every case below
    python -m experiments.benchmarks.networks --gpu                 the same on a GPU: large batches, bfloat16

Prints a table and writes JSON: medians over the turns, images per second, the ratio to the faster peer, FLOPs, and the
fraction of this machine's matrix product throughput. Needs requirements-bench.txt.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmarks import peers
from experiments.benchmarks.turns import Worker, describe_machine, matmul_rate, measure_turns, medians
from tl_jax import models
from tl_jax.models.ops import conv
from tl_jax.utils import command, disk

CASES = flags.DEFINE_list(
    "cases",
    ["resnet50:32:64", "resnet50:224:8", "vgg16:224:8", "inception_v3:299:8", "mobilenet_v2:224:8"],
    "NETWORK:SIZE:BATCH; bert_base:TOKENS:BATCH.",
)
PEERS = flags.DEFINE_list("peers", ["torch", "torch_channels_last", "keras"], "Libraries to compare with.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computation dtype; parameters are float32.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns per library.")
MIN_SECONDS = flags.DEFINE_float("min_seconds", 2.0, "Minimum seconds per turn.")
GPU = flags.DEFINE_bool("gpu", False, "Use defaults for a GPU: large batches, bfloat16.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/networks.json", "Output file.")


# Needs JAX, PyTorch and transformers for CUDA.
GPU_FLAGS = {
    "cases": ["resnet50:224:256", "bert_base:128:128"],
    "peers": ["torch", "torch_compile"],
    "dtype": "bfloat16",
    "results": "experiments/results/benchmarks/gpu.json",
}


def main(_: list[str]) -> None:
    """Measure every case."""
    if GPU.value:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that the peers' processes fit, too
        for name, value in GPU_FLAGS.items():
            flags.FLAGS.set_default(name, value)
    rate = matmul_rate(2048 if jax.default_backend() == "cpu" else 8192, DTYPE.value)
    print(f"{DTYPE.value} matrix product: {rate / 1e9:.0f} GFLOP/s")
    settings = {
        "dtype": DTYPE.value,
        "device": jax.devices()[0].device_kind,
        "matmul_flops": rate,
        **describe_machine(),
    }
    path, rows = Path(RESULTS.value), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES.value:
        name, size, batch = case.split(":")
        arguments = [f"--network={name}", f"--size={size}", f"--batch={batch}", f"--dtype={DTYPE.value}"]
        workers = {peer: Worker(peer, *arguments) for peer in ("tl_jax", *PEERS.value)}
        for call in ("forward", "step"):
            seconds = measure_turns(workers, call, TURNS.value, MIN_SECONDS.value)
            row = compare_peers(
                case, call, seconds, forward_flops(name, int(size), int(batch)) * (3 if call == "step" else 1), rate
            )
            rows.append(row)
            print(format_row(row), flush=True)
            disk.write_text(path, json.dumps({**settings, "rows": rows}, indent=1) + "\n")
        for worker in workers.values():
            worker.close()


def compare_peers(
    case: str, call: str, seconds: dict[str, list[float]], num_flops: float, rate: float
) -> dict[str, Any]:
    """Return what the seconds of a case mean."""
    name, size, batch = case.split(":")
    unit, units = ("tokens", int(size) * int(batch)) if name == "bert_base" else ("images", int(batch))
    median = medians(seconds)
    fastest = min((peer for peer in median if peer != "tl_jax"), key=median.__getitem__)
    return {
        "case": case,
        "what": call,
        "seconds": seconds,
        "median": median,
        "unit": unit,
        "per_second": {name: units / value for name, value in median.items()},
        "fastest_peer": fastest,
        "ratio": median[fastest] / median["tl_jax"],
        "flops": num_flops,
        "share_of_matmul": num_flops / median["tl_jax"] / rate,
    }


def format_row(row: dict[str, Any]) -> str:
    """Return a row as text."""
    rates = ", ".join(f"{name} {value:,.1f}" for name, value in row["per_second"].items())
    return (
        f"{row['case']:<20} {row['what']:<8} {row['unit']}/s: {rates}; {row['ratio']:.2f} times {row['fastest_peer']}; "
        f"{100 * row['share_of_matmul']:.0f} % of the matrix product's rate"
    )


def forward_flops(name: str, size: int, batch: int) -> float:
    """Return the floating-point operations of a forward pass by layer shapes; a step is counted as three of them."""
    if name == "bert_base":
        model, x = peers.make_bert("float32"), jax.ShapeDtypeStruct((batch, size), jnp.int32)
    else:
        model = models.create(name, 10, **({"fc": False} if name.startswith("vgg") else {}))
        x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    with (
        conv.xla_only(),
        jax.default_device(jax.devices("cpu")[0]),
    ):  # other platforms need not count before they compile
        lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)[0]).lower(variables, x)
        cost: Any = lowered.cost_analysis()
        return float(cost["flops"])


if __name__ == "__main__":
    command.run(main)
