"""Compare transfer methods by the number of examples: every method, tuned and tested in the same way.

    python -m experiments.mechanisms.study --config=configs/flowers_mobilenet.py --per_class=5,20,0 \\
        --steps=40,100,200 --config.data.dir=FOLDER --config.init.path=WEIGHTS --workdir=DIR
    python -m experiments.mechanisms.study --config=configs/sst2_bert.py --per_class=50 --steps=60 \\
        --config.data.dir=FOLDER --config.init.path=BERT --workdir=DIR               texts
    python -m experiments.mechanisms.study --smoke --workdir=DIR        a tiny network, minutes, no download

For each method of tl_jax/transfer/methods.py and each number of examples per class, every rate of the grid runs with
the first seed; the best on validation is then run with the other seeds. All have the same budget: the same rates,
steps, batches and augmentation. A method without a rate tunes its strength on the same validation split, with every
seed. Pretext steps are additional. Two more methods reuse these runs: ``knn``, nearest neighbors among the source's
features, and ``soup``, the greedy soup of LP-FT runs at all rates, with three times the steps. Finished runs and rows
of the record (``RESULTS.csv``) are not repeated. So the study can be interrupted and resumed, also elsewhere, or split
among processes with ``--share=I/N``; tables and figures are made from the available results.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from experiments import record
from experiments.mechanisms import report
from tl_jax import restore, training, transferability
from tl_jax.config import recipe, recipes_dir, schema, stored
from tl_jax.train import evaluate, loop, sharding
from tl_jax.train.logging import say
from tl_jax.train.state import stream_key
from tl_jax.train.task import TASKS
from tl_jax.train.workdir import read_json, write_json
from tl_jax.transfer import methods, weight_averaging
from tl_jax.utils import command, environment
from tl_jax.utils.errors import Diverged, UserError, nearest
from tl_jax.utils.json_files import parse_row

FLAGS = flags.FLAGS
NO_RATE = ("logistic", "ridge")  # mechanisms without gradient steps
NEIGHBOR_COUNTS = (1, 3, 5, 10, 20)
# Rate, seed -> folder of the finished LP-FT run, None where it diverged.
RunFunction = Callable[[str, int], Path | None]


def define_flags() -> None:
    """Define the flags of the command; not on import, because other studies read ``best_validation``."""
    config_flags.DEFINE_config_file(
        "config", str(recipes_dir() / "flowers_mobilenet.py"), "Recipe: data, network, batches."
    )
    flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
    flags.DEFINE_string("results", "", "Prefix of record, table and figures; in the workdir if empty.")
    flags.DEFINE_list("per_class", ["5", "20", "0"], "Training examples per class; 0 for all.")
    flags.DEFINE_list("steps", ["40", "100", "200"], "Training steps for each of these.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the tested runs.")
    flags.DEFINE_list("rates", ["1e-4", "1e-3", "1e-2"], "Candidate learning rates.")
    flags.DEFINE_integer("pretext_steps", 160, "Steps of a pretext phase.")
    flags.DEFINE_integer("batch", 16, "Batch size.")
    flags.DEFINE_list("mechanisms", [], "Methods to run; empty for all.")
    flags.DEFINE_string("share", "0/1", "I/N: run the methods I, I + N, I + 2 N, ...")
    flags.DEFINE_bool("smoke", False, "Smoke test with a tiny network and a few steps.")


def main(_: list[str]) -> None:
    """Run what is still to be run, then draw everything."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(FLAGS.workdir).expanduser()
    prefix = Path(FLAGS.results or folder / "mechanisms")
    record.begin_record(prefix, describe_protocol())
    record.add_facts(prefix, devices=jax.devices()[0].device_kind, versions=environment.versions())
    seeds = [int(seed) for seed in FLAGS.seeds]
    share, num_shares = map(int, FLAGS.share.split("/"))
    for name in chosen_mechanisms()[share::num_shares]:
        for size, per_class in enumerate(map(int, FLAGS.per_class)):
            done = [r.seed for r in report.read_record(prefix) if (r.mechanism, r.per_class) == (name, per_class)]
            if set(seeds) <= set(done):
                say(f"--- {name}, {per_class} per class: in {prefix}.csv")
                continue
            run_mechanism(folder, name, size)
            report.update_record(folder, prefix)
    report.write_report(folder, prefix)


def describe_protocol() -> dict[str, Any]:
    """Return what all runs of the study have in common."""
    config = make_config("fine_tune", 0, 1.0, 0)
    data = load_data(config)
    sizes = {"size": "pixels", "max_length": "tokens"}  # of images, and of texts
    inputs = {words: config.input[name] for name, words in sizes.items() if name in config.input}
    held_out = data.validation if data.validation and config.data.validation else None
    return {
        "network": config.model.name,
        "source": config.init.source,
        "data": data.name,
        **inputs,
        "batch": config.batch_size,
        "steps": dict(zip(FLAGS.per_class, map(int, FLAGS.steps), strict=True)),
        "rates": FLAGS.rates,
        "validation": len(held_out.labels) if held_out else len(data.train.labels) - count_examples(config),
    }


