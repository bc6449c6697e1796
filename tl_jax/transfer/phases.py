"""A run is a list of phases, each with its own freezing, rate and length."""

from typing import Any, NamedTuple

from tl_jax.errors import UserError, nearest
from tl_jax.transfer.optimizer import OptimSpec
from tl_jax.transfer.partition import RECIPES, Rules, check_rules


class Phase(NamedTuple):
    """Steps ``start`` to ``stop`` of a run; ``batch_stats`` is the mode of ``partition.still_norms``."""

    name: str
    start: int
    stop: int
    rules: Rules
    optim: OptimSpec
    batch_stats: str


def resolve(config: Any, examples: int) -> tuple[Phase, ...]:
    """Turn ``config.phases`` (or, where it is empty, ``config.epochs`` and ``config.freeze``) into phases in steps.

    Args:
        config: the whole configuration.
        examples: number of training examples, which an epoch counts.
    """
    entries = config.phases or ({"name": "train", "epochs": config.epochs},)
    phases, start, epochs = [], 0, 0.0
    for entry in entries:
        epochs += entry["epochs"]
        stop = max(start + 1, round(epochs * examples / config.batch_size))
        rate = config.optim.lr * entry.get("lr_scale", 1.0)
        own = "recipe" in entry or "rules" in entry  # one of the two replaces both of config.freeze
        chosen = entry if own else config.freeze
        rules = phase_rules(chosen.get("recipe", ""), chosen.get("rules", ()))
        optim = OptimSpec(**{**config.optim.to_dict(), "lr": rate, "steps": stop - start})
        phases.append(Phase(entry["name"], start, stop, rules, optim, config.freeze.batch_stats))
        start = stop
    return tuple(phases)


def phase_rules(recipe: str, rules: Any) -> Rules:
    """Return explicit rules where given, else those of the recipe."""
    if rules:
        return check_rules(rules)
    if recipe not in RECIPES:
        raise UserError(f"unknown freeze recipe {recipe!r}; {nearest(recipe, RECIPES)}")
    return RECIPES[recipe]
