"""Analyze which layers transfer, and how: four analyses of one source and one target, with a table and a plot.

    python -m experiments.layer_transfer --workdir=DIR                                 CIFAR-10 to digits, no files
    python -m experiments.layer_transfer --workdir=DIR --source=mnist --target=cifar10 --data_dir=FOLDER

1. Depth (Yosinski et al. 2014, arXiv:1411.1792): the first d stages from the source, the others randomly initialized;
   those d stages frozen, or trained like the others.
2. Rewinding (Zhang et al. 2019, arXiv:1902.01996): one stage of a fine-tuned network is reset to its initial weights,
   or randomly initialized again.
3. Linear interpolation between two networks (Neyshabur et al. 2020, arXiv:2008.11687): trained from the source, from
   one random initialization, or from two, on the same examples in another order. The BatchNorm statistics are
   recomputed at each point.
4. Drift: change of the weights of each stage, and linear CKA of its pooled maps with the initial ones.

All runs have the same steps and candidate learning rates; the validation split chooses one. Writes ``RESULTS.csv``,
``.md`` and ``.png``.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from experiments import record
from experiments.mechanisms import drift as moves
from experiments.transferability import pairs
from tl_jax import restore, transferability
from tl_jax.config import recipe, schema
from tl_jax.report import html
from tl_jax.report.plots import format_percent, t_interval
from tl_jax.train import evaluate, loop, sharding
from tl_jax.train.logging import say
from tl_jax.train.state import initial_state
from tl_jax.train.task import Task
from tl_jax.train.workdir import read_json
from tl_jax.transfer import freeze
from tl_jax.transfer.weight_averaging import interpolate
from tl_jax.utils import command, disk

TITLES = {
    "depth": "first d parts from the source",
    "rewind": "one part of the fine-tuned network reset",
    "line": "on the line between two networks",
    "drift": "how far each part moved",
}


def write_report(prefix: Path) -> str:
    """Write ``PREFIX.md`` and ``PREFIX.png``; return what to say about them."""
    rows, protocol = record.read_rows(prefix), read_json(Path(f"{prefix}.json"))
    seeds = len({row["seed"] for row in rows})
    text = [
        f"# What is transferred from {protocol['source']} to {protocol['target']}\n",
        f"resnet8, {protocol['per_class']} training examples of each class, {protocol['steps']} steps, the best on "
        f"validation of the rates {', '.join(protocol['rates'])}, "
        f"at most {protocol['tested']} test examples, {seeds} seed{'s' * (seeds != 1)} (mean and 95 % interval); "
        f"commit {', '.join(protocol['commits'])}.\n",
    ]
    for kind, title in TITLES.items():
        text += [f"## {title.capitalize()}\n", html.to_markdown(make_table(rows, kind))]
    disk.write_text(Path(f"{prefix}.md"), "\n".join(text))
    picture = plot_analyses(
        rows, Path(f"{prefix}.png"), f"{protocol['source']} to {protocol['target']}, seeds: {seeds}"
    )
    return f"{prefix}.csv, {prefix}.md, {picture}"


def make_table(rows: Sequence[Any], kind: str) -> html.Table:
    """Return the means and intervals of one look, places down and variants across."""
    places, variants = places_and_variants(rows, kind)
    lines = []
    for place in places:
        cells = []
        for variant in variants:
            mean, half = t_interval(values) if (values := select_values(rows, kind, place, variant)) else (np.nan, None)
            cells.append(format_percent({"mean": mean, "interval95": half}) if np.isfinite(mean) else "")
        lines.append([place, *cells])
    return html.Table(["at", *variants], lines)


def places_and_variants(rows: Sequence[Any], kind: str) -> tuple[list[str], list[str]]:
    """Return the places and the variants of a look, in the order of the record."""
    mine = [row for row in rows if row["kind"] == kind]
    places, variants = (list(dict.fromkeys(row[key] for row in mine)) for key in ("at", "variant"))
    return places, variants


def select_values(rows: Sequence[Any], kind: str, place: str, variant: str) -> list[float]:
    """Return the values of all seeds."""
    key = (kind, place, variant)
    return [float(row["value"]) for row in rows if (row["kind"], row["at"], row["variant"]) == key]


def plot_analyses(rows: Sequence[Any], path: Path, title: str) -> Path:
    """Draw the four analyses."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(13, 8.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 2)
    for axis, (kind, words) in zip(axes.ravel(), TITLES.items(), strict=True):
        places, variants = places_and_variants(rows, kind)
        for i, variant in enumerate(variants):
            points = [(k, select_values(rows, kind, place, variant)) for k, place in enumerate(places)]
            points = [(k, *t_interval(values)) for k, values in points if values]
            x, mean, half = (np.asarray([point[j] or 0.0 for point in points]) for j in range(3))
            shift = 0.04 * (i - (len(variants) - 1) / 2)
            style = "o" if kind == "rewind" else "o-"
            axis.errorbar(x + shift, 100 * mean, yerr=100 * half, fmt=style, ms=4, capsize=3, label=variant)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -2), min(high, 102))  # an interval may reach where no percentage can
        axis.set_xticks(range(len(places)), places)
        axis.set_title(words, fontsize=11)
        axis.set_ylabel("percent" if kind == "drift" else "test accuracy, percent")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"{title}: mean and 95 % interval", fontsize=12)
    return disk.save_figure(figure, path, colors=128)


WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of the results files; in the workdir if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data, see experiments/transferability/study.py.")
SOURCE = flags.DEFINE_string("source", "cifar10", "Source network of the bank.")
TARGET = flags.DEFINE_string("target", "digits", "Target dataset.")
PER_CLASS = flags.DEFINE_integer("per_class", 20, "Training examples per class.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Random seeds.")
STEPS = flags.DEFINE_integer("steps", 150, "Steps per run.")
RATES = flags.DEFINE_list("rates", ["1e-3", "3e-3", "1e-2", "3e-2"], "Candidate learning rates.")
TESTED = flags.DEFINE_integer("tested", 1000, "Maximum number of test examples.")
NUM_POINTS = 11  # on a line


class Setup(NamedTuple):
    """A target with a seed: the task from the source and that from random weights, and what both start from."""

    config: recipe.Config
    task: Task
    source: Mapping[str, Any]
    random_init: Mapping[str, Any]


def main(_: list[str]) -> None:
    """Measure, write, draw."""
    logging.set_verbosity(logging.WARNING)
    prefix = Path(RESULTS.value or Path(WORKDIR.value).expanduser() / "what_is_transferred")
    protocol = {name: flags.FLAGS[name].value for name in ("source", "target", "per_class", "steps", "rates", "tested")}
    record.begin_record(prefix, protocol)
    record.add_facts(prefix, commits=record.commit())
    rows = record.read_rows(prefix)
    for seed in map(int, SEEDS.value):
        if not any(int(row["seed"]) == seed for row in rows):
            rows += [{"seed": seed, **row} for row in measure_seed(seed)]
            record.write_rows(prefix, rows)
    say(write_report(prefix))


def measure_seed(seed: int) -> list[dict[str, Any]]:
    """Return the rows (kind, at, variant, value) of one seed."""
    setup = make_setup(seed)
    rows = measure_depth(setup)
    fine_tuned = train_best_rate(setup, setup.source)
    for measure in (measure_rewinding, measure_drift, measure_interpolation):
        rows += measure(setup, fine_tuned)
    assert rows is not None, "no rate was tried"
    return rows


def make_setup(seed: int) -> Setup:
    """Return the lab of a seed."""
    config = pairs.target_config(TARGET.value, DATA_DIR.value, PER_CLASS.value, seed)
    config.batch_size, config.eval_batch_size, config.data.test_examples = 24, 240, TESTED.value
    config.optim.schedule, config.optim.warmup = "cosine", 0.1
    config.cache.features = "off"  # which depend on where training starts
    configs = [recipe.override(config, pairs.source_changes(name, "")) for name in (SOURCE.value, "random")]
    restore.check_batches(configs[0])
    tasks = [restore.make_task(task_config) for task_config in configs]
    task = tasks[0]
    config = configs[0]
    config.epochs = STEPS.value * config.batch_size / task.sizes["train"]
    source, random_init = (jax.device_get(initial_state(task_config, seed).variables) for task_config in tasks)
    return Setup(config, task, source, random_init)


def train_best_rate(
    setup: Setup, start: Mapping[str, Any], frozen: int = 0, order: int | None = None
) -> dict[str, Any]:
    """Return the variables after training from ``start`` with the first ``frozen`` parts still, at the best rate."""
    config, task = recipe.override(setup.config, ()), setup.task
    if frozen:
        num_trained = len(task.stages) - frozen
        config.freeze.recipe, config.freeze.stages = ("last_n_stages", num_trained) if num_trained else ("head", 1)
    if order is not None:
        task = task.replace(train_batch=task.train_batch._replace(seed=order))
    task = task.replace(init=lambda key: start)
    best_score, best_variables = -1.0, None
    for rate in RATES.value:
        config.optim.lr = float(rate)
        plan = task.plan(schema.freeze(config))
        with tempfile.TemporaryDirectory() as folder:
            pace = loop.Pace(save=STEPS.value, log=STEPS.value)
            fitted = loop.fit(task, plan, pace, config.seed, Path(folder), verbose=False)
            fitted.checkpoints.close()
        score = evaluate.evaluate(task, fitted.state.variables, "validation").values["accuracy"]
        if score > best_score:
            best_score, best_variables = score, jax.device_get(fitted.state.variables)
    assert best_variables is not None, "no rate was tried"
    return best_variables


