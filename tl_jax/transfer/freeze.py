"""Freezing is a partition: every leaf is ``frozen`` or belongs to a group that trains."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from tl_jax.config.options import Options, option
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError, nearest

FROZEN = "frozen"
Rules = tuple[tuple[str, str], ...]

# Leaves that are no part of the network as it was loaded: each kind trains only where it is asked for.
HEAD = (r"(aux/)?head/.*", "train")  # the layer on top of the features, the only one that knows the target's classes
ADAPTERS = r"(.*/)?(lora_[ab]|adapter_\w+/.*)"
EXTRA = r"extra/.*"  # no part of the network: projectors, the source's own head, centres of the people in training

# Named by what trains, and always the head.
RECIPES: Mapping[str, Rules] = {
    "all": ((".*", "train"),),
    "head": (HEAD, (".*", FROZEN)),
    "norm_only": (HEAD, (r"(.*/)?(\w*_)?(bn|norm|ln)\d*/(scale|bias)", "train"), (".*", FROZEN)),
    "bias_only": (HEAD, (r"(.*/)?bias", "train"), (".*", FROZEN)),  # BitFit, arXiv:2106.10199
    "adapters": (HEAD, (ADAPTERS, "train"), (".*", FROZEN)),
}
LAST_N_STAGES = "last_n_stages"  # depends on the network: see ``recipe_rules``
NAMES = (*RECIPES, LAST_N_STAGES)
NEW_PARTS_TRAIN = (
    "head",
    "norm_only",
    "bias_only",
    "adapters",
)  # recipes of few values, new ones or such as may move far
BATCH_STATS_MODES = ("auto", "train", "frozen")


@dataclass(frozen=True)
class FreezeConfig(Options):
    """What trains."""

    recipe: str = option("all", "what trains", NAMES)
    stages: int = option(1, "parts of the network, from the end, that last_n_stages trains", low=1)
    rules: Rules = option((), "pairs (regex over leaf paths, 'frozen' or a group); not empty, they replace the recipe")
    batch_stats: str = option(
        "auto", "BatchNorm uses running statistics: where frozen, nowhere, everywhere", BATCH_STATS_MODES
    )
    verify: bool = option(False, "hash what is frozen before and after each phase; a change ends the run")


def recipe_rules(name: str, stages: Sequence[str] = (), num_stages: int = 1) -> Rules:
    """Return the rules of a recipe.

    Args:
        name: one of ``NAMES``.
        stages: names of the network's parts from the input on, for "last_n_stages".
        num_stages: how many of them, from the end, "last_n_stages" trains, with all that lies above them.

    Raises:
        UserError: no such recipe, or more stages than there are parts.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name != LAST_N_STAGES:
        raise UserError(f"unknown freeze recipe {name!r}; {nearest(name, NAMES)}")
    if not 0 < num_stages <= len(stages):
        raise UserError(
            f"last_n_stages with {num_stages} stages does not fit; the network has {', '.join(stages) or 'none'}"
        )
    frozen_stages = "|".join(map(re.escape, stages[: len(stages) - num_stages]))
    return ((rf"({frozen_stages})/.*", FROZEN), (".*", "train")) if frozen_stages else RECIPES["all"]


def check_rules(rules: Sequence[tuple[str, str]]) -> Rules:
    """Return freeze rules as tuples, or a UserError naming the rule that is not (regex, label) or does not compile."""
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not all(isinstance(field, str) for field in rule):
            raise UserError(f"freeze rule {rule!r} is not a pair (regex, label), such as ('stage[12]/.*', 'frozen')")
        try:
            re.compile(rule[0])
        except re.error as e:
            raise UserError(f"freeze rule {rule!r} is not a regular expression: {e}") from None
    return tuple((pattern, label) for pattern, label in rules)


def groups(rules: Rules) -> tuple[str, ...]:
    """Return the labels of the rules other than ``frozen``, each once."""
    return tuple(dict.fromkeys(label for _, label in rules if label != FROZEN))


def trainable(params: tree.Tree, rules: Rules) -> Any:
    """Return a tree of booleans, true where a leaf trains; a UserError where none does."""
    mask = jax.tree.map(lambda label: label != FROZEN, tree.label_leaves(params, rules))
    if not any(jax.tree.leaves(mask)):
        raise UserError(f"config.freeze.recipe or rules: {rules} freeze every leaf; let at least the head train")
    return mask


def stop_frozen(params: Any, mask: Any) -> Any:
    """Cut the frozen leaves out of differentiation: no backward work exists for them, their gradients are zeros."""
    return jax.tree.map(lambda leaf, trains: leaf if trains else jax.lax.stop_gradient(leaf), params, mask)


def trained_leaves(values: Any, mask: Any) -> list[Any]:
    """Return the leaves where ``mask`` is true."""
    return [v for v, trains in zip(jax.tree.leaves(values), jax.tree.leaves(mask), strict=True) if trains]


def count_split(params: Any, mask: Any) -> dict[str, int]:
    """Return the number of ``trainable`` and ``frozen`` values."""
    trained_count = tree.count(trained_leaves(params, mask))
    return {"trainable": trained_count, "frozen": tree.count(params) - trained_count}


def frozen_batch_norms(mask: Any, batch_stats: tree.Tree, mode: str) -> frozenset[str]:
    """Return the BatchNorm layers that use and keep their running statistics while training.

    Args:
        mask: true where a leaf trains.
        batch_stats: the statistics collection.
        mode: "auto" (layers whose own parameters are all frozen), "frozen" (all layers) or "train" (none).
    """
    owners = {path.rpartition("/")[0] for path in tree.flatten(mask)}  # other statistics belong to no layer
    layers = {path.rpartition("/")[0] for path in tree.flatten(batch_stats)} & owners
    if mode != "auto":
        return frozenset(layers if mode == "frozen" else ())
    trained_layers = {path.rpartition("/")[0] for path, trains in tree.flatten(mask).items() if trains}
    return frozenset(layers - trained_layers)


@contextlib.contextmanager
def use_running_statistics(layers: frozenset[str], momentum: float = 0.0) -> Iterator[None]:
    """Make the named BatchNorm layers behave as in evaluation, whatever ``train`` says to the model around them.

    BatchNorm statistics live outside the parameters and would move however the optimizer is masked. Those of the other
    layers keep the share ``momentum`` of their old value at each step, 0 for the share that the model itself has.
    """

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and "/".join(context.module.path) in layers:
            # Models say it either when they build the layer or when they call it; flax refuses both at once.
            object.__setattr__(context.module, "use_running_average", None)
            args, kwargs = args[:1], {**kwargs, "use_running_average": True}
        elif isinstance(context.module, nn.BatchNorm) and momentum:
            object.__setattr__(context.module, "momentum", momentum)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
