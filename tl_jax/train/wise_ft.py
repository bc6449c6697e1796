"""WiSE-FT: how far between the weights at the start and those at the end the validation score is highest."""

from typing import Any

from tl_jax.task import Task
from tl_jax.train import metrics
from tl_jax.transfer.averaging import interpolate

SHARES = tuple(i / 10 for i in range(11))


def best_share(task: Task, start: Any, end: Any) -> tuple[float, dict[str, float]]:
    """Return the share of the way with the best validation score, of equals the largest, and the score of each.

    Args:
        task: with a validation part.
        start, end: variables before and after training.
    """
    scores = {}
    for share in SHARES:
        scores[share] = metrics.evaluate(task, interpolate(start, end, share), "validation").values[task.score]
    best = max(SHARES, key=lambda share: (scores[share], share))
    return best, {f"{share:g}": value for share, value in scores.items()}
