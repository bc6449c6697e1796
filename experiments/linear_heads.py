"""Train many linear heads on the same features at once: seeds x learning rates x weight decays in one program.

    python -m experiments.linear_heads --config=configs/cifar_resnet.py:article --workdir=DIR
    python -m experiments.linear_heads --config=configs/flowers_mobilenet.py:probe --workdir=DIR --rates=1e-3,1e-2

The recipe defines data, network, features, optimizer, schedule and length; everything but the head is frozen, and the
features are computed once. Writes ``heads.csv`` and ``heads.png``, which show the best rate and decay for the features.
A seed sets the initial head and the order of examples; the splits of the data are those of the recipe's seed. Seeds,
rates and decays are axes of ``jax.vmap``.
"""

import csv
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from tl_jax import restore
from tl_jax.config import recipe, recipes_dir, validate
from tl_jax.data.loader import Stream
from tl_jax.report.plots import format_percent, plot_score_curves, t_interval
from tl_jax.train import sharding, workdir
from tl_jax.train.evaluate import QUEUE
from tl_jax.train.logging import say
from tl_jax.train.state import TrainState, initial_state, stream_key
from tl_jax.train.step import make_step
from tl_jax.train.task import Task
from tl_jax.transfer.optimizer import OptimSpec, learning_rates, make_optimizer
from tl_jax.transfer.phases import Phase
from tl_jax.utils import command, disk
from tl_jax.utils.errors import UserError

FLAGS = flags.FLAGS


class Heads(NamedTuple):
    """What became of S seeds times R rates times W decays; each array is (S, R, W, ...).

    Attributes:
        params: {"head": {"kernel": (S, R, W, D, K), "bias": (S, R, W, K)}}.
        validation, test: accuracy on these parts, nan where training diverged; the first also where there is none.
        loss: mean of the training loss over the last tenth of the steps.
        seconds: of compiling and of training.
    """

    params: Any
    validation: np.ndarray
    test: np.ndarray
    loss: np.ndarray
    seconds: dict[str, float]


def define_flags() -> None:
    """Define the flags of the command; not on import, so that ``train_heads`` can be called beside other flags."""
    config_flags.DEFINE_config_file("config", f"{recipes_dir() / 'flowers_mobilenet.py'}:probe", "Recipe.")
    flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Random seeds.")
    flags.DEFINE_list("rates", ["1e-4", "3e-4", "1e-3", "3e-3", "1e-2"], "Learning rates.")
    flags.DEFINE_list("decays", ["0"], "Weight decays.")


def main(_: list[str]) -> None:
    """Train, write, draw, tell."""
    logging.set_verbosity(logging.WARNING)
    start = time.monotonic()
    config = recipe.override(FLAGS.config, (("seeds", ()), ("arms", ()), ("phases", ()), ("freeze.recipe", "head")))
    validate.validate(config)
    rates, decays = ([float(value) for value in values] for values in (FLAGS.rates, FLAGS.decays))
    task = restore.make_task(config)
    (phase,) = task.plan()
    features_task = task.cache_features(initial_state(task, config.seed).variables, phase)
    if features_task is task:
        raise UserError(
            "the features of this recipe change from epoch to epoch, or there is no room for them: switch its "
            "augmentation off, set --config.cache.views=8, or raise --config.cache.gigabytes"
        )
    counts = f"{len(FLAGS.seeds)} seeds, {len(rates)} rates, {len(decays)} decays, {phase.stop:,} steps"
    say(f"{task.name}: heads for {counts} ...")
    heads = train_heads(features_task, phase, [int(seed) for seed in FLAGS.seeds], rates, decays)
    folder = Path(FLAGS.workdir).expanduser()
    with workdir.exclusive(folder):
        write_results(heads, rates, decays, task.name, folder)
    say(f"{heads.seconds['compile']:.1f} s compiling, {heads.seconds['train']:.1f} s training, "
        f"{time.monotonic() - start:.1f} s in all")  # fmt: skip


def write_results(heads: Heads, rates: list[float], decays: list[float], name: str, folder: Path) -> None:
    """Write ``heads.csv`` and ``heads.png``; print a line for each rate and decay and the one to take."""
    with disk.atomic_write(folder / "heads.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", "rate", "decay", "validation", "test", "loss"))
        for (s, r, w), test in np.ndenumerate(heads.test):
            numbers = (heads.validation[s, r, w], test, heads.loss[s, r, w])
            writer.writerow((FLAGS.seeds[s], rates[r], decays[w], *(f"{number:.5g}" for number in numbers)))
    say(f"{'rate':>8} {'decay':>8}   validation      test (mean and 95 % interval over {len(heads.test)} seeds)")
    for (r, w), _ in np.ndenumerate(heads.test[0]):
        accuracies = [_format_interval(split[:, r, w]) for split in (heads.validation, heads.test)]
        say(f"{rates[r]:8g} {decays[w]:8g}   {accuracies[0]:<13} {accuracies[1]}")
    means = heads.validation.mean(0)
    if np.isfinite(means).any():
        r, w = np.unravel_index(np.nanargmax(means), means.shape)
        accuracy = _format_interval(heads.test[:, r, w])
        say(f"best on validation: rate {rates[r]:g}, decay {decays[w]:g}: test {accuracy} %")
    lines = {f"decay {decay:g}": heads.test[:, :, w] for w, decay in enumerate(decays)}
    say(
        f"{folder / 'heads.csv'}, {plot_score_curves(np.asarray(rates), lines, f'heads: {name}', folder / 'heads.png')}"
    )


