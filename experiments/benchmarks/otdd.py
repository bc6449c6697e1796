"""OTDD between two labelled sets: seconds cold and warm, exact and by Sinkhorn's iterations.

    python -m experiments.benchmarks.otdd                       2,000 examples a side, 512 features, 10 classes
    python -m experiments.benchmarks.otdd --examples=500 --features=64

The sets are clusters about centres which the sides have in common. Cold is the first call of a process, compilation and
imports included; warm the least of the others. Peak memory is that of the process so far.
"""

import resource
import sys
import time

import numpy as np
from absl import flags

from tl_jax import transferability
from tl_jax.utils import command

EXAMPLES = flags.DEFINE_integer("examples", 2000, "N, of either side.", lower_bound=1)
FEATURES = flags.DEFINE_integer("features", 512, "D.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 10, "K, of either side.", lower_bound=1)
TURNS = flags.DEFINE_integer("turns", 4, "Calls of each.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Of the sets.")


def main(_: list[str]) -> None:
    """Print a line for each method."""
    sets = draw(EXAMPLES.value, FEATURES.value, CLASSES.value, SEED.value)
    print("method        value   cold s   warm s   peak GiB")
    for method in ("exact", "sinkhorn"):
        times = []
        for _turn in range(TURNS.value):
            begin = time.perf_counter()
            value = transferability.otdd(*sets, method=method)
            times.append(time.perf_counter() - begin)
        print(f"{method:8s} {value:10.2f} {times[0]:8.2f} {min(times[1:]):8.2f} {peak():10.2f}", flush=True)


def draw(n: int, d: int, classes: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return x1, y1, x2, y2 with float32 features; the second side is wider and its labels go another way round."""
    rng = np.random.default_rng(seed)
    y, centres = np.arange(n) % classes, rng.normal(size=(classes, d))
    x1, x2 = centres[y] + rng.normal(size=(n, d)), 1.2 * centres[y] + rng.normal(size=(n, d)) + 0.1
    return x1.astype(np.float32), y, x2.astype(np.float32), classes - 1 - y


def peak() -> float:
    """Return the most memory that this process has held, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    command.run(main)
