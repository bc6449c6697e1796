"""Metrics are (sum, count) pairs until the last moment: a mean of batch means is wrong for a short last batch."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import metrics
from tl_jax.metrics import Sums
from tl_jax.train import sharding
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import Task
from tl_jax.utils.errors import Diverged

QUEUE = 16  # batches on their way to the device at the most


def mean(rows: Iterable[Sums]) -> dict[str, float]:
    """Add up sums and counts (fetched from the device in one go) and divide once; what was not counted is left out."""
    return {name: value / count for name, (value, count) in total(rows).items() if count}


def total(rows: Iterable[Sums]) -> dict[str, list[float]]:
    """Return the sum of sums and of counts, by metric."""
    totals: dict[str, list[float]] = {}
    for row in jax.device_get(list(rows)):
        for name, (value, count) in row.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += float(count)
    return totals


class Evaluation(NamedTuple):
    """Metrics over a part, the number of its examples, the seconds that compiling took, and what the judge says."""

    values: dict[str, float]
    examples: int
    compile_seconds: float
    verdict: metrics.Evaluation = metrics.Evaluation({}, {})


def extract(function: Any, variables: Any, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Return what ``function`` (variables, batch) -> (B, ...) gives for every example, (N, ...), padding left out."""
    step = make_eval_step(function, sharding.is_sharded(variables))
    if jax.process_count() > 1:
        variables = sharding.everywhere(variables)
    rows = []
    for batch in batches:
        out = step(variables, sharding.put(batch))
        rows.append(np.asarray(out)[np.asarray(batch["mask"]) > 0])
    return np.concatenate(rows)


def check_finite(values: Mapping[str, float], where: str, last: Callable[[], str] = str) -> None:
    """Raise ``Diverged`` where a loss or another value is not finite.

    Args:
        values: by name.
        where: they were measured, such as a step or a split, for the message.
        last: returns what is left of the run, for the message.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            left = f"{last()}; " if last() else ""
            raise Diverged(
                f"the {name} of {where} is {value}; {left}lower config.optim.lr or set config.optim.clip_norm, with a "
                "new --workdir, and check the data for values that are far from the others"
            )


def _check_predictions(found: Any, keep: np.ndarray, where: str, last: Callable[[], str]) -> None:
    """Raise ``Diverged`` where what a network says of the examples ``keep`` is NaN, which a judge would score."""
    for leaf in jax.tree.leaves(found):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.isnan(np.asarray(leaf, np.float32)[keep]).any():
            check_finite({"network's output": math.nan}, where, last)


def evaluate(
    task: Task, variables: Any, part: str, keep: Any = None, where: str = "", last: Callable[[], str] = str
) -> Evaluation:
    """Return the metrics over every example of ``part``, each counted once.

    Args:
        task: whose functions measure.
        variables: that are tested.
        part: name of the split.
        keep: judges where a task with ``details`` has no judge of its own; the program is the same without it, but what
            it predicts is dropped batch by batch.
        where, last: see ``check_finite``.

    Raises:
        Diverged: a metric, or what the network says of an example, is not finite.
    """
    where = where or f"the {part} split"
    predicts = bool(task.judge or task.details)
    judge = task.judge or (keep if predicts else None)
    asked = _with_predictions(task.metrics, task.predict) if predicts else task.metrics
    step = make_eval_step(asked, sharding.is_sharded(variables))
    rows, seen, examples, compiling = [], [], 0, 0.0
    for host in task.eval_batches(part):
        examples += int(host["mask"].sum())
        batch = sharding.put(host)
        program = sharding.compiled(step, variables, batch)
        compiling += program.seconds
        out = program.execute(variables, batch)
        rows.append(out[0] if predicts and not judge else out)
        seen += [{name: host[name] for name in host if name != "image"}] if judge else []  # pictures need room
        if len(rows) % QUEUE == 0:
            jax.block_until_ready(rows[-1])
    if not judge:
        values = mean(rows)
        check_finite(values, where, last)
        return Evaluation(values, examples, compiling)
    sums, predictions = zip(*jax.device_get(rows), strict=True)
    values = mean(sums)
    check_finite(values, where, last)
    for found, batch in zip(predictions, seen, strict=True):
        _check_predictions(found, batch["mask"] > 0, where, last)
    verdict = judge(predictions, seen)
    return Evaluation({**values, **verdict.values}, examples, compiling, verdict)


@functools.cache
def _with_predictions(metrics: Any, predict: Any):
    """Return the function (variables, batch) -> sums and predictions; XLA computes what both share once."""

    def both(variables, batch):
        return metrics(variables, batch), predict(variables, batch)

    return both
