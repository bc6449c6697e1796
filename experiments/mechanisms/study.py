"""Which way to transfer works, with how many examples: every mechanism, tuned and tested in the same way.

    python -m experiments.mechanisms.study --config=configs/flowers_mobilenet.py --per_class=5,20,0 \\
        --steps=40,100,200 --config.data.dir=FOLDER --config.init.path=WEIGHTS --workdir=DIR
    python -m experiments.mechanisms.study --config=configs/sst2_bert.py --per_class=50 --steps=60 \\
        --config.data.dir=FOLDER --config.init.path=BERT --workdir=DIR               texts
    python -m experiments.mechanisms.study --smoke --workdir=DIR        a tiny network, minutes, no download

For each mechanism of tl_jax/transfer/methods.py and each number of examples per class, every rate of the grid is run
with the first seed, the best on the validation part is taken, and the other seeds are run with it. The budget is
the same for all: the same rates, steps, batches and augmentation; what has no rate tunes its strength on the same
validation part, with every seed. Steps of a pretext come on top. Two more are made of what is there: ``knn``, nearest
neighbours among the source's features, and ``soup``, the greedy soup of LP-FT runs at all rates, three times the
steps. Runs that are finished are not repeated, nor is what stands in the record (``RESULTS.csv``), so the study may
be stopped and started again, elsewhere too, or shared among processes with ``--share=I/N``; tables and pictures are
drawn from what is there.
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from experiments import record
from experiments.mechanisms import report, without_training
from tl_jax import api
from tl_jax.config import recipe
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json, write_json
from tl_jax.transfer import methods
from tl_jax.utils import command
from tl_jax.utils.errors import Diverged, UserError, nearest

CONFIG = config_flags.DEFINE_config_file("config", "configs/flowers_mobilenet.py", "Recipe: data, network, batches.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of record, table and pictures; in the workdir if empty.")
PER_CLASS = flags.DEFINE_list("per_class", ["5", "20", "0"], "Training examples of each class; 0 for all.")
STEPS = flags.DEFINE_list("steps", ["40", "100", "200"], "Training steps for each of these.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the tested runs.")
RATES = flags.DEFINE_list("rates", ["1e-4", "1e-3", "1e-2"], "Learning rates tried.")
PRETEXT_STEPS = flags.DEFINE_integer("pretext_steps", 160, "Steps of a pretext phase.")
BATCH = flags.DEFINE_integer("batch", 16, "Examples a step.")
NAMES = flags.DEFINE_list("mechanisms", [], "Which; all if empty.")
SHARE = flags.DEFINE_string("share", "0/1", "I/N: run the mechanisms I, I + N, I + 2 N, ...")
SMOKE = flags.DEFINE_bool("smoke", False, "A tiny network, a few steps: that everything runs.")
NO_RATE = ("logistic", "ridge")  # mechanisms without gradient steps


def main(_: list[str]) -> None:
    """Run what is still to be run, then draw everything."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(WORKDIR.value).expanduser()
    prefix = Path(RESULTS.value or folder / "mechanisms")
    record.begin_record(prefix, describe_protocol())
    record.add_facts(prefix, devices=jax.devices()[0].device_kind, versions=api.versions())
    seeds = [int(seed) for seed in SEEDS.value]
    share, num_shares = map(int, SHARE.value.split("/"))
    for name in chosen_mechanisms()[share::num_shares]:
        for size, per_class in enumerate(map(int, PER_CLASS.value)):
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
    held_out = data.validation if data.validation and config.data.validation else None
    return {
        "network": config.model.name,
        "source": config.init.source,
        "data": data.name,
        **({"pixels": config.input.size} if config.task == "image" else {"tokens": config.input.max_length}),
        "batch": config.batch_size,
        "steps": dict(zip(PER_CLASS.value, map(int, STEPS.value), strict=True)),
        "rates": RATES.value,
        "validation": len(held_out.labels) if held_out else len(data.train.labels) - count_examples(config),
    }


