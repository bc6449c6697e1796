"""A run is a list of phases, each with its own objective, freezing, rates and length."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tl_jax.transfer.freeze import EXTRA, FROZEN, HEAD, Rules, check_rules, groups, recipe_rules
from tl_jax.transfer.optimizer import OptimSpec, RateSpec
from tl_jax.utils.errors import UserError, nearest

SUPERVISED, PRETEXT = "supervised", "pretext"  # learn from labels, or from the pictures alone


class Phase(NamedTuple):
    """Steps ``start`` to ``stop`` of a run.

    Attributes:
        name: for logs.
        start, stop: in steps since the start of the run.
        rules: what is frozen.
        optim: how the rest moves.
        rate: how fast.
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
    """Turn ``config.phases`` (or, where it is empty, ``config.epochs`` and ``config.freeze``) into phases in steps.

    Args:
        config: the whole configuration.
        sizes: number of examples of "train", which an epoch counts, and of "unlabelled", which one of a pretext counts.
        stages: names of the network's parts from the input on.
        task_heads: further heads that the task itself has, see ``Task.extra_heads``.

    Returns:
        The phases; none where there is nothing to train, which is what ``epochs=0`` says.
    """
    entries = config.phases or ({"name": "train", "epochs": config.epochs},)
    phases: list[Phase] = []
    start, exact = 0, 0.0
    for entry in entries if config.phases or config.epochs else ():
        objective = entry.get("objective", SUPERVISED)
        examples = sizes["train" if objective == SUPERVISED else "unlabelled"]
        exact += entry["epochs"] * examples / config.batch_size
        stop = max(start + 1, round(exact))
        rules = _rules(config, entry, stages, objective, task_heads)
        optim = {key: value for key, value in config.optim.to_dict().items() if key in OptimSpec._fields}
        optim |= {key: entry[key] for key in ("layer_decay", "lr_multipliers") if key in entry}
        optim |= {"stages": tuple(stages), "lr_multipliers": check_lr_multipliers(optim["lr_multipliers"])}
        lr = config.optim.lr * entry.get("lr_scale", 1.0)
        rate = RateSpec(lr, stop - start, config.optim.schedule, config.optim.warmup)
        stats = entry.get("batch_stats", config.freeze.batch_stats)
        phases.append(Phase(entry["name"], start, stop, rules, OptimSpec(**optim), rate, stats, objective))
        start = stop
    _check_groups(phases)
    return tuple(phases)


def _rules(
    config: Any, entry: Mapping[str, Any], stages: Sequence[str], objective: str, task_heads: Sequence[str]
) -> Rules:
    """Return the freeze rules of a phase: its own, or those of ``config.freeze``; explicit ones before a recipe."""
    has_rules = "recipe" in entry or "rules" in entry  # one of the two replaces both of config.freeze
    settings = entry if has_rules else config.freeze
    if settings.get("rules", ()):
        rules = check_rules(settings["rules"])
    else:
        rules = recipe_rules(settings.get("recipe", ""), stages, entry.get("stages", config.freeze.stages))
    return (*_extra_rules(config, objective, task_heads), *rules)


def extra_heads(config: Any, objective: str = SUPERVISED, task_heads: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the further heads, under ``extra/`` in the parameters, that an objective trains."""
    if objective == PRETEXT:
        return (PRETEXT,)
    pretext = (PRETEXT,) if config.pretext.name and config.pretext.weight else ()
    return (*pretext, *task_heads, *(("source_head",) if config.regularize.co_tuning else ()))


def _extra_rules(config: Any, objective: str, task_heads: Sequence[str]) -> Rules:
    """Return the rules that come before all others: further heads train where the phase's objective uses them."""
    used = extra_heads(config, objective, task_heads)
    trained_heads = ((rf"extra/({'|'.join(used)})/.*", "train"),) if used else ()
    idle_head = () if objective == SUPERVISED else ((HEAD[0], FROZEN),)  # a pretext has no use for it
    has_extra = config.pretext.name or config.regularize.co_tuning or task_heads
    return (*trained_heads, *idle_head, *(((EXTRA, FROZEN),) if has_extra else ()))


def check_lr_multipliers(multipliers: Any) -> tuple[tuple[str, float], ...]:
    """Return factors on rates as tuples, or a UserError naming the one that is no pair (group, factor from 0 on)."""
    for pair in multipliers:
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)
        if not is_pair or not isinstance(pair[1], (int, float)) or not pair[1] >= 0:
            raise UserError(f"config.optim.lr_multipliers: {pair!r} is no pair (group, factor), such as ('trunk', 0.1)")
    return tuple((group, float(factor)) for group, factor in multipliers)


def _check_groups(phases: Sequence[Phase]) -> None:
    """Refuse factors on rates of groups that no phase has."""
    known = dict.fromkeys(label for phase in phases for label in groups(phase.rules))
    for phase in phases:
        for group, _ in phase.optim.lr_multipliers:
            if group not in known:
                raise UserError(
                    f"config.optim.lr_multipliers: no freeze rule makes a group {group!r}; {nearest(group, known)}"
                )
