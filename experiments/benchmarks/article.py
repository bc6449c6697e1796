"""The article's experiment as a whole: from the start of a process to the test accuracy, tl_jax, Keras and PyTorch.

    python -m experiments.benchmarks.article --weights=NOTOP.h5 --data_dir=TFDS_FOLDER
    python -m experiments.benchmarks.article --weights=... --data_dir=... --examples=5000 --epochs=3
    python -m experiments.benchmarks.article --weights=... --data_dir=... --examples=512 --epochs=1 --size=224

Every turn runs each once, in a process of its own. ``tl_jax`` starts with an empty cache; ``tl_jax again`` is the same
command a second time, as another learning rate would be, on the features and programs that the first one kept. Prints
a table and writes JSON. Needs requirements-bench.txt.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks.turns import ROOT, describe_machine
from tl_jax.utils import command, disk

WEIGHTS = flags.DEFINE_string("weights", None, "ResNet50 without its top, HDF5.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with cifar10.", required=True)
EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples; 0 for all 50,000.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over them.")
SIZE = flags.DEFINE_integer("size", 32, "Side of the network's input; pictures of 32 are enlarged to it.")
TESTS = flags.DEFINE_integer("tests", 0, "First test examples; 0 for all.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns of each.")
PEERS = flags.DEFINE_list("peers", ["keras", "torch"], "What tl_jax is compared with.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/article.json", "Where the numbers go.")


def main(_: list[str]) -> None:
    """Take the turns, tell, write."""
    rows_by_name: dict[str, list[dict[str, Any]]] = {}
    for turn in range(TURNS.value):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("tl_jax", "tl_jax again", *PEERS.value):
                row = run_tl_jax(Path(folder), name) if name.startswith("tl_jax") else run_peer(name)
                rows_by_name.setdefault(name, []).append(row)
                print(f"turn {turn + 1}: {name}: {row['wall']:.1f} s, accuracy {row['accuracy']:.4f}", flush=True)
    median = {name: statistics.median(row["wall"] for row in rows) for name, rows in rows_by_name.items()}
    memory = {name: max(row["peak_memory_bytes"] for row in rows) / 2**30 for name, rows in rows_by_name.items()}
    for name, seconds in median.items():
        print(f"{name:<14} {seconds:8.1f} s   {seconds / median['tl_jax']:6.2f} times tl_jax, {memory[name]:.2f} GiB")
    path = Path(RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "examples": EXAMPLES.value,
        "epochs": EPOCHS.value,
        "size": SIZE.value,
        "tests": TESTS.value,
        **describe_machine(),
    }
    disk.write_text(path, json.dumps({**settings, "median": median, "turns": rows_by_name}, indent=1) + "\n")


def run_tl_jax(folder: Path, name: str) -> dict[str, Any]:
    """Run the recipe; the cache lies in ``folder``."""
    workdir = folder / name.replace(" ", "_")
    arguments = ["run.py", "--config=configs/cifar_resnet.py:article", f"--workdir={workdir}"]
    arguments += [f"--config.data.dir={DATA_DIR.value}", f"--config.init.path={WEIGHTS.value}"]
    arguments += [f"--config.data.train_examples={EXAMPLES.value}", f"--config.epochs={EPOCHS.value}"]
    arguments += [f"--config.data.test_examples={TESTS.value}", f"--config.input.size={SIZE.value}"]
    wall, _ = time_process(arguments, TL_JAX_CACHE=str(folder / "cache"))
    summary = json.loads((workdir / "summary.json").read_text())
    keys = ("seconds", "peak_memory_bytes")
    return {"wall": wall, "accuracy": summary["metrics"]["accuracy"], **{key: summary[key] for key in keys}}


def run_peer(name: str) -> dict[str, Any]:
    """Run the script of a peer."""
    arguments = ["-m", "experiments.benchmarks.article_peers", f"--peer={name}", f"--weights={WEIGHTS.value}"]
    arguments += [f"--data_dir={DATA_DIR.value}", f"--examples={EXAMPLES.value}", f"--epochs={EPOCHS.value}"]
    arguments += [f"--size={SIZE.value}", f"--tests={TESTS.value}"]
    wall, printed = time_process(arguments)
    return {"wall": wall, **json.loads(printed.strip().splitlines()[-1])}


def time_process(arguments: list[str], **environment: str) -> tuple[float, str]:
    """Return the seconds of a Python process and what it printed."""
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{process.stderr[-2000:]}")
    return time.perf_counter() - start, process.stdout


if __name__ == "__main__":
    command.run(main)
