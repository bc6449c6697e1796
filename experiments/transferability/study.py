"""Measure which distance or score predicts the benefit of a source, by transferring every source to every target.

    python -m experiments.transferability.study --workdir=DIR --smoke                 smoke test without data files
    python -m experiments.transferability.study --workdir=DIR --data_dir=FOLDER [--imagenet=WEIGHTS.h5]

For each target, number of examples per class and seed, the small ResNet is trained from scratch. For each source of the
bank, a logistic probe is fitted to its features, and the whole network is fine-tuned. Scratch and fine-tuning have the
same steps and candidate rates; the first seed's validation split chooses the rate. Besides the accuracies, the record
has all scores of the source's features of the target's training images, and the distances between these and the
source's own data. The report shows which of them correlate with the gain over scratch. Existing rows are not measured
again. FOLDER is as for experiments/pretrain_sources.py; ``imagenet`` adds MobileNetV2 at 96 pixels, compared with the
same scratch runs.
"""

import shutil
from pathlib import Path
from typing import Any

from absl import flags, logging

from experiments import record
from experiments.mechanisms.study import best_validation
from experiments.transferability import pairs, report, scores
from tl_jax import training, transferability
from tl_jax.config import recipe
from tl_jax.tasks import head_init
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train.logging import say
from tl_jax.utils import command, environment
from tl_jax.utils.errors import Diverged, UserError, nearest

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of record, table, plots and report; in the workdir if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data; without it, only synthetic targets and digits.")
IMAGENET = flags.DEFINE_string("imagenet", "", "Keras' ImageNet weights of MobileNetV2, as a further source.")
SOURCES = flags.DEFINE_list("sources", [], "Sources to run; empty for all.")
TARGETS = flags.DEFINE_list("targets", [], "Targets to run; empty for all available.")
PER_CLASS = flags.DEFINE_list("per_class", ["5", "20"], "Training examples per class.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Random seeds.")
RATES = flags.DEFINE_list("rates", ["1e-3", "3e-3", "1e-2"], "Candidate learning rates.")
STEPS = flags.DEFINE_integer("steps", 100, "Steps per run.")
BATCH = flags.DEFINE_integer("batch", 24, "Batch size.")
TESTED = flags.DEFINE_integer("tested", 1000, "Maximum number of test examples.")
SMOKE = flags.DEFINE_bool("smoke", False, "Smoke test: three targets, one budget, two seeds, one rate, few steps.")
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the probe


def main(_: list[str]) -> None:
    """Measure what is still to be measured, then write the report."""
    logging.set_verbosity(logging.WARNING)
    if SMOKE.value:
        shrink_flags()
    folder = Path(WORKDIR.value).expanduser()
    prefix = Path(RESULTS.value or folder / "transfer_distance")
    names = {"steps": STEPS.value, "batch": BATCH.value, "rates": RATES.value, "tested": TESTED.value}
    record.begin_record(prefix, names)
    record.add_facts(prefix, versions=environment.versions())
    complete_scores(prefix)
    for target in check_names(TARGETS.value, pairs.TARGETS if DATA_DIR.value else pairs.SYNTHETIC, "target"):
        for per_class in map(int, PER_CLASS.value):
            for seed in map(int, SEEDS.value):
                measure_target(folder, prefix, target, per_class, seed)
    say(report.write_report(prefix))


def shrink_flags() -> None:
    """Set the flags that a smoke run leaves open no more."""
    for name, value in (("per_class", ["5"]), ("seeds", ["0", "1"]), ("rates", ["3e-3"]), ("steps", 30)):
        flags.FLAGS[name].value = value
    flags.FLAGS["tested"].value = 300


def check_names(names: list[str], known: Any, kind: str) -> list[str]:
    """Return the names to be taken; a UserError names an unknown one."""
    for name in names:
        if name not in known:
            raise UserError(f"no {kind} {name!r}; {nearest(name, known)}")
    return names or list(known)


def complete_scores(prefix: Path) -> None:
    """Complete the scores of rows from before a score was added; nothing is trained for that."""
    rows = record.read_rows(prefix)
    if not rows or {*scores.score_names(), *scores.distance_names()} <= set(rows[0]):
        return
    for row in rows:
        key = row["target"], int(row["per_class"]), int(row["seed"])
        say(f"--- scores of {row['source']} on {', '.join(map(str, key))}")
        features = scores.source_features(row["source"], IMAGENET.value, key[0], DATA_DIR.value, *key[1:], TESTED.value)
        row |= scores.compute_scores(row["source"], IMAGENET.value, DATA_DIR.value, features, key[2])
    record.write_rows(prefix, rows)


