"""Benchmark peers in turns, one process each and one at a time, so that other load affects all of them alike."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tl_jax.utils.environment import commit, processor

ROOT = Path(__file__).parents[2]


class Worker:
    """A process of ``peers.py``, or of another module that answers in the same way."""

    def __init__(self, peer: str, *flags: str, module: str = "experiments.benchmarks.peers"):
        command = [sys.executable, "-m", module, f"--peer={peer}", *flags]
        self._name, self._errors = " ".join(command), tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True,
        )  # fmt: skip
        if (line := self._answer()) != "ready":
            raise RuntimeError(f"{self._name} said {line!r} instead of ready")

    def seconds(self, call: str, count: int) -> float:
        """Return the seconds that one of ``count`` calls takes."""
        assert self._process.stdin
        self._process.stdin.write(f"{call} {count}\n")
        self._process.stdin.flush()
        return float(self._answer()) / count

    def _answer(self) -> str:
        assert self._process.stdout
        if answer := self._process.stdout.readline().strip():
            return answer
        self._errors.seek(0)
        raise RuntimeError(f"{self._name} ended:\n{self._errors.read()[-3000:]}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve_calls(make_calls: Callable[[], Mapping[str, Callable[[int], object]]]) -> None:
    """Be such a process: make the calls, each of which takes how often, and answer each line with its seconds."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    calls = make_calls()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        call, count = line.split()
        start = time.perf_counter()
        calls[call](int(count))
        print(time.perf_counter() - start, file=answers, flush=True)


def measure_turns(workers: Mapping[str, Worker], call: str, turns: int, min_seconds: float) -> dict[str, list[float]]:
    """Return the seconds of a call of each worker in each turn; the calls of a turn take ``min_seconds`` or more.

    Calls of half that time come before and do not count: on a virtual machine the memory that a process gave back while
    it waited went to the host, and the first call after a wait of 4 s took 3.0 s instead of 2.1 s to get it again
    (MiniLM, 32 texts of 128 tokens), which no training meets that goes on.
    """
    for worker in workers.values():  # the first calls compile
        worker.seconds(call, 1)
    counts = {name: max(1, round(min_seconds / worker.seconds(call, 1))) for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, worker in workers.items():
            worker.seconds(call, max(1, counts[name] // 2))
            seconds[name].append(worker.seconds(call, counts[name]))
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_rate(n: int, dtype: str = "float32") -> float:
    """Return the FLOPs a second of a matrix product of side ``n``, the best of ten."""
    import jax  # which the processes of other libraries do without
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)
    best = float("inf")
    for _ in range(11):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def describe_machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "jax": version("jax"),
        "commit": commit(),
    }
