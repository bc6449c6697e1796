"""Which layers transfer, and how: four analyses of one source and one target, with their table and plot.

    python -m experiments.layer_transfer --workdir=DIR                                 CIFAR-10 to digits, no files
    python -m experiments.layer_transfer --workdir=DIR --source=mnist --target=cifar10 --data_dir=FOLDER

1. Depth (Yosinski et al. 2014, arXiv:1411.1792): the first d stages from the source, the others randomly initialized;
   those d stages frozen, or trained like the others.
2. Rewinding (Zhang et al. 2019, arXiv:1902.01996): one stage of a fine-tuned network is reset to its weights at the
   start, or randomly initialized again.
3. Linear interpolation between two networks (Neyshabur et al. 2020, arXiv:2008.11687): trained from the source, from
   one random initialization, or from two, on the same examples in another order. The BatchNorm statistics are
   recomputed at each point.
4. Drift: change of the weights of each stage, and linear CKA of its pooled maps with those at the start.

All runs have the same steps and try the same learning rates; the validation split chooses one. Writes ``RESULTS.csv``,
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
from tl_jax.config import recipe
from tl_jax.report import html
from tl_jax.report.plots import format_percent, t_interval
from tl_jax.train import evaluate, loop, sharding
from tl_jax.train.logging import say
from tl_jax.train.state import initial_state
from tl_jax.train.task import Task
from tl_jax.train.workdir import read_json
from tl_jax.transfer import freeze, phases
from tl_jax.transfer.weight_averaging import interpolate
from tl_jax.utils import command, disk

TITLES = {
    "depth": "first d parts from the source",
    "rewind": "one part of the fine-tuned network reset",
    "line": "on the line between two networks",
    "drift": "how far each part moved",
}


def write(prefix: Path) -> str:
    """Write ``PREFIX.md`` and ``PREFIX.png``; return what to say about them."""
    rows, how = record.read(prefix), read_json(Path(f"{prefix}.json"))
    seeds = len({row["seed"] for row in rows})
    text = [
        f"# What is transferred from {how['source']} to {how['target']}\n",
        f"resnet8, {how['per_class']} training examples of each class, {how['steps']} steps, the best on "
        f"validation of the rates {', '.join(how['rates'])}, "
        f"at most {how['tested']} test examples, {seeds} seed{'s' * (seeds != 1)} (mean and 95 % interval); commit "
        f"{', '.join(how['commits'])}.\n",
    ]
    for kind, title in TITLES.items():
        text += [f"## {title.capitalize()}\n", html.to_markdown(table(rows, kind))]
    disk.write_text(Path(f"{prefix}.md"), "\n".join(text))
    picture = draw(rows, Path(f"{prefix}.png"), f"{how['source']} to {how['target']}, seeds: {seeds}")
    return f"{prefix}.csv, {prefix}.md, {picture}"


def table(rows: Sequence[Any], kind: str) -> html.Table:
    """Return the means and intervals of one look, places down and variants across."""
    places, variants = names(rows, kind)
    lines = []
    for place in places:
        cells = []
        for variant in variants:
            mean, half = t_interval(values) if (values := of(rows, kind, place, variant)) else (np.nan, None)
            cells.append(format_percent({"mean": mean, "interval95": half}) if np.isfinite(mean) else "")
        lines.append([place, *cells])
    return html.Table(["at", *variants], lines)


def names(rows: Sequence[Any], kind: str) -> tuple[list[str], list[str]]:
    """Return the places and the variants of a look, in the order of the record."""
    mine = [row for row in rows if row["kind"] == kind]
    places, variants = (list(dict.fromkeys(row[key] for row in mine)) for key in ("at", "variant"))
    return places, variants


def of(rows: Sequence[Any], kind: str, place: str, variant: str) -> list[float]:
    """Return the values of all seeds."""
    wanted = (kind, place, variant)
    return [float(row["value"]) for row in rows if (row["kind"], row["at"], row["variant"]) == wanted]


def draw(rows: Sequence[Any], path: Path, title: str) -> Path:
    """Draw the four analyses."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(13, 8.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 2)
    for axis, (kind, words) in zip(axes.ravel(), TITLES.items(), strict=True):
        places, variants = names(rows, kind)
        for i, variant in enumerate(variants):
            there = [(k, of(rows, kind, place, variant)) for k, place in enumerate(places)]
            there = [(k, *t_interval(values)) for k, values in there if values]
            x, mean, half = (np.asarray([t[j] or 0.0 for t in there]) for j in range(3))
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
    return disk.save_figure(figure, path)


WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of record, table and picture; in the workdir if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data, as for experiments/transferability/study.py.")
SOURCE = flags.DEFINE_string("source", "cifar10", "Source of the bank.")
TARGET = flags.DEFINE_string("target", "digits", "Target.")
PER_CLASS = flags.DEFINE_integer("per_class", 20, "Training examples of each class.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
STEPS = flags.DEFINE_integer("steps", 150, "Steps of a run.")
RATES = flags.DEFINE_list("rates", ["1e-3", "3e-3", "1e-2", "3e-2"], "Learning rates tried.")
TESTED = flags.DEFINE_integer("tested", 1000, "Test examples at most.")
POINTS = 11  # on a line


class Lab(NamedTuple):
    """A target with a seed: the task from the source and that from random weights, and what both start from."""

    config: recipe.Config
    task: Task
    source: Mapping[str, Any]
    drawn: Mapping[str, Any]


def main(_: list[str]) -> None:
    """Measure, write, draw."""
    logging.set_verbosity(logging.WARNING)
    prefix = Path(RESULTS.value or Path(WORKDIR.value).expanduser() / "what_is_transferred")
    how = {name: flags.FLAGS[name].value for name in ("source", "target", "per_class", "steps", "rates", "tested")}
    record.begin(prefix, how)
    record.note(prefix, commits=record.commit())
    rows = record.read(prefix)
    for seed in map(int, SEEDS.value):
        if not any(int(row["seed"]) == seed for row in rows):
            rows += [{"seed": seed, **row} for row in look(seed)]
            record.write(prefix, rows)
    say(write(prefix))


def look(seed: int) -> list[dict[str, Any]]:
    """Return the rows (kind, at, variant, value) of one seed."""
    lab = prepare(seed)
    found = depth(lab)
    tuned = train(lab, lab.source)
    found += rewind(lab, tuned) + drift(lab, tuned) + lines(lab, tuned)
    assert found is not None, "no rate was tried"
    return found


def prepare(seed: int) -> Lab:
    """Return the lab of a seed."""
    config = pairs.target_config(TARGET.value, DATA_DIR.value, PER_CLASS.value, seed)
    config.batch_size, config.eval_batch_size, config.data.test_examples = 24, 240, TESTED.value
    config.optim.schedule, config.optim.warmup = "cosine", 0.1
    both = [recipe.override(config, pairs.source_changes(name, "")) for name in (SOURCE.value, "random")]
    restore.check_batches(both[0])
    tasks = [restore.make_task(one) for one in both]
    task = tasks[0]._replace(shortcut=None)
    config = both[0]
    config.epochs = STEPS.value * config.batch_size / task.sizes["train"]
    source, drawn = (jax.device_get(initial_state(one, seed).variables) for one in tasks)
    return Lab(config, task, source, drawn)


def train(lab: Lab, start: Mapping[str, Any], frozen: int = 0, order: int | None = None) -> dict[str, Any]:
    """Return the variables after training from ``start`` with the first ``frozen`` parts still, at the best rate."""
    config, task = recipe.override(lab.config, ()), lab.task
    if frozen:
        left = len(task.parts) - frozen
        config.freeze.recipe, config.freeze.stages = ("last_n_stages", left) if left else ("head", 1)
    if order is not None:
        task = task._replace(train_batch=task.train_batch._replace(seed=order))
    task = task._replace(init=lambda key: start)
    best, found = -1.0, None
    for rate in RATES.value:
        config.optim.lr = float(rate)
        plan = phases.resolve(config, task.sizes, task.parts)
        with tempfile.TemporaryDirectory() as folder:
            pace = loop.Pace(save=STEPS.value, log=STEPS.value)
            fitted = loop.fit(task, plan, pace, config.seed, Path(folder), verbose=False)
            fitted.checkpoints.close()
        score = evaluate.evaluate(task, fitted.state.variables, "validation").values["accuracy"]
        if score > best:
            best, found = score, jax.device_get(fitted.state.variables)
    assert found is not None, "no rate was tried"
    return found


def tested(lab: Lab, variables: Mapping[str, Any], name: str = "accuracy") -> float:
    """Return a metric on the test part."""
    return evaluate.evaluate(lab.task, sharding.everywhere(variables), "test").values[name]


def mixed(base_of: Mapping[str, Any], other: Mapping[str, Any], parts: Any) -> dict[str, Any]:
    """Return ``base_of`` with the named parts taken from ``other``."""
    return {
        kind: {name: (other if name in parts else base_of)[kind][name] for name in leaves}
        for kind, leaves in base_of.items()
    }


def depth(lab: Lab) -> list[dict[str, Any]]:
    """Transfer the first d parts; d = 0 is training from scratch."""
    rows = []
    for d in range(len(lab.task.parts) + 1):
        start = mixed(lab.drawn, lab.source, lab.task.parts[:d])
        for variant in ("tuned", "frozen") if d else ("tuned",):
            value = tested(lab, train(lab, start, frozen=d if variant == "frozen" else 0))
            say(f"{TARGET.value}, seed {lab.config.seed}: first {d} parts, {variant}: {value:.4f}")
            rows.append({"kind": "depth", "at": d, "variant": variant, "value": value})
    return rows


def rewind(lab: Lab, tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put one part of the fine-tuned network back to its start, or to random weights."""
    rows = [{"kind": "rewind", "at": "none", "variant": "start", "value": tested(lab, tuned)}]
    for part in lab.task.parts:
        for variant, other in (("start", lab.source), ("random", lab.drawn)):
            value = tested(lab, renewed(lab, mixed(tuned, other, [part])))
            rows.append({"kind": "rewind", "at": part, "variant": variant, "value": value})
    return rows


def drift(lab: Lab, tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure how far each part moved, in weights and in what it computes."""
    network = moves.network_of(lab.config, lab.task.facts["input"])
    pooled = [moves.everything(network, variables, lab.task) for variables in (lab.source, tuned)]
    rows = []
    for part in lab.task.parts:
        moved = moves.distance_of(lab.source["params"][part], tuned["params"][part])
        alike = transferability.linear_cka(pooled[0][part], pooled[1][part])
        rows += [
            {"kind": "drift", "at": part, "variant": variant, "value": value}
            for variant, value in (("weights", moved), ("cka", alike))
        ]
    return rows


def lines(lab: Lab, tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure accuracy on the lines between pairs of networks that saw the examples in different orders."""
    seed = lab.config.seed
    scratch = train(lab, lab.drawn)
    other = jax.device_get(initial_state(restore.make_task(_random(lab)), seed + 1000).variables)
    other = mixed(other, lab.drawn, ["head"])  # heads start alike in all pairs
    ends = {
        "source": (tuned, train(lab, lab.source, order=seed + 1000)),
        "one random start": (scratch, train(lab, lab.drawn, order=seed + 1000)),
        "two random starts": (scratch, train(lab, other, order=seed + 1000)),
    }
    rows = []
    for variant, (first, last) in ends.items():
        for share in np.linspace(0, 1, POINTS):
            value = tested(lab, renewed(lab, interpolate(first, last, float(share))))
            rows.append({"kind": "line", "at": f"{share:.1f}", "variant": variant, "value": value})
    return rows


def renewed(lab: Lab, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with BatchNorm's statistics taken from the training part as one batch."""
    stream = lab.task.train_batch
    batch = {"image": stream.images[:], "label": stream.labels, "mask": np.ones(len(stream.labels), np.float32)}
    with freeze.running_statistics(frozenset(), momentum=1e-9):
        _, (stats, _) = lab.task.loss(variables, batch, jax.random.key(0))
    return {**variables, "batch_stats": jax.device_get(stats)}


def _random(lab: Lab) -> recipe.Config:
    return recipe.override(lab.config, pairs.source_changes(pairs.RANDOM, ""))


if __name__ == "__main__":
    command.run(main)