def measure_target(folder: Path, prefix: Path, target: str, per_class: int, seed: int) -> None:
    """Measure all sources on a target with a number of examples and a seed."""
    rows = record.read_rows(prefix)
    key = {"target": target, "per_class": per_class, "seed": seed}
    sources = check_names(SOURCES.value, pairs.available_sources(IMAGENET.value), "source")
    done = [row["source"] for row in rows if all(row[k] == str(v) for k, v in key.items())]
    missing = [source for source in sources if source not in done]
    if not missing:
        return
    say(f"--- {target}, {per_class} per class, seed {seed}: {', '.join(missing)}")
    scratch, scratch_rate = best_accuracy(folder, rows, key, pairs.RANDOM)
    for source in missing:
        fine_tuned, rate = (
            (scratch, scratch_rate) if source == pairs.RANDOM else best_accuracy(folder, rows, key, source)
        )
        features = scores.source_features(source, IMAGENET.value, target, DATA_DIR.value, per_class, seed, TESTED.value)
        row = {"source": source, **key, "scratch": scratch, "fine_tune": fine_tuned, "probe": probe_accuracy(features)}
        row |= {"rate": rate, "scratch_rate": scratch_rate, "commit": record.commit()}
        rows.append(row | scores.compute_scores(source, IMAGENET.value, DATA_DIR.value, features, seed))
        record.write_rows(prefix, rows)


def best_accuracy(folder: Path, rows: list[Any], key: dict[str, Any], source: str) -> tuple[float, str]:
    """Return the test accuracy at the rate that is best on the first seed's validation part, and the rate."""
    first = int(SEEDS.value[0])
    column = "scratch_rate" if source == pairs.RANDOM else "rate"
    chosen_rates = [
        row[column] for row in rows
        if (row["target"], int(row["per_class"]), int(row["seed"])) == (key["target"], key["per_class"], first)
        and source in (row["source"], pairs.RANDOM)
    ]  # fmt: skip
    if chosen_rates:
        best = chosen_rates[0]
    else:
        scores = {rate: train_once(folder, {**key, "seed": first}, source, rate)[1] for rate in RATES.value}
        best = max(RATES.value, key=lambda rate: (scores[rate], -float(rate)))
    return train_once(folder, key, source, best)[0], best


def train_once(folder: Path, key: dict[str, Any], source: str, rate: str) -> tuple[float, float]:
    """Return test and validation accuracy of a network trained from a source; chance where it diverges."""
    config = pairs.target_config(key["target"], DATA_DIR.value, key["per_class"], key["seed"])
    config = recipe.override(config, pairs.source_changes(source, IMAGENET.value))
    examples = len(head_init.split_data(config, ImageClassification.load_data(config))["train"].labels)
    config.batch_size, config.eval_batch_size, config.data.test_examples = BATCH.value, 240, TESTED.value
    config.epochs, config.save_every, config.log_every = STEPS.value * BATCH.value / examples, 1e9, STEPS.value
    config.optim.lr, config.optim.schedule, config.optim.warmup = float(rate), "cosine", 0.1
    run_folder = folder / key["target"] / f"per_class{key['per_class']}" / source / f"rate{rate}" / f"seed{key['seed']}"
    try:
        summary = training.train(config, run_folder)
    except Diverged as error:
        say(str(error))
        return 0.0, 0.0
    shutil.rmtree(run_folder / "checkpoints", ignore_errors=True)  # nobody asks for hundreds of them
    return summary["metrics"]["accuracy"], best_validation(run_folder)


def probe_accuracy(features: scores.SourceFeatures) -> float:
    """Return the test accuracy of the logistic probe whose strength is best on validation."""
    (x, y), held_out, tested = features.train, features.validation, features.test
    probes = [transferability.logistic_probe(x, y, c) for c in STRENGTHS]
    best = max(probes, key=lambda net: net.accuracy(*held_out))
    return best.accuracy(*tested)


if __name__ == "__main__":
    command.run(main)