def _format_interval(values: np.ndarray) -> str:
    mean, half = t_interval(values)
    return format_percent({"mean": mean, "interval95": half})


def train_heads(
    task: Task, phase: Phase, seeds: Sequence[int], rates: Sequence[float], decays: Sequence[float] = (0.0,)
) -> Heads:
    """Train a head for each combination as a run of its own would, from the same first head and order for a seed.

    Args:
        task: as a phase that trains the head alone sees it: images are features (N, D), see ``Task.cache_features``.
        phase: whose optimizer, schedule and length are used; its own rate and decay are not.
        seeds: of the first head and the order of examples.
        rates, decays: learning rates and weight decays.
    """
    stream = cast(Stream, task.train_batch)
    optim = dataclasses.replace(phase.optim, weight_decay=None)
    starts = [task.init(stream_key(seed, "init"))["params"]["head"] for seed in seeds]
    params = {"head": jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)}
    orders = [stream._replace(seed=seed) for seed in seeds]
    steps = phase.stop - phase.start
    rows = np.stack([[order.rows(step) for step in range(steps)] for order in orders]).astype(np.int32)
    schedules = np.stack([learning_rates(phase.rate._replace(lr=rate)) for rate in rates])
    keys = jnp.stack([stream_key(seed, "train") for seed in seeds])
    data = {"inputs": stream.inputs[:], "label": stream.labels}
    arguments = (params, data, rows, keys, schedules, np.asarray(decays, np.float32))
    arguments = sharding.replicate(arguments)
    program = sharding.compile_cached(_make_training(task.loss, optim, phase.rules), *arguments)
    start = time.monotonic()
    params, losses = jax.block_until_ready(program.execute(*arguments))
    seconds = {"compile": program.seconds, "train": time.monotonic() - start}
    validation, test = (_accuracy(task, params, split) for split in ("validation", "test"))
    loss = np.asarray(losses)[..., -max(1, steps // 10) :].mean(-1)
    finite = np.isfinite(loss)  # a head of NaN would have the accuracy of its first class
    validation, test = (np.where(finite, split, np.nan) for split in (validation, test))
    return Heads(jax.device_get(params), validation, test, loss, seconds)


@functools.cache
def _make_training(loss: Any, optim: OptimSpec, rules: Any):
    """Return the jitted function (heads (S, ...), data, rows (S, T, B), keys (S,), rates (R, T), decays (W,)) -> all.

    The batches of a seed are gathered once for all its rates and decays.
    """
    step, optimizer = make_step(loss, optim, rules, "auto"), make_optimizer(optim, rules)

    def train_step(state, batch, key, rate, decay):
        state, row = step(state, batch, key, rate, decay=decay)
        total, count = row["sums"]["loss"]
        return state, total / count

    by_decay = jax.vmap(train_step, in_axes=(0, None, None, None, 0))
    by_rate = jax.vmap(by_decay, in_axes=(0, None, None, 0, None))
    by_seed = jax.vmap(by_rate, in_axes=(0, 0, 0, None, None))

    def train(params, data, rows, keys, rates, decays):
        shape = (len(rows), len(rates), len(decays))
        params = jax.tree.map(lambda p: jnp.broadcast_to(p[:, None, None], (*shape, *p.shape[1:])), params)
        opt_state = jax.vmap(jax.vmap(jax.vmap(optimizer.init)))(params)
        state = TrainState(jnp.zeros(shape, jnp.int32), params, {}, opt_state)

        def body(state, at):
            i, rate = at
            batch = {"inputs": data["inputs"][rows[:, i]], "label": data["label"][rows[:, i] % len(data["label"])]}
            batch["mask"] = jnp.ones(batch["label"].shape)
            return by_seed(state, batch, keys, rate, decays)

        state, losses = jax.lax.scan(body, state, (jnp.arange(rates.shape[1]), rates.T))
        return state.params, jnp.moveaxis(losses, 0, -1)

    return jax.jit(train)


def _accuracy(task: Task, params: Any, split: str) -> np.ndarray:
    """Return the accuracy (S, R, W) on a part, nan without examples."""
    score = _make_accuracy(task.metrics)
    sums = []
    for batch in task.eval_batches(split) if task.sizes.get(split) else ():
        sums.append(score(params, sharding.shard_batch(batch)))
        if len(sums) % QUEUE == 0:
            jax.block_until_ready(sums[-1])
    if not sums:
        return np.full(params["head"]["bias"].shape[:-1], np.nan)
    totals = np.asarray(jax.device_get(sums), np.float64).sum(0)
    return totals[0] / totals[1]


@functools.cache
def _make_accuracy(metrics: Any):
    def score(params, batch):
        total, count = metrics({"params": params, "batch_stats": {}}, batch)["accuracy"]
        return jnp.stack([total, count])

    mapped = jax.vmap(jax.vmap(jax.vmap(score, (0, None)), (0, None)), (0, None))
    return jax.jit(lambda params, batch: jnp.moveaxis(mapped(params, batch), -1, 0))


if __name__ == "__main__":
    define_flags()
    command.run(main)
