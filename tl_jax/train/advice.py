"""Advice after a run: too few epochs, overfitting, worse than a linear probe, or shifted BatchNorm statistics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.metrics.intervals import wilson_interval
from tl_jax.utils import tree

FITTED = 0.995  # training accuracy at which nothing is left to learn from the training examples
BEHIND = 0.02  # overfitting: training accuracy exceeds the upper limit of the validation interval by this
FALL = 0.1  # too short: relative fall of the training loss over the last quarter
MAX_SHIFT = 0.05  # of BatchNorm statistics; a first batch of flowers or digits is 0.08 to 0.11 from ImageNet
FEW_EXAMPLES = 2000  # below this the source's statistics are the better estimate
MIN_VALIDATION = 30  # examples: with fewer, the interval of the validation accuracy says little
MIN_ROWS = 8  # fewest training rows that show a trend


def advise(rows: Sequence[Mapping[str, Any]], score: str, validation: int, is_best: bool = False) -> list[str]:
    """Return suggestions about the training curves; empty if they look fine.

    Args:
        rows: rows of ``metrics.jsonl`` from the last phase.
        score: validation metric that selects checkpoints, such as "accuracy".
        validation: number of validation examples.
        is_best: whether the best checkpoint on validation was tested, not the last.
    """
    train = [row for row in rows if row.get("split") == "train"]
    held_out = [row for row in rows if row.get("split") == "validation"]
    found = [
        _memorized(train, held_out, validation),
        _too_short(train, held_out),
        "" if is_best else _past_best(held_out, score),
    ]
    return [text for text in found if text]


def norm_shift(start: tree.Tree, end: tree.Tree) -> float:
    """Return the shift of the BatchNorm statistics; 0 if there are none.

    The shift is the mean over channels of ((m1 - m0) / s0)^2 + (s1 / s0 - 1)^2, for means m and standard deviations s.

    Args:
        start: ``batch_stats`` before training.
        end: ``batch_stats`` after training.
    """
    before, after = tree.flatten(start), tree.flatten(end)
    distances = []
    for path in before:
        if path.endswith("/mean") and (spread := f"{path.removesuffix('mean')}var") in before:
            scale = np.sqrt(np.asarray(before[spread], np.float64) + 1e-3)
            moved = (np.asarray(after[path], np.float64) - np.asarray(before[path], np.float64)) / scale
            ratio = np.sqrt(np.asarray(after[spread], np.float64) + 1e-3) / scale
            distances.append(moved**2 + (ratio - 1) ** 2)
    return float(np.concatenate(distances).mean()) if distances else 0.0


def advise_norms(shift: float, examples: int) -> list[str]:
    """Return advice about a large shift of the BatchNorm statistics; [] if it is small or the examples are many."""
    if shift <= MAX_SHIFT or examples >= FEW_EXAMPLES:
        return []
    return [
        f"BatchNorm statistics shifted by {shift:.2f} from the source's (0: no shift), estimated from {examples:,} "
        "examples; config.freeze.batch_stats=frozen keeps the source's, often the better choice for so few examples"
    ]


def advise_probe(
    start: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    score: str,
    examples: int,
    is_best: bool = False,
    mixes: bool = True,
) -> list[str]:
    """Return advice if training ended significantly below the head fitted before it; else [].

    Args:
        start: rows from before the first step.
        rows: rows of the last phase.
        score: validation metric that selects checkpoints; a proportion such as the accuracy.
        examples: number of validation examples.
        is_best: whether the best checkpoint on validation was tested, not the last.
        mixes: whether ``wise_ft`` can average the initial and final weights.
    """
    before, after = (
        [row[score] for row in part if row.get("split") == "validation" and score in row] for part in (start, rows)
    )
    if not before or not after:
        return []
    end = max(after) if is_best else after[-1]
    variance = sum(share * (1 - share) for share in (before[0], end)) / examples
    if before[0] - end <= max(BEHIND, 2 * math.sqrt(max(variance, 0.0))):
        return []
    mixture = ", config.wise_ft averages both" if mixes else ""
    return [
        f"validation {score} fell from {before[0]:.3f} with the fitted head alone to {end:.3f} after training; "
        f"config.epochs=0 keeps the head alone{mixture}, and a lower config.optim.lr may help"
    ]


def _memorized(train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], count: int) -> str:
    has_rows = train and held_out and all("accuracy" in rows[-1] for rows in (train, held_out))
    if not has_rows or count < MIN_VALIDATION:
        return ""
    fitted, seen = train[-1]["accuracy"], held_out[-1]["accuracy"]
    _, high = wilson_interval(seen * count, count)
    if fitted < FITTED or high > fitted - BEHIND:
        return ""
    return (
        f"training accuracy is {fitted:.3f} but validation accuracy {seen:.3f}: the network overfits; "
        "more examples, augmentation or fewer trained layers may help, more epochs will not"
    )


def _too_short(train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> str:
    losses = np.array([row["loss"] for row in train if "loss" in row])
    if len(losses) < MIN_ROWS or any("episode_return" in row for row in train):  # PPO's loss says nothing of returns
        return ""
    before, last = (part.mean() for part in np.array_split(losses, 4)[2:])
    validated = [row["loss"] for row in held_out if "loss" in row]
    is_better = len(validated) < 2 or validated[-1] <= min(validated[:-1])
    if not before > 0 or last > (1 - FALL) * before or not is_better or _accuracy(train) >= FITTED:
        return ""
    return f"the training loss still fell, from {before:.3f} to {last:.3f} in the last quarter; train for more epochs"


def _accuracy(train: Sequence[Mapping[str, Any]]) -> float:
    return float(train[-1].get("accuracy", 0.0))


def _past_best(held_out: Sequence[Mapping[str, Any]], score: str) -> str:
    scores = [row[score] for row in held_out if score in row]
    losses = [row["loss"] for row in held_out if "loss" in row]
    if len(scores) < 4 or scores[-1] >= max(scores) or not losses or losses[-1] <= 1.5 * min(losses):
        return ""
    best = scores.index(max(scores))
    return (
        f"validation {score} was best ({scores[best]:.4f}) at evaluation {best + 1} of {len(scores)}, and the loss has "
        "risen by half since; config.eval_checkpoint=best tests that checkpoint, config.patience stops there"
    )
