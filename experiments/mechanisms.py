"""Which way to transfer works, with how many examples: every mechanism, tuned and tested in the same way.

    python -m experiments.mechanisms --config=configs/flowers_mobilenet.py --per_class=5,20,0 --steps=40,100,200 \\
        --config.data.dir=FOLDER --config.init.path=WEIGHTS --workdir=DIR
    python -m experiments.mechanisms --smoke --workdir=DIR                       a tiny network, minutes, no download

For each mechanism of configs/mechanisms.py and each number of examples per class, every rate of the grid is run once
with a seed of its own, the best on the validation part is taken, and the seeds are run with it. The budget is the same
for all: the same rates, steps, batches and augmentation; what has no rate tunes its strength on the same validation
part. Steps of a pretext phase come on top. Runs that are finished are not repeated, so the study may be stopped and
started again, or shared among processes with ``--share=I/N``; tables and pictures are drawn from what is there.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from configs import base, mechanisms
from experiments import mechanisms_report
from tl_jax import api
from tl_jax.errors import UserError
from tl_jax.train.log import say

CONFIG = config_flags.DEFINE_config_file("config", "configs/flowers_mobilenet.py", "Recipe: data, network, batches.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of table and pictures; in the workdir if empty.")
PER_CLASS = flags.DEFINE_list("per_class", ["5", "20", "0"], "Training examples of each class; 0 for all.")
STEPS = flags.DEFINE_list("steps", ["40", "100", "200"], "Training steps for each of these.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the tested runs.")
RATES = flags.DEFINE_list("rates", ["1e-4", "1e-3", "1e-2"], "Learning rates tried.")
TUNING_SEED = flags.DEFINE_integer("tuning_seed", 100, "Seed of the runs that choose the rate.")
NAMES = flags.DEFINE_list("mechanisms", [], "Which; all if empty.")
SHARE = flags.DEFINE_string("share", "0/1", "I/N: run the mechanisms I, I + N, I + 2 N, ...")
SMOKE = flags.DEFINE_bool("smoke", False, "A tiny network, a few steps: that everything runs.")
NO_RATE = ("logistic", "ridge")  # mechanisms without gradient steps


def main(_: list[str]) -> None:
    """Run what is still to be run, then draw everything."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(WORKDIR.value).expanduser()
    part, parts = map(int, SHARE.value.split("/"))
    for name in chosen()[part::parts]:
        for size in range(len(PER_CLASS.value)):
            study(folder, name, size)
    mechanisms_report.write(folder, Path(RESULTS.value or folder / "mechanisms"))


def chosen() -> list[str]:
    """Return the names of the mechanisms to run."""
    unknown = [name for name in NAMES.value if name not in mechanisms.MECHANISMS]
    if unknown:
        raise UserError(f"no mechanism {unknown[0]!r}; choose from {', '.join(mechanisms.MECHANISMS)}")
    return NAMES.value or list(mechanisms.MECHANISMS)


def study(folder: Path, name: str, size: int) -> None:
    """Tune one mechanism with one number of examples, then run it with every seed."""
    per_class = int(PER_CLASS.value[size])
    rates = RATES.value[:1] if name in NO_RATE else RATES.value
    here = folder / name / f"per_class{per_class}"
    scores = {}
    for rate in rates:
        done = one(here / f"rate{rate}" / f"seed{TUNING_SEED.value}", name, size, float(rate), TUNING_SEED.value)
        scores[rate] = best_validation(done) if len(rates) > 1 else 0.0
    best = max(rates, key=lambda rate: (scores[rate], -float(rate)))
    for seed in SEEDS.value:
        one(here / f"rate{best}" / f"seed{seed}", name, size, float(best), int(seed))
    choice = {"rate": float(best), "validation": scores, "per_class": per_class, "mechanism": name}
    choice["tuning_seed"] = TUNING_SEED.value
    (here / "choice.json").write_text(json.dumps(choice, indent=2) + "\n")


def one(folder: Path, name: str, size: int, rate: float, seed: int) -> Path:
    """Run one mechanism once, unless that was done before."""
    if not (folder / "summary.json").is_file():
        say(f"--- {name}, {PER_CLASS.value[size]} per class, rate {rate:g}, seed {seed}")
        api.run(prepared(name, size, rate, seed), folder)
    return folder


def prepared(name: str, size: int, rate: float, seed: int) -> base.Config:
    """Return the configuration of one run."""
    config = base.override(CONFIG.value, (("seeds", ()), ("arms", ()), ("phases", ()), ("seed", seed)))
    per_class, steps = int(PER_CLASS.value[size]), int(STEPS.value[size])
    config.name = f"{config.name}_{name}"
    config.data.per_class, config.optim.lr, config.test_train = per_class, rate, True
    config.log_every, config.save_every = max(1, steps // 4), 1e9
    if SMOKE.value:
        shrink(config)
        steps = 2
    config.epochs = steps * config.batch_size / (per_class * classes(config) or training_examples(config))
    mechanisms.MECHANISMS[name](config)
    if config.patience:  # eight looks at the validation part
        config.save_every = config.epochs / 8
    return config


def shrink(config: base.Config) -> None:
    """Make a configuration small."""
    base.smoke(config)
    config.data.name, config.data.dir, config.data.train_examples = "gratings", "", 0
    config.model.name, config.init.source, config.init.path = "resnet8", "tl_jax", ""
    config.input.size, config.eval_batch_size = 16, 64


def classes(config: base.Config) -> int:
    """Return the number of classes of the target."""
    return len(source(config).classes)


def training_examples(config: base.Config) -> int:
    """Return the number of training examples where all are used."""
    data, share = source(config), config.data.validation
    return len(data.train.labels) - (0 if data.validation else round(share * len(data.train.labels)))


def source(config: base.Config) -> Any:
    """Return the target's data."""
    from tl_jax.tasks import image

    return image.load_source(config, config.input.size)


def best_validation(folder: Path) -> float:
    """Return the validation score at the end of a run, or the best one where the best checkpoint was tested."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["accuracy"] for row in rows if row["split"] == "validation"]
    summary = json.loads((folder / "summary.json").read_text())
    if "wise_ft" in summary:
        return max(summary["wise_ft"]["validation"].values())
    return max(scores) if json.loads((folder / "config.json").read_text())["test_on"] == "best" else scores[-1]


if __name__ == "__main__":
    app.run(main)
