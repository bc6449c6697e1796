"""Benchmark of one against several CPU devices: losses, state bytes, communication bytes, and seconds per step.

    python -m experiments.benchmarks.devices
    python -m experiments.benchmarks.devices --recipes=cifar_resnet:smoke,cartpole_ppo:smoke --devices=8

Each run is a process with that many host devices (--xla_force_host_platform_device_count). They share the machine's
cores, so seconds show the overhead of splitting, not its benefit. Communication is counted from the compiled step, for
a ring: for a result of s bytes on n devices an all-reduce sends 2 s (n - 1) / n, an all-gather s (n - 1) / n, a
reduce-scatter s (n - 1) (Thakur et al. 2005, doi:10.1177/1094342005051521).
"""

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks.turns import ROOT, describe_machine
from tl_jax.utils import command, disk

RECIPES = flags.DEFINE_list(
    "recipes", ["cifar_resnet:smoke", "sst2_bert:smoke", "cartpole_ppo:smoke"], "Recipes to measure."
)
DEVICES = flags.DEFINE_integer("devices", 8, "Number of devices, compared with one.")
STEPS = flags.DEFINE_integer("steps", 12, "Training steps per run.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/devices.json", "Output file.")
MEASURE = flags.DEFINE_string("measure", "", "Recipe to measure in this process; internal.")
SHARDED = flags.DEFINE_bool("sharded", False, "With --measure: shard the state.")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1, "f64": 8, "s64": 8, "u64": 8}
SENDS = {"all-reduce": lambda s, n: 2 * s * (n - 1) / n, "all-gather": lambda s, n: s * (n - 1) / n,
         "reduce-scatter": lambda s, n: s * (n - 1), "all-to-all": lambda s, n: s * (n - 1) / n,
         "collective-permute": lambda s, n: s}  # fmt: skip
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(SENDS)})(?:-start)?\(")


def main(_: list[str]) -> None:
    """Measure all in processes of their own, compare, write."""
    if MEASURE.value:
        print(json.dumps(measure_recipe(MEASURE.value, SHARDED.value)))
        return
    rows = []
    for recipe in RECIPES.value:
        sharded = (False,) if "_ppo" in recipe else (False, True)  # a policy is too small to split
        one = run_process(recipe, 1, False)
        for many in (run_process(recipe, DEVICES.value, split) for split in sharded):
            row = {"recipe": recipe, "state": "sharded" if many["sharded"] else "replicated", "one": one, "many": many}
            row["largest_difference"] = float(np.max(np.abs(np.subtract(many["losses"], one["losses"]))))
            rows.append(row)
            print(format_row(row), flush=True)
    path = Path(RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, json.dumps({**describe_machine(), "devices": DEVICES.value, "rows": rows}, indent=1) + "\n")


def format_row(row: dict[str, Any]) -> str:
    """Return a row in words."""
    one, many = row["one"], row["many"]
    counts = "equal" if one["test"]["examples"] == many["test"]["examples"] else "UNEQUAL"
    sent_text = (
        f"{many['sent_bytes'] / 1e6:.2f} MB sent a step" if many["sent_bytes"] is not None else "sending not counted"
    )
    return (
        f"{row['recipe']}, {row['state']}: losses differ by {row['largest_difference']:.1e}, {counts} counts, "
        f"state {many['state_bytes'] / one['state_bytes']:.3f} of one device's, {sent_text}, "
        f"{many['seconds'] / one['seconds']:.2f} times the seconds"
    )


def run_process(recipe: str, devices: int, sharded: bool) -> dict[str, Any]:
    """Return what a process with so many devices measures."""
    flags_ = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    arguments = [
        sys.executable,
        "-m",
        "experiments.benchmarks.devices",
        f"--measure={recipe}",
        f"--steps={STEPS.value}",
    ]
    process = subprocess.run(
        [*arguments, *(["--sharded"] if sharded else [])], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "XLA_FLAGS": flags_, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if process.returncode:
        raise RuntimeError(f"{recipe} on {devices} devices failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def measure_recipe(recipe: str, sharded: bool) -> dict[str, Any]:
    """Return losses, bytes and seconds of the first steps of a recipe's last phase on this process' devices."""
    import jax

    from tl_jax import restore
    from tl_jax.config import recipe as recipe_module
    from tl_jax.train import evaluate, sharding
    from tl_jax.train import sharding as sharding_module
    from tl_jax.train.state import initial_state, stream_key
    from tl_jax.train.step import Stepper, make_optimizer_init
    from tl_jax.train.task import TASKS

    name, _, variant = recipe.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    is_policy = TASKS[config.task].input_kind == "observations"
    sizes = (("rl.episodes", 8),) if is_policy else (("cache.features", "off"), ("batch_size", 16))
    config = recipe_module.override(config, sizes)
    task = restore.make_task(config)
    phase = task.plan()[-1]
    steps = min(STEPS.value, phase.stop - phase.start)
    phase = phase._replace(start=0, stop=steps, rate=phase.rate._replace(steps=steps))
    state = initial_state(task, 0, sharded)
    state = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules, sharded)(state.params))
    state_bytes = sharding.bytes_per_device((state.params, state.opt_state))
    stream = sharding_module.replicate(stream_key(0, "train"))
    objective = task.objective(phase.objective)
    stepper = (objective.make_stepper or Stepper)(phase, objective, state, stream, 0)
    losses, seconds, step = [], [], 0
    while step < steps:
        start = time.perf_counter()
        state, rows = stepper.advance(state, step, min(steps, step + 1))
        rows = jax.device_get(rows)
        seconds.append(time.perf_counter() - start)
        losses += [float(row["sums"]["loss"][0] / row["sums"]["loss"][1]) for row in rows]
        step += len(rows)
    text = max((program.as_text() for program in sharding_module._PROGRAMS.values()), key=len)
    result = evaluate.evaluate(task, state.eval_variables, "test")
    return {
        "sharded": sharded,
        "devices": jax.device_count(),
        "losses": losses,
        "state_bytes": state_bytes,
        "sent_bytes": None if task.loss is None else sent_bytes(text, jax.device_count()),
        "seconds": statistics.median(seconds[1:] or seconds),
        "test": {"examples": result.examples, "values": result.values},
    }


def sent_bytes(text: str, count: int) -> float:
    """Return the bytes that one of ``count`` devices sends in a step, from its compiled text, each collective once."""
    total = 0.0
    for shapes, kind in COLLECTIVE.findall(text):
        size = sum(
            BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
            for dtype, dims in SHAPE.findall(shapes)
        )
        total += SENDS[kind](size, count)
    return total


if __name__ == "__main__":
    command.run(main)