def evaluate_test(setup: Setup, variables: Mapping[str, Any], name: str = "accuracy") -> float:
    """Return a metric on the test part."""
    return evaluate.evaluate(setup.task, sharding.replicate(variables), "test").values[name]


def mix_stages(base: Mapping[str, Any], other: Mapping[str, Any], stages: Any) -> dict[str, Any]:
    """Return ``base`` with the named stages taken from ``other``."""
    return {
        kind: {name: (other if name in stages else base)[kind][name] for name in leaves}
        for kind, leaves in base.items()
    }


def measure_depth(setup: Setup) -> list[dict[str, Any]]:
    """Transfer the first d parts; d = 0 is training from scratch."""
    rows = []
    for d in range(len(setup.task.stages) + 1):
        start = mix_stages(setup.random_init, setup.source, setup.task.stages[:d])
        for variant in ("tuned", "frozen") if d else ("tuned",):
            value = evaluate_test(setup, train_best_rate(setup, start, frozen=d if variant == "frozen" else 0))
            say(f"{TARGET.value}, seed {setup.config.seed}: first {d} parts, {variant}: {value:.4f}")
            rows.append({"kind": "depth", "at": d, "variant": variant, "value": value})
    return rows


def measure_rewinding(setup: Setup, fine_tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put one part of the fine-tuned network back to its start, or to random weights."""
    rows = [{"kind": "rewind", "at": "none", "variant": "start", "value": evaluate_test(setup, fine_tuned)}]
    for stage in setup.task.stages:
        for variant, other in (("start", setup.source), ("random", setup.random_init)):
            value = evaluate_test(setup, recompute_statistics(setup, mix_stages(fine_tuned, other, [stage])))
            rows.append({"kind": "rewind", "at": stage, "variant": variant, "value": value})
    return rows


def measure_drift(setup: Setup, fine_tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure how far each part moved, in weights and in what it computes."""
    network = moves.load_run_network(schema.freeze(setup.config), setup.task.facts["input"])
    pooled = [moves.pooled_features(network, variables, setup.task) for variables in (setup.source, fine_tuned)]
    rows = []
    for stage in setup.task.stages:
        change = moves.relative_change(setup.source["params"][stage], fine_tuned["params"][stage])
        similarity = transferability.linear_cka(pooled[0][stage], pooled[1][stage])
        rows += [
            {"kind": "drift", "at": stage, "variant": variant, "value": value}
            for variant, value in (("weights", change), ("cka", similarity))
        ]
    return rows


def measure_interpolation(setup: Setup, fine_tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure accuracy on the lines between pairs of networks that saw the examples in different orders."""
    seed = setup.config.seed
    scratch = train_best_rate(setup, setup.random_init)
    other = jax.device_get(initial_state(restore.make_task(_random_config(setup)), seed + 1000).variables)
    other = mix_stages(other, setup.random_init, ["head"])  # heads start alike in all pairs
    ends = {
        "source": (fine_tuned, train_best_rate(setup, setup.source, order=seed + 1000)),
        "one random start": (scratch, train_best_rate(setup, setup.random_init, order=seed + 1000)),
        "two random starts": (scratch, train_best_rate(setup, other, order=seed + 1000)),
    }
    rows = []
    for variant, (first, last) in ends.items():
        for share in np.linspace(0, 1, NUM_POINTS):
            value = evaluate_test(setup, recompute_statistics(setup, interpolate(first, last, float(share))))
            rows.append({"kind": "line", "at": f"{share:.1f}", "variant": variant, "value": value})
    return rows


def recompute_statistics(setup: Setup, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with BatchNorm's statistics taken from the training part as one batch."""
    stream = setup.task.train_batch
    batch = {"inputs": stream.inputs[:], "label": stream.labels, "mask": np.ones(len(stream.labels), np.float32)}
    with freeze.use_running_statistics(frozenset(), momentum=1e-9):
        _, (stats, _) = setup.task.loss(variables, batch, jax.random.key(0))
    return {**variables, "batch_stats": jax.device_get(stats)}


def _random_config(setup: Setup) -> recipe.Config:
    return recipe.override(setup.config, pairs.source_changes(pairs.RANDOM, ""))


if __name__ == "__main__":
    command.run(main)
