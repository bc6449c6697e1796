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


def mean_metrics(rows: Iterable[Sums]) -> dict[str, float]:
    """Add up sums and counts (fetched from the device in one go) and divide once; what was not counted is left out."""
    return {name: value / count for name, (value, count) in sum_metrics(rows).items() if count}


def sum_metrics(rows: Iterable[Sums]) -> dict[str, list[float]]:
    """Return the sum of sums and of counts, by metric."""
    totals: dict[str, list[float]] = {}
    for row in jax.device_get(list(rows)):
        for name, (value, count) in row.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += float(count)
    return totals


class EvalResult(NamedTuple):
    """Metrics over a split, the number of its examples, the seconds that compiling took, and the evaluation."""

    values: dict[str, float]
    examples: int
    compile_seconds: float
    evaluation: metrics.Evaluation = metrics.Evaluation({}, {})

    @property
    def metrics(self) -> dict[str, float]:
        """All values, NaN for those that could not be measured."""
        return {**self.values, **dict.fromkeys(self.evaluation.missing, math.nan)}


def extract(function: Any, variables: Any, batches: Iterable[Mapping[str, Any]]) -> Any:
    """Return what ``function`` (variables, batch) gives for every example, padding left out.

    That is arrays (N, ...) where the function returns (B, ...): one, or a tree of them.
    """
    step = make_eval_step(function, sharding.is_sharded(variables))
    if jax.process_count() > 1:
        variables = sharding.replicate(variables)
    rows = []
    for batch in batches:
        out, mask = step(variables, sharding.shard_batch(batch)), np.asarray(batch["mask"]) > 0
        rows.append(jax.tree.map(lambda leaf, mask=mask: np.asarray(leaf)[mask], out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def check_finite(values: Mapping[str, float], where: str, describe_last: Callable[[], str] = str) -> None:
    """Raise ``Diverged`` where a loss or another value is not finite.

    Args:
        values: by name.
        where: they were measured, such as a step or a split, for the message.
        describe_last: returns what is left of the run, for the message.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            last_text = f"{describe_last()}; " if describe_last() else ""
            raise Diverged(
                f"the {name} of {where} is {value}; {last_text}lower config.optim.lr or set config.optim.clip_norm, "
                "with a new workdir, and check the data for values that are far from the others"
            )


def _check_predictions(outputs: Any, mask: np.ndarray, where: str, describe_last: Callable[[], str]) -> None:
    """Raise ``Diverged`` where the outputs for the examples in ``mask`` are NaN, which a metric would score."""
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.isnan(np.asarray(leaf, np.float32)[mask]).any():
            check_finite({"network's output": math.nan}, where, describe_last)


def evaluate(
    task: Task,
    variables: Any,
    split: str,
    final: bool = False,
    where: str = "",
    describe_last: Callable[[], str] = str,
) -> EvalResult:
    """Return the metrics over every example of ``split``, each counted once.

    Args:
        task: whose functions measure.
        variables: that are tested.
        split: name of the split.
        final: whether this is the test at the end, for which ``task.evaluate`` gets the outputs in any case; the
            program is the same without it, but what it puts out is dropped batch by batch.
        where, describe_last: see ``check_finite``.

    Raises:
        Diverged: a metric, or what the network says of an example, is not finite.
    """
    where = where or f"the {split} split"
    has_outputs = task.outputs is not None
    keeps_outputs = has_outputs and (final or task.evaluates_outputs)
    step_function = make_both(task.metrics, task.outputs) if has_outputs else task.metrics
    step = make_eval_step(step_function, sharding.is_sharded(variables))
    rows, batches, examples, compiling = [], [], 0, 0.0
    for host_batch in task.eval_batches(split):
        examples += int(host_batch["mask"].sum())
        batch = sharding.shard_batch(host_batch)
        program = sharding.compile_cached(step, variables, batch)
        compiling += program.seconds
        out = program.execute(variables, batch)
        rows.append(out[0] if has_outputs and not keeps_outputs else out)
        if keeps_outputs:
            batches.append({name: host_batch[name] for name in host_batch if name != "inputs"})  # inputs need room
        if len(rows) % QUEUE == 0:
            jax.block_until_ready(rows[-1])
    if not keeps_outputs:
        values = mean_metrics(rows)
        check_finite(values, where, describe_last)
        return EvalResult(values, examples, compiling)
    sums, outputs = zip(*jax.device_get(rows), strict=True)
    values = mean_metrics(sums)
    check_finite(values, where, describe_last)
    for output, batch in zip(outputs, batches, strict=True):
        _check_predictions(output, batch["mask"] > 0, where, describe_last)
    evaluation = task.evaluate(outputs, batches)
    return EvalResult({**values, **evaluation.values}, examples, compiling, evaluation)


@functools.cache
def make_both(first: Any, second: Any):
    """Return the function (variables, batch) -> what both return; XLA computes what they share once."""

    def both(variables, batch):
        return first(variables, batch), second(variables, batch)

    return both
