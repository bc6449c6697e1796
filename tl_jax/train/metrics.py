"""Metrics are (sum, count) pairs until the last moment: a mean of batch means is wrong for a short last batch."""

from collections.abc import Iterable
from typing import Any

import jax

from tl_jax.task import Sums, Task
from tl_jax.train import devices
from tl_jax.train.step import make_eval_step


def mean(rows: Iterable[Sums]) -> dict[str, float]:
    """Add up sums and counts (fetched from the device in one go) and divide once."""
    totals: dict[str, list[float]] = {}
    for row in jax.device_get(list(rows)):
        for name, (total, count) in row.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(count)
    return {name: total / count for name, (total, count) in totals.items()}


def evaluate(task: Task, variables: Any, part: str) -> tuple[dict[str, float], int]:
    """Return the metrics over every example of ``part``, each counted once, and the number of examples."""
    step = make_eval_step(task.metrics)
    rows, examples = [], 0
    for batch in task.eval_batches(part):
        examples += int(batch["mask"].sum())
        batch = devices.put(batch)
        run, _ = devices.compiled(step, variables, batch)
        rows.append(run(variables, batch))
    return mean(rows), examples
