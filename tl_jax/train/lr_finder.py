"""Learning-rate range test: one short run in which the rate rises step by step, and what its losses suggest."""

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

SMOOTHING = 0.9  # share of the running mean of losses that stays at each step
SPAN = 0.5  # decades of the rate over which a slope is taken: single steps are too noisy
DIVERGED = 3.0  # times the lowest smoothed loss above it: the test ends there


class Sweep(NamedTuple):
    """Losses (S,) in nats at learning rates (S,) that rise, raw and smoothed, and the rates they suggest.

    Attributes:
        rates, losses, smoothed: (S,).
        steepest: rate around which the smoothed loss falls fastest per factor of the rate.
        lowest: rate of the lowest smoothed loss, where training is about to diverge.
        suggested: the smaller of ``steepest`` and a tenth of ``lowest``.
        head: the sweep of the head alone, if the layers below have a rate of their own; the rest is then of all layers
            at one rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float
    lowest: float
    suggested: float
    head: "Sweep | None" = None


def sweep_groups(task: Task, phase: Phase, seed: int) -> Sweep:
    """Sweep the rate of a phase; of a new head by itself, too, if the layers below it train at a rate of their own."""
    has_groups = phase.optim.backbone_lr_scale and task.config.init.head == "new"
    if not has_groups or not _trains_backbone(initial_state(task, seed).params, phase):
        return sweep(task, phase, seed)
    at_one_rate = phase._replace(optim=dataclasses.replace(phase.optim, backbone_lr_scale=0.0))
    head = sweep(task, phase._replace(rules=RECIPES["head"]), seed)
    return sweep(task, at_one_rate, seed)._replace(head=head)


def _trains_backbone(params: Any, phase: Phase) -> bool:
    """Whether a phase trains more than a head does."""
    trained, head = (count_split(params, trainable(params, rules)) for rules in (phase.rules, RECIPES["head"]))
    return trained != head


def sweep(task: Task, phase: Phase, seed: int, low: float = 1e-6, high: float = 1.0, steps: int = 100) -> Sweep:
    """Train from the start with rates from ``low`` to ``high``, evenly spaced in their logarithm (arXiv:1506.01186).

    Args:
        task: what is learned.
        phase: whose objective, freezing and optimizer are used; its own rates are not.
        seed: of everything random.
        low, high: first and last learning rate.
        steps: between them; fewer are taken where the loss diverges.
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
    """Return the running mean (S,) of losses (S,), without the pull of the zero that it starts from."""
    out, mean = np.empty(len(losses)), 0.0
    for i, value in enumerate(losses):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        out[i] = mean / (1 - SMOOTHING ** (i + 1))
    return out


def suggest_rates(rates: np.ndarray, losses: np.ndarray) -> Sweep:
    """Return the sweep with what it suggests.

    Raises:
        UserError: the loss never fell, or was not finite from the start.
    """
    finite = np.isfinite(losses)
    rates, losses = np.asarray(rates, float)[finite], losses[finite]
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin()) if len(smoothed) else 0
    if lowest < 2:
        raise UserError("the loss falls at no learning rate of this range; check the data, or start the range lower")
    decades = np.log10(rates)
    windows = [np.abs(decades - decades[i]) <= SPAN / 2 for i in range(lowest + 1)]
    slopes = [np.polyfit(decades[window], smoothed[window], 1)[0] if window.sum() > 1 else 0.0 for window in windows]
    steepest = float(rates[int(np.argmin(slopes))])
    return Sweep(rates, losses, smoothed, steepest, float(rates[lowest]), min(steepest, float(rates[lowest]) / 10))
