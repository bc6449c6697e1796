"""Does transfer help on CT slices: areas under the ROC curve, beside a logistic regression on pixels.

    python -m experiments.fine_tuning.ct_slices --data_dir=FOLDER --workdir=DIR [--seeds=0,1,2]

All runs train on the 447 slices of the training split and are tested on the 187 of the test split. Slices of one source
(``split_group``) are never in both, nor in several of the folds that choose a method, and intervals draw whole groups.
A row of ``RESULTS.csv`` has the AUC of a method, and by how much it is above that of the pixels, on the same slices.
Which patients the slices are of is not known. No figure is fit for a clinical conclusion.
"""

import csv
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image
from scipy.special import expit

from experiments import grid, record
from experiments.fine_tuning.study import NETWORKS
from tl_jax.metrics import classification
from tl_jax.train.logging import say
from tl_jax.utils import command, disk, environment

FLAGS = flags.FLAGS
SIZE, PIXELS = 128, 64  # side of the networks' input, and of the images that the regression reads
METHODS = ("logistic", "auto", "lp_ft", "fine_tune", "scratch")
RAW = "pixels"
DRAWS = 2000
POSITIVE = "0"  # covid, in the table of the slices
NUMBERS = ("auc", "low", "high", "over_pixels", "gain_low", "gain_high", "accuracy", "seconds")


class Slices(NamedTuple):
    """Slices of a split: files, labels (N,) of 1 for covid, groups (N,)."""

    files: list[str]
    labels: np.ndarray
    groups: np.ndarray


class Cell(NamedTuple):
    """What a row is about."""

    method: str
    network: str
    seed: str


