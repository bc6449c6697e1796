"""Compare the quality of text fine-tuning with transformers on PyTorch, on the same batches.

    python -m experiments.text_quality --bert=FOLDER --data_dir=FOLDER --workdir=DIR [--sets=trec6] [--library=tl_jax]

``--data_dir`` holds ``sst2``, ``trec6`` and ``wikiann_en``. The recipes are those of configs/. The peer gets the same
batches and rates, and is scored by the same code. Rows are appended to ``RESULTS.csv``, so the study can be interrupted
and split among processes; the table is made from the available rows. Needs requirements-bench.txt.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from configs import ner_bert, sst2_bert, trec_bert
from experiments import record
from tl_jax import training
from tl_jax.config import recipe as recipe_module
from tl_jax.report import html
from tl_jax.report.plots import t_interval
from tl_jax.restore import make_task
from tl_jax.train.logging import say
from tl_jax.transfer.optimizer import learning_rates
from tl_jax.utils import command, disk, environment

BERT = flags.DEFINE_string("bert", None, "Folder of the network.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the datasets.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
RESULTS = flags.DEFINE_string("results", "experiments/results/text_quality", "Prefix of record and table.")
SETS = flags.DEFINE_list("sets", ["trec6", "sst2", "wikiann_en"], "Datasets to run.")
LIBRARIES = flags.DEFINE_list("library", ["tl_jax", "transformers"], "Libraries to run.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Random seeds.")
RECIPES = {"trec6": (trec_bert, "accuracy"), "sst2": (sst2_bert, "accuracy"), "wikiann_en": (ner_bert, "f1")}


def main(_: list[str]) -> None:
    """Run what is still to be run, then write the table."""
    logging.set_verbosity(logging.WARNING)
    prefix = Path(RESULTS.value)
    record.begin_record(prefix, {"epochs": 3, "batch": 32, "rate": 5e-5})
    record.add_facts(prefix, devices=jax.devices()[0].device_kind, versions=environment.versions())
    for seed in map(int, SEEDS.value):
        for name in SETS.value:
            for library in LIBRARIES.value:
                rows = record.read_rows(prefix)
                if not any((r["set"], r["library"], int(r["seed"])) == (name, library, seed) for r in rows):
                    say(f"--- {name}, {library}, seed {seed}")
                    row = measure_run(name, library, seed)
                    record.write_rows(prefix, [*record.read_rows(prefix), row])
    text = html.to_markdown(make_table(record.read_rows(prefix)))
    disk.write_text(Path(f"{prefix}.md"), text)
    say(text)


def measure_run(name: str, library: str, seed: int) -> dict[str, Any]:
    """Return the row of one run."""
    recipe, metric = RECIPES[name]
    changes = (("init.path", BERT.value), ("data.dir", str(Path(DATA_DIR.value) / name)), ("seed", seed))
    config = recipe_module.override(recipe.get_config(), (*changes, ("save_every", 1e9)))
    if library == "tl_jax":
        summary = training.train(config, Path(WORKDIR.value) / name / f"seed{seed}")
        values, examples = summary["metrics"], summary["examples_evaluated"]
    else:
        values, examples = train_peer(config, metric)
    return {
        "set": name, "library": library, "seed": seed, "metric": metric, "value": float(values[metric]),
        "examples": examples, "commit": record.commit(),
    }  # fmt: skip


def train_peer(config: recipe_module.Config, metric: str) -> tuple[dict[str, float], int]:
    """Return the test metrics of transformers, trained on the batches and at the rates of ``config``."""
    from experiments.benchmarks.text import Trainer

    task = make_task(config)
    (plan,) = task.plan()
    trainer = Trainer(Path(BERT.value), len(task.classes), metric == "f1", config.seed, plan.optim)
    for step, rate in enumerate(learning_rates(plan.rate)):
        loss = trainer.step(task.train_batch(step), rate)
        if step % 50 == 0:
            say(f"step {step} of {plan.stop}: loss {loss:.3f}")
    batches = list(task.eval_batches("test"))
    predictions = [trainer.classes(batch) for batch in batches]
    hits = [
        (predicted == batch["label"])[batch["mask"] > 0] for predicted, batch in zip(predictions, batches, strict=True)
    ]
    values = dict(task.evaluate(predictions, batches).values)
    if metric == "accuracy":
        values["accuracy"] = float(np.concatenate(hits).mean())
    return values, sum(int(batch["mask"].sum()) for batch in batches)


def make_table(rows: list[dict[str, str]]) -> html.Table:
    """Return means with 95 % intervals of each library, and their difference paired by seed."""
    lines, libraries = [], sorted({row["library"] for row in rows})
    for name in dict.fromkeys(row["set"] for row in rows):
        selected = [row for row in rows if row["set"] == name]
        by_library = {
            lib: {r["seed"]: 100 * float(r["value"]) for r in selected if r["library"] == lib} for lib in libraries
        }
        shared = sorted(set.intersection(*map(set, by_library.values())))
        cells = [f"{name}, {selected[0]['metric']}, {int(selected[0]['examples']):,}", str(len(shared))]
        values = [np.asarray([scores[seed] for seed in shared]) for scores in by_library.values()]
        values += [values[0] - values[-1]] if len(values) > 1 else []
        lines.append([*cells, *(_format_interval(scores) for scores in values)])
    return html.Table(
        ["set, metric, test examples", "seeds", *libraries, *(["difference"] if len(libraries) > 1 else [])], lines
    )


def _format_interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.1f}" if len(values) else ""
    mean, half = t_interval(values)
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    command.run(main)