def chosen_mechanisms() -> list[str]:
    """Return the names of the mechanisms to run."""
    known = [*methods.names_for_task(FLAGS.config.task), *WITHOUT_TRAINING]
    for name in FLAGS.mechanisms:
        if name not in known:
            raise UserError(f"no mechanism {name!r}; {nearest(name, known)}")
    return FLAGS.mechanisms or known


def run_mechanism(folder: Path, name: str, size: int) -> None:
    """Tune one mechanism with one number of examples, then run it with every seed."""
    per_class, seeds = int(FLAGS.per_class[size]), [int(seed) for seed in FLAGS.seeds]
    method_folder = folder / name / f"per_class{per_class}"
    previous = read_json(method_folder / "choice.json")
    if name in WITHOUT_TRAINING:
        if previous.get("seeds") == seeds and previous.get("rates") == FLAGS.rates:
            return

        def run(rate: str, seed: int) -> Path | None:
            run_folder = folder / "lp_ft" / f"per_class{per_class}" / f"rate{rate}" / f"seed{seed}"
            return run_once(run_folder, "lp_ft", size, float(rate), seed)

        config = make_config("logistic", size, 1.0, seeds[0])
        WITHOUT_TRAINING[name](method_folder / "rate0", config, run, FLAGS.rates, seeds)
        best, scores = "0", {}
    else:
        rates = FLAGS.rates[:1] if name in NO_RATE else FLAGS.rates
        scores = {}
        for rate in rates:
            finished = run_once(method_folder / f"rate{rate}" / f"seed{seeds[0]}", name, size, float(rate), seeds[0])
            scores[rate] = best_validation(finished) if finished else -1.0
        best = max(rates, key=lambda rate: (scores[rate], -float(rate)))
        for seed in seeds[1:]:
            run_once(method_folder / f"rate{best}" / f"seed{seed}", name, size, float(best), seed)
    choice = {"mechanism": name, "per_class": per_class, "rate": best, "validation": scores, "seeds": seeds}
    choice |= {"rates": FLAGS.rates, "commit": previous.get("commit") or record.commit()}
    write_json(method_folder / "choice.json", choice)


def run_once(folder: Path, name: str, size: int, rate: float, seed: int) -> Path | None:
    """Run one mechanism once, unless that was done before; None where it diverges, which is no reason to stop."""
    if (folder / "diverged.json").is_file():
        return None
    if not (folder / "summary.json").is_file():
        say(f"--- {name}, {FLAGS.per_class[size]} per class, rate {rate:g}, seed {seed}")
    try:
        training.train(make_config(name, size, rate, seed), folder)  # refuses a folder of another configuration
    except Diverged as error:
        say(f"{error}")
        write_json(folder / "diverged.json", {"why": str(error)})
        return None
    return folder