def define_flags() -> None:
    """Define the flags of the command."""
    flags.DEFINE_string("data_dir", None, "Folder of all data.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("results", "experiments/results/ct_slices", "Prefix of record and table.")
    flags.DEFINE_list("networks", ["mobilenet_v2", "efficientnet_lite0"], "Networks.")
    flags.DEFINE_list("methods", list(METHODS), "Methods of fine_tune.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Of everything random.")


def main(_: list[str]) -> None:
    """Make the rows that are missing, then the table."""
    prefix, folder = Path(FLAGS.results), Path(FLAGS.data_dir).expanduser() / "ct_covid"
    record.begin_record(prefix, {"size": SIZE, "pixels": PIXELS, "interval": "groups of test slices, drawn anew"})
    record.add_facts(prefix, machines=environment.processor(), versions=environment.versions())
    train, test = (read_slices(folder, split) for split in ("train", "test"))
    say(f"{len(train.labels)} slices of {len(np.unique(train.groups))} groups, {len(test.labels)} to test")
    start = time.monotonic()
    raw_scores = score_pixels(folder, train, test)
    seconds = time.monotonic() - start
    rows: list[dict[str, Any]] = [*record.read_rows(prefix)]

    def add_row(cell: Cell, scores: np.ndarray, seconds: float) -> None:
        values = compare(scores, raw_scores, test)
        rows.append({**cell._asdict(), **values, "seconds": seconds, "commit": record.commit()})
        record.write_rows(prefix, rows)
        say(f"{cell.method} {cell.network} {cell.seed}: AUC {values['auc']:.3f}")

    done = {Cell(row["method"], row["network"], row["seed"]) for row in rows}
    if (pixels := Cell(RAW, "", "0")) not in done:
        add_row(pixels, raw_scores, seconds)
    for cell in (Cell(m, n, seed) for seed in FLAGS.seeds for n in FLAGS.networks for m in FLAGS.methods):
        if cell not in done and (cell.method != "logistic" or cell.seed == "0"):  # which no seed changes
            call = (cell, FLAGS.data_dir, FLAGS.workdir, test.files)
            # In a process of its own, so that nothing is compiled already.
            add = lambda _, found, cell=cell: add_row(cell, *found)  # noqa: E731
            grid.launch("processes", score_network, [call], add, [str(cell)], 1, workers=1)
    disk.write_text(Path(f"{prefix}.md"), table(prefix.name, rows))


def read_slices(folder: Path, split: str) -> Slices:
    """Return the slices of a split, as index.csv lists them."""
    with (folder / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    labels = np.array([row["label"] == POSITIVE for row in rows], np.int32)
    return Slices([row["file"] for row in rows], labels, np.array([row["split_group"] for row in rows]))


def score_pixels(folder: Path, train: Slices, test: Slices) -> np.ndarray:
    """Return log odds (N,) of a logistic regression on pixels, whose strength folds of groups have chosen."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedGroupKFold

    x, x_test = (_read_pixels(folder, slices) for slices in (train, test))
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x, train.labels, train.groups))
    strengths: Any = np.logspace(-6, 0, 7)
    model = LogisticRegressionCV(Cs=strengths, cv=folds, scoring="neg_log_loss", max_iter=2000).fit(x, train.labels)
    return model.decision_function(x_test)


def _read_pixels(folder: Path, slices: Slices) -> np.ndarray:
    images = [Image.open(folder / file).convert("L").resize((PIXELS, PIXELS)) for file in slices.files]
    return np.stack([np.asarray(image, np.float64).ravel() / 255 for image in images])


def score_network(cell: Cell, data_dir: str, workdir: str, files: Sequence[str]) -> tuple[np.ndarray, float]:
    """Fine-tune a network on the training slices; return the probability of covid of each test slice, and seconds."""
    import tl_jax

    folder, start = Path(data_dir).expanduser() / "ct_covid", time.monotonic()
    network, run_folder = NETWORKS[cell.network], Path(workdir).expanduser() / "_".join(cell)
    shutil.rmtree(run_folder, ignore_errors=True)  # of a run that was cut short, whose time would be that of the rest
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TL_JAX_CACHE"] = cache
        learner = tl_jax.fine_tune(
            folder, model=network.model, weights=Path(data_dir).expanduser() / "weights" / network.file,
            method=cell.method, image_size=SIZE, seed=int(cell.seed), workdir=run_folder, data__group="split_group",
        )  # fmt: skip
        seconds = time.monotonic() - start
        found = learner.predict([folder / file for file in files])
    return np.array([each.probabilities[POSITIVE] for each in found]), seconds


def compare(scores: np.ndarray, raw_scores: np.ndarray, test: Slices) -> dict[str, float]:
    """Return the AUC, by how much it is above that of the pixels, and 95 % intervals over groups of slices."""
    _, members = np.unique(test.groups, return_inverse=True)
    count, is_positive = members.max() + 1, test.labels == 1
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)[:, members]
    drawn, raw_drawn = (classification.auc(each, is_positive, weights) for each in (scores, raw_scores))
    (low, high), (gain_low, gain_high) = (np.nanquantile(d, (0.025, 0.975)) for d in (drawn, drawn - raw_drawn))
    auc, raw = (float(classification.auc(each, is_positive)) for each in (scores, raw_scores))
    probabilities = expit(scores) if scores is raw_scores else scores
    accuracy = float(((probabilities > 0.5) == is_positive).mean())
    return {
        "auc": auc, "low": float(low), "high": float(high), "over_pixels": auc - raw, "gain_low": float(gain_low),
        "gain_high": float(gain_high), "accuracy": accuracy,
    }  # fmt: skip


def table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return means over seeds by method and network; intervals are the means of those of the seeds."""
    lines = [
        f"# {name}\n",
        "AUC on 187 test slices, mean of seeds; 95 % intervals from drawing whole groups of slices.\n",
        "| method | network | seeds | AUC | interval | over pixels | interval | accuracy | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["method"], row["network"]) for row in rows):
        own = [row for row in rows if (row["method"], row["network"]) == key]
        mean = {field: float(np.mean([float(row[field]) for row in own])) for field in own[0] if field in NUMBERS}
        lines.append(
            f"| {key[0]} | {key[1]} | {len(own)} | {mean['auc']:.3f} | {mean['low']:.3f} to {mean['high']:.3f} | "
            f"{mean['over_pixels']:+.3f} | {mean['gain_low']:+.3f} to {mean['gain_high']:+.3f} | "
            f"{mean['accuracy']:.1%} | {mean['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    define_flags()
    command.run(main)