def chosen_mechanisms() -> list[str]:
    """Return the names of the mechanisms to run."""
    known = [*methods.names_for_task(CONFIG.value.task), *without_training.METHODS]
    for name in NAMES.value:
        if name not in known:
            raise UserError(f"no mechanism {name!r}; {nearest(name, known)}")
    return NAMES.value or known


def run_mechanism(folder: Path, name: str, size: int) -> None:
    """Tune one mechanism with one number of examples, then run it with every seed."""
    per_class, seeds = int(PER_CLASS.value[size]), [int(seed) for seed in SEEDS.value]
    method_folder = folder / name / f"per_class{per_class}"
    previous = read_json(method_folder / "choice.json")
    if name in without_training.METHODS:
        if previous.get("seeds") == seeds and previous.get("rates") == RATES.value:
            return

        def run(rate: str, seed: int) -> Path | None:
            run_folder = folder / "lp_ft" / f"per_class{per_class}" / f"rate{rate}" / f"seed{seed}"
            return run_once(run_folder, "lp_ft", size, float(rate), seed)

        config = make_config("logistic", size, 1.0, seeds[0])
        without_training.METHODS[name](method_folder / "rate0", config, run, RATES.value, seeds)
        best, scores = "0", {}
    else:
        rates = RATES.value[:1] if name in NO_RATE else RATES.value
        scores = {}
        for rate in rates:
            finished = run_once(method_folder / f"rate{rate}" / f"seed{seeds[0]}", name, size, float(rate), seeds[0])
            scores[rate] = without_training.best_validation(finished) if finished else -1.0
        best = max(rates, key=lambda rate: (scores[rate], -float(rate)))
        for seed in seeds[1:]:
            run_once(method_folder / f"rate{best}" / f"seed{seed}", name, size, float(best), seed)
    choice = {"mechanism": name, "per_class": per_class, "rate": best, "validation": scores, "seeds": seeds}
    choice |= {"rates": RATES.value, "commit": previous.get("commit") or record.commit()}
    write_json(method_folder / "choice.json", choice)


def run_once(folder: Path, name: str, size: int, rate: float, seed: int) -> Path | None:
    """Run one mechanism once, unless that was done before; None where it diverges, which is no reason to stop."""
    if (folder / "diverged.json").is_file():
        return None
    if not (folder / "summary.json").is_file():
        say(f"--- {name}, {PER_CLASS.value[size]} per class, rate {rate:g}, seed {seed}")
    try:
        api.run(make_config(name, size, rate, seed), folder)  # refuses a folder of another configuration
    except Diverged as error:
        say(f"{error}")
        write_json(folder / "diverged.json", {"why": str(error)})
        return None
    return folder


def make_config(name: str, size: int, rate: float, seed: int) -> recipe.Config:
    """Return the configuration of one run."""
    config = recipe.override(CONFIG.value, (("seeds", ()), ("arms", ()), ("phases", ()), ("seed", seed)))
    per_class, steps = int(PER_CLASS.value[size]), int(STEPS.value[size])
    config.name = f"{config.name}_{name}"
    config.data.per_class, config.optim.lr, config.test_train = per_class, rate, True
    config.log_every, config.save_every, config.batch_size = max(1, steps // 4), 1e9, BATCH.value
    if SMOKE.value:
        shrink_config(config)
        steps = 2
    pool = count_examples(config)
    config.epochs = steps * config.batch_size / (per_class * count_classes(config) or pool)
    methods.MECHANISMS[name](config)
    pretext = {"epochs": (2 if SMOKE.value else PRETEXT_STEPS.value) * config.batch_size / pool}
    config.phases = tuple(
        {**phase, **(pretext if phase.get("objective") == "pretext" else {})} for phase in config.phases
    )
    if config.patience:  # eight looks at the validation part
        config.save_every = config.epochs / 8
    return config


def shrink_config(config: recipe.Config) -> None:
    """Make a configuration small."""
    text = config.task != "image"
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
    if config.task == "image":
        from tl_jax.tasks import image_classification

        return image_classification.load_source(config, config.input.size)
    from tl_jax.tasks import text

    return text.load_source(config)


if __name__ == "__main__":
    command.run(main)