def make_config(name: str, size: int, rate: float, seed: int) -> recipe.Config:
    """Return the configuration of one run."""
    config = recipe.override(FLAGS.config, (("seeds", ()), ("arms", ()), ("phases", ()), ("seed", seed)))
    per_class, steps = int(FLAGS.per_class[size]), int(FLAGS.steps[size])
    config.name = f"{config.name}_{name}"
    config.data.per_class, config.optim.lr, config.test_train = per_class, rate, True
    config.log_every, config.save_every, config.batch_size = max(1, steps // 4), 1e9, FLAGS.batch
    if FLAGS.smoke:
        shrink_config(config)
        steps = 2
    pool = count_examples(config)
    config.epochs = steps * config.batch_size / (per_class * count_classes(config) or pool)
    methods.METHODS[name](config)
    pretext = {"epochs": (2 if FLAGS.smoke else FLAGS.pretext_steps) * config.batch_size / pool}
    config.phases = tuple(
        {**phase, **(pretext if phase.get("objective") == "pretext" else {})} for phase in config.phases
    )
    if config.patience:  # eight looks at the validation part
        config.save_every = config.epochs / 8
    return config


def shrink_config(config: recipe.Config) -> None:
    """Make a configuration small."""
    text = TASKS[config.task].input_kind == "texts"
    (recipe.smoke_text if text else recipe.smoke)(config)
    config.data.name, config.data.dir, config.data.train_examples = "docs" if text else "gratings", "", 0
    if text:
        return
    config.model.name, config.init.source, config.init.path = "resnet8", "tl_jax", ""
    config.input.size, config.eval_batch_size = 16, 64


def count_classes(config: recipe.Config) -> int:
    """Return the number of classes of the target."""
    return len(load_data(config).classes)


def count_examples(config: recipe.Config) -> int:
    """Return the number of training examples where all are used."""
    data, share = load_data(config), config.data.validation
    return len(data.train.labels) - (0 if data.validation else round(share * len(data.train.labels)))


def load_data(config: recipe.Config) -> Any:
    """Return the target's data."""
    return TASKS[config.task].load_data(schema.freeze(config))


def evaluate_knn(
    folder: Path, config: recipe.Config, run: RunFunction, rates: Sequence[str], seeds: Sequence[int]
) -> None:
    """Vote among the nearest training examples in the source's features; their number is chosen on validation."""
    config.init.head, config.init.strength = "new", 0.0
    for seed in seeds:
        config.seed = seed
        task = restore.make_task(config)
        variables = task.init(stream_key(seed, "init"))
        features = {split: _features(task, variables, split) for split in ("train", "validation", "test")}
        (x, y), held_out, test = (features[split] for split in ("train", "validation", "test"))
        counts = [k for k in NEIGHBOR_COUNTS if k <= len(y)]
        scores = {k: _accuracy(transferability.knn(x, y, held_out[0], k), held_out[1]) for k in counts}
        best = max(counts, key=lambda k: (scores[k], k))
        train = 1.0 if best == 1 else _accuracy(transferability.knn(x, y, x, best), y)
        accuracy = _accuracy(transferability.knn(x, y, test[0], best), test[1])
        say(f"--- knn, {len(y)} examples, seed {seed}: k = {best}, test accuracy {accuracy:.4f}")
        _write_summary(folder / f"seed{seed}", config, accuracy, train, len(test[1]), neighbours=best)


def evaluate_soup(
    folder: Path, config: recipe.Config, run: RunFunction, rates: Sequence[str], seeds: Sequence[int]
) -> None:
    """Mix the LP-FT runs at all rates, from one start each seed, as long as validation does not get worse."""
    for seed in seeds:
        folders_by_rate = {rate: path for rate in rates if (path := run(rate, seed))}
        folders = list(folders_by_rate.values())
        restored = [restore.restore(stored.get_config(str(path)), path, weights=True) for path in folders]
        task = restored[0][0]

        def score(variables: Any, task: Any = task) -> float:
            placed = sharding.replicate(variables)
            return evaluate.evaluate(task, placed, "validation").values["accuracy"]

        mixed, chosen = weight_averaging.greedy_soup([end.variables for _, _, end in restored], score)
        mixed = sharding.replicate(mixed)
        tested, train = (evaluate.evaluate(task, mixed, split) for split in ("test", "train"))
        chosen_rates = [list(folders_by_rate)[i] for i in chosen]
        say(f"--- soup, seed {seed}: of rates {', '.join(chosen_rates)}: test accuracy {tested.values['accuracy']:.4f}")
        accuracy = tested.values["accuracy"]
        more = {"seed": seed, "soup": chosen_rates, "parameters": read_json(folders[0] / "summary.json")["parameters"]}
        _write_summary(folder / f"seed{seed}", config, accuracy, train.values["accuracy"], tested.examples, **more)


# Mechanisms that are no training run of their own.
WITHOUT_TRAINING = {"knn": evaluate_knn, "soup": evaluate_soup}


def best_validation(folder: Path) -> float:
    """Return the validation score at the end of a run, or the best one where the best checkpoint was tested."""
    rows = [parse_row(line, folder / "metrics.jsonl") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if row["split"] == "validation"]
    # What training began with is its result only if there was none.
    scores = [row["accuracy"] for row in held_out if row["phase"] != loop.START or len(held_out) == 1]
    summary = json.loads((folder / "summary.json").read_text())
    if "wise_ft" in summary:
        return max(summary["wise_ft"]["validation"].values())
    return max(scores) if stored.get_config(str(folder)).eval_checkpoint == "best" else scores[-1]


def _features(task: Any, variables: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    labels = [batch["label"][batch["mask"] > 0] for batch in task.eval_batches(split)]
    return evaluate.extract(task.features, variables, task.eval_batches(split)), np.concatenate(labels)


def _accuracy(predicted: Any, labels: np.ndarray) -> float:
    return float((np.asarray(predicted) == labels).mean())


def _write_summary(folder: Path, config: recipe.Config, test: float, train: float, examples: int, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"seed": config.seed, "steps": 0, "metrics": {"accuracy": test}, "train_metrics": {"accuracy": train}}
    summary |= {"parameters": {"trainable": 0}, "examples_evaluated": examples, **more}
    write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    define_flags()
    command.run(main)
