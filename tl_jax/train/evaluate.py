"""Evaluation over whole splits. Metrics stay (sum, count) pairs until the end, so a short last batch is not biased.

Networks of one architecture can be evaluated as an ensemble, by their mean probabilities; see ``Members``.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import metrics
from tl_jax.metrics import Sums, classification
from tl_jax.train import sharding
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import Task
from tl_jax.utils.errors import Diverged

QUEUE = 16  # maximum number of batches in transfer to the device


def mean_metrics(rows: Iterable[Sums]) -> dict[str, float]:
    """Sum the (sum, count) pairs, fetched from the device in one transfer, and divide; omit metrics of count 0."""
    return {name: value / count for name, (value, count) in sum_metrics(rows).items() if count}


def sum_metrics(rows: Iterable[Sums]) -> dict[str, list[float]]:
    """Return the total sum and count of each metric."""
    totals: dict[str, list[float]] = {}
    for row in jax.device_get(list(rows)):
        for name, (value, count) in row.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += float(count)
    return totals


class EvalResult(NamedTuple):
    """Metrics of a split, the number of its examples, compilation time in seconds, and the task's evaluation."""

    values: dict[str, float]
    examples: int
    compile_seconds: float
    evaluation: metrics.Evaluation = metrics.Evaluation({}, {})

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics; NaN for those that are undefined."""
        return {**self.values, **dict.fromkeys(self.evaluation.missing, math.nan)}


class Members(NamedTuple):
    """Networks whose probabilities are averaged: a deep ensemble (Lakshminarayanan et al. 2017, arXiv:1612.01474).

    Attributes:
        networks: variables of M networks of one architecture.
        temperature: divisor of the logits of the mean.
    """

    networks: tuple[Any, ...]
    temperature: float = 1.0


def run_step(step: Any, variables: Any, batch: Any) -> Any:
    """Return a jitted function's output (variables, batch) on the host, averaged over the networks of ``Members``."""
    if not isinstance(variables, Members):
        return jax.tree.map(np.asarray, step(variables, batch))
    outputs = [run_step(step, network, batch) for network in variables.networks]
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *outputs)


def extract(function: Any, variables: Any, batches: Iterable[Mapping[str, Any]]) -> Any:
    """Apply ``function`` (variables, batch) to all batches and return its outputs without padding.

    The result is an array (N, ...), or a tree of arrays, if the function returns (B, ...). ``variables`` may be
    ``Members``, whose temperature is left to the caller.
    """
    step = make_eval_step(function, sharding.is_sharded(variables))
    if jax.process_count() > 1:
        variables = _replicate(variables)
    rows = []
    for batch in batches:
        out, mask = run_step(step, variables, sharding.shard_batch(batch)), np.asarray(batch["mask"]) > 0
        rows.append(jax.tree.map(lambda leaf, mask=mask: leaf[mask], out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def _replicate(variables: Any) -> Any:
    """Replicate variables, or those of each ensemble member, onto every device."""
    if isinstance(variables, Members):
        return variables._replace(networks=tuple(map(sharding.replicate, variables.networks)))
    return sharding.replicate(variables)


def check_finite(values: Mapping[str, float], where: str, describe_last: Callable[[], str] = str) -> None:
    """Raise ``Diverged`` if a value is not finite.

    Args:
        values: values by name.
        where: step or split in which they were measured, for the message.
        describe_last: returns a description of the last checkpoint, for the message.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            last_text = f"{describe_last()}; " if describe_last() else ""
            raise Diverged(
                f"{where}: {name} is {value}; {last_text}lower config.optim.lr or set config.optim.clip_norm, "
                "use a new workdir, and check the data for outliers"
            )


def _check_predictions(outputs: Any, mask: np.ndarray, where: str, describe_last: Callable[[], str]) -> None:
    """Raise ``Diverged`` if an output for an example in ``mask`` is NaN, which a metric could hide."""
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
        task: the task whose metrics are computed.
        variables: variables to evaluate; ``Members`` are evaluated as one network, by their mean probabilities.
        split: name of the split.
        final: whether this is the final test, for which ``task.evaluate`` always gets the outputs. Otherwise the same
            program runs, but its outputs may be dropped batch by batch.
        where, describe_last: see ``check_finite``.

    Raises:
        Diverged: A metric or a network output is not finite.
    """
    if isinstance(variables, Members):
        results = [evaluate(task, each, split, True, where, describe_last) for each in variables.networks]
        pooled = average([result.evaluation.predictions for result in results], variables.temperature)
        return score(task, pooled, sum(result.compile_seconds for result in results))
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
            batches.append({name: host_batch[name] for name in host_batch if name != "inputs"})  # inputs are large
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


def average(predictions: Sequence[classification.Predictions], temperature: float = 1.0) -> classification.Predictions:
    """Return the mean of M networks' probabilities for the same N examples, with logits divided by a temperature."""
    probabilities = np.mean([each.probabilities for each in predictions], axis=0)
    if temperature != 1.0:
        probabilities = classification.apply_temperature(probabilities, temperature)
    return predictions[0]._replace(probabilities=probabilities)


def score(task: Task, predictions: classification.Predictions, compile_seconds: float = 0.0) -> EvalResult:
    """Return the metrics of ensemble probabilities (N, K), in the form that ``evaluate`` returns for one network."""
    probabilities, labels = predictions
    accuracy = float((probabilities.argmax(1) == labels).mean())
    values = {"accuracy": accuracy, "loss": classification.log_loss(*predictions)}
    evaluation = task.evaluate([probabilities], [{"label": labels, "mask": np.ones(len(labels), np.float32)}])
    return EvalResult({**values, **evaluation.values}, len(labels), compile_seconds, evaluation)


@functools.cache
def make_both(first: Any, second: Any):
    """Return a function (variables, batch) -> both outputs; XLA computes common subexpressions once."""

    def both(variables, batch):
        return first(variables, batch), second(variables, batch)

    return both
