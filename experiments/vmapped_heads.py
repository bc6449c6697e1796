"""Many heads of one network trained at once: seeds and rates are an axis that ``jax.vmap`` maps over."""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.data.loader import Stream
from tl_jax.train import sharding
from tl_jax.train.evaluate import QUEUE
from tl_jax.train.state import TrainState, stream_key
from tl_jax.train.step import make_step
from tl_jax.train.task import Task
from tl_jax.transfer.optimizer import OptimSpec, learning_rates, make_optimizer
from tl_jax.transfer.phases import Phase


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
    optim = phase.optim._replace(weight_decay=None)
    starts = [task.init(stream_key(seed, "init"))["params"]["head"] for seed in seeds]
    params = {"head": jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)}
    orders = [stream._replace(seed=seed) for seed in seeds]
    steps = phase.stop - phase.start
    rows = np.stack([[order.rows(step) for step in range(steps)] for order in orders]).astype(np.int32)
    schedules = np.stack([learning_rates(phase.rate._replace(lr=rate)) for rate in rates])
    keys = jnp.stack([stream_key(seed, "train") for seed in seeds])
    data = {"image": stream.images[:], "label": stream.labels}
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
            batch = {"image": data["image"][rows[:, i]], "label": data["label"][rows[:, i] % len(data["label"])]}
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
