"""Benchmark of transferability scores on a large set of features: seconds alone and from one shared pass, and memory.

    python -m experiments.benchmarks.distances
    python -m experiments.benchmarks.distances --examples=5000 --features=512 --classes=100
    python -m experiments.benchmarks.distances --otdd --examples=2000 --features=512

Each line has the first call, which compiles, the fastest of --turns more, and its CPU seconds, which are more reliable
on a shared machine. On 2 idle CPU cores (JAX 0.10.2), with 50,000 examples of 2,048 features in 10 classes: H-scores
2.0 and 2.0 s, TransRate 2.9 s, LogME 2.8 s, five from one pass 4.5 s, six (with SFDA) 7.7 s. Memory grew by 1.3 GiB,
with features of 0.4 GiB.

``--otdd`` measures OTDD between two datasets, exact and by Sinkhorn iterations. The datasets are clusters around common
centers.
"""

import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from tl_jax import transferability
from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.gbc import gbc_from
from tl_jax.transferability.h_score import h_score_from, regularized_h_score_from
from tl_jax.transferability.logme import logme_from
from tl_jax.transferability.sfda import sfda_from
from tl_jax.transferability.transrate import transrate_from
from tl_jax.utils import command

EXAMPLES = flags.DEFINE_integer("examples", 50_000, "Number of examples.")
FEATURES = flags.DEFINE_integer("features", 2_048, "Number of features.")
CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes.")
TURNS = flags.DEFINE_integer("turns", 2, "Calls after the first.")
OTDD = flags.DEFINE_bool("otdd", False, "Measure OTDD between two datasets.")
ONLY = flags.DEFINE_list("only", [], "Scores to measure; empty for all.")


def main(_: list[str]) -> None:
    """Print a table."""
    if OTDD.value:
        measure_otdd()
        return
    x, y, p = random_features(EXAMPLES.value, FEATURES.value, CLASSES.value)
    print(f"features {x.shape}, {x.nbytes / 2**30:.2f} GiB, {CLASSES.value} classes; resident {resident_gib():.2f} GiB")
    print("seconds                 first   again     CPU      value   peak GiB")
    cases = {
        **{
            name: lambda name=name: getattr(transferability, name)(x, y)
            for name in ("gbc", "h_score", "regularized_h_score")
        },
        **{
            name: lambda name=name: getattr(transferability, name)(x, y)
            for name in ("transrate", "logme", "sfda", "parc")
        },
        "leep": lambda: transferability.leep(p, y),
        "nce": lambda: transferability.nce(p.argmax(1), y),
        "nleep": lambda: transferability.nleep(x, y, jax.random.key(0)),
        "five from one pass": lambda: scores_from_moments(x, y, False),
        "six from one pass": lambda: scores_from_moments(x, y, True),
    }
    only: list[str] = ONLY.value
    for name, case in cases.items():
        if only and name not in only:
            continue
        seconds = []
        for _turn in range(TURNS.value + 1):
            start, cpu_start = time.perf_counter(), time.process_time()
            value = case()
            seconds.append((time.perf_counter() - start, time.process_time() - cpu_start))
        value_text = f"{value:9.4f}" if isinstance(value, float) else " " * 9
        again, cpu = min(seconds[1:])
        cells = f"{seconds[0][0]:6.2f}  {again:6.2f}  {cpu:6.2f}  {value_text}   {peak_gib():8.2f}"
        print(f"{name:20s}   {cells}", flush=True)


def measure_otdd() -> None:
    """Print a line for each way to solve OTDD."""
    sets = random_sets(EXAMPLES.value, FEATURES.value, CLASSES.value)
    print("method        value   first s   again s   peak GiB")
    for method in ("exact", "sinkhorn"):
        seconds = []
        for _turn in range(TURNS.value + 1):
            start = time.perf_counter()
            value = transferability.otdd(*sets, method=method)
            seconds.append(time.perf_counter() - start)
        print(f"{method:8s} {value:10.2f} {seconds[0]:9.2f} {min(seconds[1:]):9.2f} {peak_gib():10.2f}", flush=True)


def random_sets(n: int, d: int, classes: int) -> tuple[np.ndarray, ...]:
    """Return x1, y1, x2, y2 with float32 features; the second side is wider and its labels go another way round."""
    rng = np.random.default_rng(0)
    y, centres = np.arange(n) % classes, rng.normal(size=(classes, d))
    x1, x2 = centres[y] + rng.normal(size=(n, d)), 1.2 * centres[y] + rng.normal(size=(n, d)) + 0.1
    return x1.astype(np.float32), y, x2.astype(np.float32), classes - 1 - y


def scores_from_moments(x: np.ndarray, y: np.ndarray, with_sfda: bool) -> list[float]:
    """Return LogME, both H-scores, TransRate and GBC from one pass over the features, and SFDA if ``with_sfda``."""
    with jax.enable_x64(True):
        a, b, classes = _inputs.score_inputs(x, y)
        m = _statistics.compute_moments(a, b, classes, rates=True)
        scores = [
            logme_from(m),
            h_score_from(m),
            regularized_h_score_from(m),
            transrate_from(m),
            gbc_from(m),
        ]
        if with_sfda:
            scores.append(sfda_from(m, a, b, single=_statistics.allows_single(a))[0])
        return [float(score) for score in scores]


def random_features(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features like a network's last ones, none below zero and some alike, labels, and source probabilities."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, d)).astype(np.float32)
    x = rng.normal(size=(n, d)).astype(np.float32)
    for i in range(0, n, 4096):
        x[i : i + 4096] += 0.3 * np.roll(x[i : i + 4096], 1, 1) + 0.2 * centres[y[i : i + 4096]]
    np.maximum(x, 0, out=x)
    p = np.array(jax.nn.softmax(jnp.asarray(x[:, : min(d, 1000)])))
    return x, y, p


def resident_gib() -> float:
    """Return the memory of this process now, in GiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**30


def peak_gib() -> float:
    """Return the most memory that this process has had, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    command.run(main)
