"""Learning-rate range test: a short run with a rising learning rate, and the rates that its losses suggest."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tl_jax.train import sharding
from tl_jax.train.state import initial_state, initial_states, stream_key
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.train.task import Task
from tl_jax.transfer.freeze import RECIPES, count_split, trainable
from tl_jax.transfer.phases import Phase
from tl_jax.utils.errors import UserError

SMOOTHING = 0.9  # decay of the moving average of losses
SPAN = 0.5  # decades of the rate over which the slope is measured; single steps are too noisy
DIVERGED = 3.0  # the test stops when the loss exceeds the lowest smoothed loss by this factor


class Sweep(NamedTuple):
    """Losses of a range test, in nats, and the learning rates that they suggest.

    Attributes:
        rates, losses, smoothed: (S,), with rising rates.
        steepest: rate at which the smoothed loss falls fastest per factor of the rate.
        lowest: rate of the lowest smoothed loss, just before training diverges.
        suggested: the smaller of ``steepest`` and a tenth of ``lowest``.
        head: sweep of the head alone, if the backbone has its own rate; the other fields then cover all layers at one
            rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float
    lowest: float
    suggested: float
    head: "Sweep | None" = None


def sweep_groups(task: Task, phase: Phase, seed: int) -> Sweep:
    """Sweep the rate of a phase; also that of a new head alone, if the backbone trains at its own rate."""
    has_groups = phase.optim.backbone_lr_scale and task.config.init.head == "new"
    if not has_groups or not _trains_backbone(initial_state(task, seed).params, phase):
        return sweep(task, phase, seed)
    at_one_rate = phase._replace(optim=dataclasses.replace(phase.optim, backbone_lr_scale=0.0))
    head = sweep(task, phase._replace(rules=RECIPES["head"]), seed)
    return sweep(task, at_one_rate, seed)._replace(head=head)


def _trains_backbone(params: Any, phase: Phase) -> bool:
    """Return whether a phase trains any layer below the head."""
    trained, head = (count_split(params, trainable(params, rules)) for rules in (phase.rules, RECIPES["head"]))
    return trained != head


def sweep(task: Task, phase: Phase, seed: int, low: float = 1e-6, high: float = 1.0, steps: int = 100) -> Sweep:
    """Train from the initial state with log-spaced rates from ``low`` to ``high`` (arXiv:1506.01186).

    Args:
        task: the task.
        phase: supplies the objective, freezing and optimizer; its learning rates are ignored.
        seed: random seed.
        low, high: first and last learning rate.
        steps: maximum number of steps; the test stops earlier if the loss diverges.
    """
    rates = np.geomspace(low, high, steps, dtype=np.float32)
    loss, train_batch, _ = task.objective(phase.objective)
    _, state = initial_states(task, seed)
    state = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules)(state.params))
    step = make_train_step(loss, phase.optim, phase.rules, phase.batch_stats)
    stream = sharding.replicate(stream_key(seed, "train"))
    losses: list[float] = []
    for i, rate in enumerate(rates):
        state, row = step(state, sharding.shard_batch(train_batch(i)), stream, sharding.replicate(rate))
        total, count = row["sums"]["loss"]
        losses.append(float(total) / max(float(count), 1.0))
        mean = smooth(np.asarray(losses))
        if not np.isfinite(losses[-1]) or mean[-1] - mean.min() > DIVERGED * max(abs(mean.min()), 1e-3):
            break
    return suggest_rates(rates[: len(losses)], np.asarray(losses))


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return the bias-corrected exponential moving average (S,) of losses (S,)."""
    out, mean = np.empty(len(losses)), 0.0
    for i, value in enumerate(losses):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        out[i] = mean / (1 - SMOOTHING ** (i + 1))
    return out


def suggest_rates(rates: np.ndarray, losses: np.ndarray) -> Sweep:
    """Return the sweep with the suggested rates.

    Raises:
        UserError: The loss never fell, or was not finite from the start.
    """
    finite = np.isfinite(losses)
    rates, losses = np.asarray(rates, float)[finite], losses[finite]
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin()) if len(smoothed) else 0
    if lowest < 2:
        raise UserError("learning-rate sweep: the loss falls at no rate; check the data, or start at a lower rate")
    decades = np.log10(rates)
    windows = [np.abs(decades - decades[i]) <= SPAN / 2 for i in range(lowest + 1)]
    slopes = [np.polyfit(decades[window], smoothed[window], 1)[0] if window.sum() > 1 else 0.0 for window in windows]
    steepest = float(rates[int(np.argmin(slopes))])
    return Sweep(rates, losses, smoothed, steepest, float(rates[lowest]), min(steepest, float(rates[lowest]) / 10))
