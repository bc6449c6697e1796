"""Benchmark of the article's experiment against Keras and PyTorch: end to end, in lockstep, and profiled.

    python -m experiments.benchmarks.article --weights=NOTOP.h5 --data_dir=TFDS_FOLDER
    python -m experiments.benchmarks.article --weights=... --data_dir=... --examples=5000 --epochs=3
    python -m experiments.benchmarks.article --weights=... --data_dir=... --examples=512 --epochs=1 --size=224
    python -m experiments.benchmarks.article --weights=... --data_dir=... --what=lockstep --steps=100
    python -m experiments.benchmarks.article --weights=... --data_dir=... --what=profile

``whole`` measures from process start to test accuracy. Each turn runs every library once, in its own process.
``tl_jax`` starts with an empty cache; ``tl_jax again`` repeats the command, as for another learning rate, with the
cached features and programs. Prints a table and writes JSON.

``lockstep`` trains with Keras and tl_jax in parallel. In ``article_peers`` Keras has its own head and order, so two
runs differ by chance. Here only the code differs: both use the frozen ResNet50, the head and the batches of tl_jax.
Prints the largest difference of the losses over all steps, and both test accuracies.

``profile`` measures the parts of a step in turns: fetching the batch, the frozen network, the head. Prints medians as
JSON, with images and FLOPs per second.

All but ``profile`` need requirements-bench.txt.
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

import jax
import numpy as np
from absl import flags, logging

from configs import cifar_resnet
from experiments.benchmarks.turns import ROOT, describe_machine
from tl_jax.config import recipe, schema, validate
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train import evaluate, loop, sharding
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.utils import command, disk

WHAT = flags.DEFINE_enum("what", "whole", ["whole", "lockstep", "profile"], "Benchmark to run.")
WEIGHTS = flags.DEFINE_string("weights", None, "ResNet50 without its top, HDF5.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with cifar10.", required=True)
EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples; 0: 50,000 for whole, else 5,000.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns per library; 30 for profile.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "whole: number of epochs.")
SIZE = flags.DEFINE_integer("size", 32, "whole: input size in pixels; the 32 pixel images are resized to it.")
TESTS = flags.DEFINE_integer("tests", 0, "whole: number of test examples; 0 for all.")
PEERS = flags.DEFINE_list("peers", ["keras", "torch"], "whole: libraries to compare with.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/article.json", "whole: output file.")
STEPS = flags.DEFINE_integer("steps", 781, "lockstep: number of steps of 64 examples.")
SEED = flags.DEFINE_integer("seed", 0, "lockstep: seed of the examples, the head and the order.")
DEFAULTS = {"whole": {}, "lockstep": {"examples": 5000}, "profile": {"examples": 5000, "turns": 30}}


def main(_: list[str]) -> None:
    """Measure what is asked for."""
    for name, value in DEFAULTS[WHAT.value].items():
        flags.FLAGS.set_default(name, value)
    {"whole": compare_runs, "lockstep": compare_steps, "profile": profile_step}[WHAT.value]()


def compare_runs() -> None:
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


def compare_steps() -> None:
    """Train both heads and compare."""
    logging.set_verbosity(logging.WARNING)
    changes = {"seed": SEED.value, "log_every": 1, "data.dir": DATA_DIR.value, "data.train_examples": EXAMPLES.value}
    changes |= {"init.path": WEIGHTS.value, "epochs": STEPS.value * 64 / EXAMPLES.value}
    config = recipe.override(cifar_resnet.get_config("article"), tuple(changes.items()))
    validate.validate(config)
    task = ImageClassification(schema.freeze(config))
    theirs, their_accuracy = train_keras(task, config)
    with tempfile.TemporaryDirectory() as folder:
        plan = task.plan()
        fitted = loop.fit(task, plan, loop.Pace(10**9, 1), config.seed, Path(folder), verbose=False)
        fitted.checkpoints.close()
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    ours = [row["loss"] for row in rows if row["split"] == "train"]
    values = evaluate.evaluate(task, fitted.state.variables, "test").values
    difference = np.abs(np.asarray(ours) - theirs)
    result = {
        "steps": len(ours),
        "seed": SEED.value,
        "examples": EXAMPLES.value,
        "largest_loss_difference": float(difference.max()),
        "last_losses": [ours[-1], float(theirs[-1])],
        "accuracy_tl_jax": values["accuracy"],
        "accuracy_keras": their_accuracy,
    }
    print(json.dumps(result))


def train_keras(task, config) -> tuple[np.ndarray, float]:
    """Return Keras' loss at every step and its test accuracy."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    trunk = keras.applications.ResNet50(include_top=False, weights=config.init.path, input_shape=(32, 32, 3))
    trunk.trainable = False
    model = keras.Sequential([trunk, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")])
    model.compile(optimizer=keras.optimizers.Adam(config.optim.lr), loss="sparse_categorical_crossentropy")
    head = jax.device_get(initial_state(task, config.seed).params["head"])
    model.layers[-1].set_weights([head["kernel"], head["bias"]])
    losses = []
    for step in range(STEPS.value):
        batch = task.train_batch(step)
        model.reset_metrics()  # train_on_batch returns the mean since the last reset
        losses.append(float(model.train_on_batch(batch["inputs"] / np.float32(255), batch["label"])))
    hits, count = 0, 0
    for batch in task.eval_batches("test"):
        predicted = model.predict_on_batch(batch["inputs"] / np.float32(255)).argmax(-1)
        hits += ((predicted == batch["label"]) * batch["mask"]).sum()
        count += batch["mask"].sum()
    return np.asarray(losses), float(hits / count)


def profile_step() -> None:
    """Time the parts in turns."""
    logging.set_verbosity(logging.WARNING)
    changes = (("data.dir", DATA_DIR.value), ("init.path", WEIGHTS.value), ("data.train_examples", EXAMPLES.value))
    config = recipe.override(cifar_resnet.get_config("article"), changes)
    task = ImageClassification(schema.freeze(config))
    (phase,) = task.plan()
    state = initial_state(task, config.seed)
    state = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules)(state.params))
    stream = sharding.replicate(stream_key(config.seed, "train"))
    rate = sharding.replicate(np.float32(1e-3))
    batch = sharding.shard_batch(task.train_batch(0))
    step = make_train_step(task.loss, phase.optim, phase.rules, phase.batch_stats)
    program = sharding.compile_cached(step, state, batch, stream, rate)
    flops = sharding.count_flops(step, state, batch, stream, rate)
    forward = jax.jit(task.features)
    jax.block_until_ready(forward(state.variables, batch))
    seconds = {"batch": [], "forward": [], "step": []}
    for turn in range(TURNS.value):
        start = time.monotonic()
        batch = jax.block_until_ready(sharding.shard_batch(task.train_batch(turn)))
        fetched = time.monotonic()
        jax.block_until_ready(forward(state.variables, batch))
        passed = time.monotonic()
        state, _ = program.execute(state, batch, stream, rate)
        jax.block_until_ready(state.step)
        for name, value in zip(seconds, (fetched - start, passed - fetched, time.monotonic() - passed), strict=True):
            seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "milliseconds": {
            **{name: 1e3 * s for name, s in median.items()},
            "head": 1e3 * (median["step"] - median["forward"]),
        },
        "images_a_second": config.batch_size / (median["batch"] + median["step"]),
        "gflop_a_step": flops / 1e9,
        "gflop_a_second": flops / 1e9 / median["step"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    command.run(main)
