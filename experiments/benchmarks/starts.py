"""Benchmark of start times: seconds to the first training step and to the end, with empty and with filled caches.

    python -m experiments.benchmarks.starts
    python -m experiments.benchmarks.starts --cases="--config=configs/cifar_resnet.py:article --config.data.dir=FOLDER"

A case is a list of arguments of ``run.py``; the defaults are none, the README's first command, and the smoke variant of
cifar_resnet. Each turn starts with empty caches of programs and features. Prints and writes medians.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from experiments.benchmarks.turns import ROOT, describe_machine
from tl_jax.utils import command, disk

CASES = flags.DEFINE_multi_string("cases", ["", "--config=configs/cifar_resnet.py:smoke"], "Arguments of run.py.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns per case.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/starts.json", "Output file.")
BEFORE_THE_FIRST_STEP = "; compiled in "  # what the training loop says then


def main(_: list[str]) -> None:
    """Take the turns, tell, write."""
    cases = []
    for case in CASES.value:
        starts: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
        for _turn in range(TURNS.value):
            with tempfile.TemporaryDirectory() as folder:
                for name, times in starts.items():
                    times.append(_seconds(case, Path(folder), name))
        median = {name: {key: statistics.median(t[key] for t in times) for key in times[0]}
                  for name, times in starts.items()}  # fmt: skip
        ratio = median["second"]["first_step"] / median["first"]["first_step"]
        cases.append({"case": case, "median": median, "second_over_first": ratio, "turns": starts})
        print(f"run.py {case}")
        for name, times in median.items():
            print(f"    {name} start: first step after {times['first_step']:.1f} s, end after {times['end']:.1f} s")
        print(f"    the second start's first step comes in {ratio:.2f} of the time", flush=True)
    path = Path(RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, json.dumps({**describe_machine(), "cases": cases}, indent=1) + "\n")


def _seconds(case: str, folder: Path, name: str) -> dict[str, float]:
    """Return the seconds from the start of a process to its first step and to its end."""
    arguments = [sys.executable, "run.py", *case.split(), f"--workdir={folder / name}"]
    environment = {**os.environ, "TL_JAX_CACHE": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    start, first_step = time.perf_counter(), 0.0
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if not first_step and BEFORE_THE_FIRST_STEP in line:
                first_step = time.perf_counter() - start
    if process.returncode or not first_step:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{''.join(lines)[-2000:]}")
    return {"first_step": first_step, "end": time.perf_counter() - start}


if __name__ == "__main__":
    command.run(main)
