"""Metrics are (sum, count) pairs until the last moment: a mean of batch means is wrong for a short last batch."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tl_jax.task import Scored, Sums, Task
from tl_jax.train import devices
from tl_jax.train.step import make_eval_step

QUEUE = 16  # batches on their way to the device at the most


def mean(rows: Iterable[Sums]) -> dict[str, float]:
    """Add up sums and counts (fetched from the device in one go) and divide once; what was not counted is left out."""
    totals: dict[str, list[float]] = {}
    for row in jax.device_get(list(rows)):
        for name, (total, count) in row.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(count)
    return {name: total / count for name, (total, count) in totals.items() if count}


class Evaluation(NamedTuple):
    """Metrics over a part, the number of its examples, the seconds that compiling took, and what else was judged."""

    values: dict[str, float]
    examples: int
    compile_seconds: float
    per_class: Mapping[str, Mapping[str, float]]
    scored: Scored | None = None


def extract(function: Any, variables: Any, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Return what ``function`` (variables, batch) -> (B, ...) gives for every example, (N, ...), padding left out."""
    step = make_eval_step(function)
    rows = []
    for batch in batches:
        out = step(variables, devices.put(batch))
        rows.append(np.asarray(out)[np.asarray(batch["mask"]) > 0])
    return np.concatenate(rows)


def evaluate(task: Task, variables: Any, part: str) -> Evaluation:
    """Return the metrics over every example of ``part``, each counted once."""
    judge = task.judge
    step = make_eval_step(_with_predictions(task.metrics, task.predict, task.soft) if judge else task.metrics)
    rows, seen, examples, compiling = [], [], 0, 0.0
    for host in task.eval_batches(part):
        examples += int(host["mask"].sum())
        batch = devices.put(host)
        program = devices.compiled(step, variables, batch)
        compiling += program.seconds
        rows.append(program.execute(variables, batch))
        seen += [{name: host[name] for name in host if name != "image"}] if judge else []  # pictures need room
        if len(rows) % QUEUE == 0:
            jax.block_until_ready(rows[-1])
    if not judge:
        return Evaluation(mean(rows), examples, compiling, {})
    sums, found = zip(*jax.device_get(rows), strict=True)
    verdict = judge(found, seen)
    values = {**mean(sums), **verdict.values}
    return Evaluation(values, examples, compiling, verdict.per_class, verdict.scored)


@functools.cache
def _with_predictions(metrics: Any, predict: Any, soft: bool):
    """Return the function (variables, batch) -> sums and predicted classes, or where ``soft`` their probabilities.

    XLA computes what both share once.
    """

    def both(variables, batch):
        found = predict(variables, batch)
        return metrics(variables, batch), found if soft else found.argmax(-1)

    return both
