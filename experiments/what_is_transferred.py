"""What is transferred, and where it sits: four looks at one source and one target.

    python -m experiments.what_is_transferred --workdir=DIR                                 CIFAR-10 to digits, no files
    python -m experiments.what_is_transferred --workdir=DIR --source=mnist --target=cifar10 --data_dir=FOLDER

1. Depth (Yosinski et al. 2014, arXiv:1411.1792): the first d parts from the source, the rest drawn; those parts frozen,
   or trained like the rest.
2. Rewinding (Zhang et al. 2019, arXiv:1902.01996): in a fine-tuned network one part is put back to where it started, or
   drawn anew.
3. The line between two networks (Neyshabur et al. 2020, arXiv:2008.11687): trained from the source, from one random
   start, or from two, on the same examples in another order. BatchNorm's statistics are taken anew at each point.
4. Drift: change of the weights of each part, and linear CKA of its pooled maps with those at the start.

All runs have the same steps and try the same rates, of which the validation part chooses. Writes ``RESULTS.csv``,
``.md`` and ``.png``.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from configs import base
from experiments import drift as moves
from experiments import record, transfer_pairs, what_is_transferred_report
from tl_jax import command, distance, runs
from tl_jax.task import Task
from tl_jax.train import devices, loop, metrics
from tl_jax.train.log import say
from tl_jax.train.state import initial_state
from tl_jax.transfer import partition, phases
from tl_jax.transfer.averaging import interpolate

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of record, table and picture; in the workdir if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data, as for experiments/transfer_distance.py.")
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

    config: base.Config
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
    say(what_is_transferred_report.write(prefix))


def look(seed: int) -> list[dict[str, Any]]:
    """Return the rows (kind, at, variant, value) of one seed."""
    lab = prepare(seed)
    found = depth(lab)
    tuned = train(lab, lab.source)
    found += rewind(lab, tuned) + drift(lab, tuned) + lines(lab, tuned)
    return found


def prepare(seed: int) -> Lab:
    """Return the lab of a seed."""
    config = transfer_pairs.target_config(TARGET.value, DATA_DIR.value, PER_CLASS.value, seed)
    config.batch_size, config.eval_batch_size, config.data.test_examples = 24, 240, TESTED.value
    config.optim.schedule, config.optim.warmup = "cosine", 0.1
    both = [base.override(config, transfer_pairs.source_changes(name, "")) for name in (SOURCE.value, "random")]
    runs.check_batches(both[0])
    tasks = [runs.make_task(one) for one in both]
    task = tasks[0]._replace(shortcut=None)
    config = both[0]
    config.epochs = STEPS.value * config.batch_size / task.sizes["train"]
    source, drawn = (jax.device_get(initial_state(one, seed).variables) for one in tasks)
    return Lab(config, task, source, drawn)


def train(lab: Lab, start: Mapping[str, Any], frozen: int = 0, order: int | None = None) -> dict[str, Any]:
    """Return the variables after training from ``start`` with the first ``frozen`` parts still, at the best rate."""
    config, task = base.override(lab.config, ()), lab.task
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
        score = metrics.evaluate(task, fitted.state.variables, "validation").values["accuracy"]
        if score > best:
            best, found = score, jax.device_get(fitted.state.variables)
    return found


def tested(lab: Lab, variables: Mapping[str, Any], name: str = "accuracy") -> float:
    """Return a metric on the test part."""
    return metrics.evaluate(lab.task, devices.everywhere(variables), "test").values[name]


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
        alike = distance.linear_cka(pooled[0][part], pooled[1][part])
        rows += [
            {"kind": "drift", "at": part, "variant": variant, "value": value}
            for variant, value in (("weights", moved), ("cka", alike))
        ]
    return rows


def lines(lab: Lab, tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure accuracy on the lines between pairs of networks that saw the examples in different orders."""
    seed = lab.config.seed
    scratch = train(lab, lab.drawn)
    other = jax.device_get(initial_state(runs.make_task(_random(lab)), seed + 1000).variables)
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
    with partition.running_statistics(frozenset(), momentum=1e-9):
        _, (stats, _) = lab.task.loss(variables, batch, jax.random.key(0))
    return {**variables, "batch_stats": jax.device_get(stats)}


def _random(lab: Lab) -> base.Config:
    return base.override(lab.config, transfer_pairs.source_changes(transfer_pairs.RANDOM, ""))


if __name__ == "__main__":
    command.run(main)
