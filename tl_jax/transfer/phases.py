"""Training phases: each has its own objective, freezing, learning rate and length."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tl_jax.config.options import Options, option
from tl_jax.transfer import freeze
from tl_jax.transfer.freeze import EXTRA, FROZEN, HEAD, FreezeConfig, Rules, check_rules, groups, recipe_rules
from tl_jax.transfer.optimizer import OptimSpec, RateSpec
from tl_jax.utils.errors import UserError, nearest

SUPERVISED, PRETEXT = "supervised", "pretext"  # with labels, or self-supervised


@dataclass(frozen=True)
class PhaseConfig(Options):
    """One entry of ``phases``. ``name`` and ``epochs`` are required; a field that is None inherits the run's value."""

    name: str = option("", "name in the logs")
    epochs: float = option(1.0, "length of the phase in passes over the training split", low=1e-6)
    objective: str = option(
        SUPERVISED, "train on the labels, or on the pretext with all examples", (SUPERVISED, PRETEXT)
    )
    recipe: str | None = option("all", "which layers train, see freeze.recipe", freeze.NAMES, inherited=True)
    stages: int | None = option(1, "stages that last_n_stages trains, see freeze.stages", low=1, inherited=True)
    rules: Rules | None = option((), "rules that replace the recipe, see freeze.rules", inherited=True)
    batch_stats: str | None = option("auto", "see freeze.batch_stats", freeze.BATCH_STATS_MODES, inherited=True)
    lr_scale: float = option(1.0, "factor on optim.lr", low=0.0)
    layer_decay: float | None = option(1.0, "see optim.layer_decay", low=0.0, high=1.0, inherited=True)
    lr_multipliers: tuple[tuple[str, float], ...] | None = option((), "see optim.lr_multipliers", inherited=True)

    def freezing(self, run: FreezeConfig) -> FreezeConfig:
        """Return the phase's freeze config. If the phase sets a recipe or rules, it inherits neither from the run."""
        stages = run.stages if self.stages is None else self.stages
        stats = run.batch_stats if self.batch_stats is None else self.batch_stats
        own = self.recipe is not None or self.rules is not None
        recipe, rules = (self.recipe or "", self.rules or ()) if own else (run.recipe, run.rules)
        return FreezeConfig(recipe, stages, rules, stats, run.verify)


class Phase(NamedTuple):
    """Steps ``start`` to ``stop`` of a run.

    Attributes:
        name: name in the logs.
        start: first step, counted from the start of the run.
        stop: the step after the last.
        rules: freeze rules.
        optim: optimizer settings of the trained leaves.
        rate: learning-rate schedule.
        batch_stats: mode of ``freeze.frozen_batch_norms``.
        objective: ``SUPERVISED`` or ``PRETEXT``.
    """

    name: str
    start: int
    stop: int
    rules: Rules
    optim: OptimSpec
    rate: RateSpec
    batch_stats: str = "auto"
    objective: str = SUPERVISED


def resolve(
    config: Any, sizes: Mapping[str, int], stages: Sequence[str] = (), task_heads: Sequence[str] = ()
) -> tuple[Phase, ...]:
    """Convert ``config.phases`` to phases in steps; if empty, use ``config.epochs`` and ``config.freeze``.

    Args:
        config: the full configuration.
        sizes: number of examples in "train" and "unlabelled"; a pretext epoch is one pass over the latter.
        stages: names of the network's stages, input first.
        task_heads: further heads of the task, see ``Task.extra_heads``.

    Returns:
        The phases; empty if ``epochs`` is 0, which trains nothing.
    """
    entries = config.phases or (PhaseConfig("train", config.epochs),)
    phases: list[Phase] = []
    start, exact = 0, 0.0
    for entry in entries if config.phases or config.epochs else ():
        examples = sizes["train" if entry.objective == SUPERVISED else "unlabelled"]
        exact += entry.epochs * examples / config.batch_size
        stop = max(start + 1, round(exact), 0 if config.phases else config.min_steps)
        freezing = entry.freezing(config.freeze)
        rules = _rules(config, freezing, stages, entry.objective, task_heads)
        own = {name: getattr(entry, name) for name in ("layer_decay", "lr_multipliers")}
        own = {name: value for name, value in own.items() if value is not None}
        optim = config.optim.narrow(OptimSpec, stages=tuple(stages), **own)
        optim = dataclasses.replace(optim, lr_multipliers=check_lr_multipliers(optim.lr_multipliers))
        lr = config.optim.lr * entry.lr_scale
        rate = RateSpec(lr, stop - start, config.optim.schedule, config.optim.warmup)
        phases.append(Phase(entry.name, start, stop, rules, optim, rate, freezing.batch_stats, entry.objective))
        start = stop
    _check_groups(phases)
    return tuple(phases)


def _rules(
    config: Any, freezing: FreezeConfig, stages: Sequence[str], objective: str, task_heads: Sequence[str]
) -> Rules:
    """Return the freeze rules of a phase; explicit rules take precedence over a recipe."""
    if freezing.rules:
        rules = check_rules(freezing.rules)
    else:
        rules = recipe_rules(freezing.recipe, stages, freezing.stages)
    return (*_extra_rules(config, objective, task_heads), *rules)


def extra_heads(config: Any, objective: str = SUPERVISED, task_heads: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the heads under ``extra/`` in the parameters that an objective trains."""
    if objective == PRETEXT:
        return (PRETEXT,)
    pretext = (PRETEXT,) if config.pretext.name and config.pretext.weight else ()
    return (*pretext, *task_heads, *(("source_head",) if config.regularize.strength("co_tuning") else ()))


def _extra_rules(config: Any, objective: str, task_heads: Sequence[str]) -> Rules:
    """Return the rules with the highest precedence: the extra heads that this objective uses train, others do not."""
    used = extra_heads(config, objective, task_heads)
    trained_heads = ((rf"extra/({'|'.join(used)})/.*", "train"),) if used else ()
    idle_head = () if objective == SUPERVISED else ((HEAD[0], FROZEN),)  # a pretext does not use the head
    has_extra = config.pretext.name or config.regularize.strength("co_tuning") or task_heads
    return (*trained_heads, *idle_head, *(((EXTRA, FROZEN),) if has_extra else ()))


def check_lr_multipliers(multipliers: Any) -> tuple[tuple[str, float], ...]:
    """Return learning-rate factors as tuples. Raises UserError for an entry that is not (group, factor >= 0)."""
    for pair in multipliers:
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)
        if not is_pair or not isinstance(pair[1], (int, float)) or not pair[1] >= 0:
            raise UserError(
                f"config.optim.lr_multipliers: {pair!r} is not a pair (group, factor >= 0); write ('trunk', 0.1)"
            )
    return tuple((group, float(factor)) for group, factor in multipliers)


def _check_groups(phases: Sequence[Phase]) -> None:
    """Raise UserError for a learning-rate factor whose group is in no phase."""
    known = dict.fromkeys(label for phase in phases for label in groups(phase.rules))
    for phase in phases:
        for group, _ in phase.optim.lr_multipliers:
            if group not in known:
                raise UserError(
                    f"config.optim.lr_multipliers: group {group!r} is in no freeze rule; {nearest(group, known)}"
                )
