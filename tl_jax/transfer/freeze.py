"""Freezing rules: a regex partition of the parameters into ``frozen`` leaves and groups that train."""

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

# Leaves outside the loaded network; each kind trains only when requested.
HEAD = (r"(aux/)?head/.*", "train")  # the layer on the features, with one output per target class
ADAPTERS = r"(.*/)?(lora_[ab]|adapter_\w+/.*)"
EXTRA = r"extra/.*"  # projectors, the source network's head, class centers of the training identities

# Named after the leaves that train; the head always trains.
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
)  # recipes that train few values, only new ones, or values that may move far
BATCH_STATS_MODES = ("auto", "train", "frozen")


@dataclass(frozen=True)
class FreezeConfig(Options):
    """Freezing settings."""

    recipe: str = option("all", "which layers train", NAMES)
    stages: int = option(1, "number of stages, counted from the head, that last_n_stages trains", low=1)
    rules: Rules = option((), "pairs (regex over leaf paths, 'frozen' or group); if given, they replace the recipe")
    batch_stats: str = option(
        "auto",
        "BatchNorm uses running statistics in frozen layers (auto), no layer (train) or all (frozen)",
        BATCH_STATS_MODES,
    )
    verify: bool = option(False, "hash the frozen leaves before and after each phase; stop the run if they change")


def recipe_rules(name: str, stages: Sequence[str] = (), num_stages: int = 1) -> Rules:
    """Return the rules of a named recipe.

    Args:
        name: one of ``NAMES``.
        stages: names of the network's stages, input first; used by "last_n_stages".
        num_stages: number of final stages that "last_n_stages" trains, together with all layers above them.

    Raises:
        UserError: The recipe is unknown, or the network has fewer than ``num_stages`` stages.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name != LAST_N_STAGES:
        raise UserError(f"unknown freeze recipe {name!r}; {nearest(name, NAMES)}")
    if not 0 < num_stages <= len(stages):
        raise UserError(
            f"last_n_stages: the network does not have {num_stages} stages, only {', '.join(stages) or 'none'}; "
            "lower config.freeze.stages"
        )
    frozen_stages = "|".join(map(re.escape, stages[: len(stages) - num_stages]))
    return ((rf"({frozen_stages})/.*", FROZEN), (".*", "train")) if frozen_stages else RECIPES["all"]


def check_rules(rules: Sequence[tuple[str, str]]) -> Rules:
    """Return freeze rules as tuples. Raises UserError for a rule that is not (regex, label) or does not compile."""
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not all(isinstance(field, str) for field in rule):
            raise UserError(
                f"freeze rule {rule!r}: not a pair; write (regex, label), such as ('stage[12]/.*', 'frozen')"
            )
        try:
            re.compile(rule[0])
        except re.error as e:
            raise UserError(f"freeze rule {rule!r}: not a regular expression: {e}; correct it") from None
    return tuple((pattern, label) for pattern, label in rules)


def groups(rules: Rules) -> tuple[str, ...]:
    """Return the unique labels of the rules, without ``frozen``."""
    return tuple(dict.fromkeys(label for _, label in rules if label != FROZEN))


def trainable(params: tree.Tree, rules: Rules) -> Any:
    """Return a boolean tree, True where a leaf trains. Raises UserError if no leaf trains."""
    mask = jax.tree.map(lambda label: label != FROZEN, tree.label_leaves(params, rules))
    if not any(jax.tree.leaves(mask)):
        raise UserError(f"config.freeze.recipe or rules: {rules} freeze every leaf; train at least the head")
    return mask


def stop_frozen(params: Any, mask: Any) -> Any:
    """Stop gradients at the frozen leaves, which removes their backward computation; their gradients are zeros."""
    return jax.tree.map(lambda leaf, trains: leaf if trains else jax.lax.stop_gradient(leaf), params, mask)


def trained_leaves(values: Any, mask: Any) -> list[Any]:
    """Return the leaves for which ``mask`` is True."""
    return [v for v, trains in zip(jax.tree.leaves(values), jax.tree.leaves(mask), strict=True) if trains]


def count_split(params: Any, mask: Any) -> dict[str, int]:
    """Return the number of ``trainable`` and ``frozen`` parameters."""
    trained_count = tree.count(trained_leaves(params, mask))
    return {"trainable": trained_count, "frozen": tree.count(params) - trained_count}


def frozen_batch_norms(mask: Any, batch_stats: tree.Tree, mode: str) -> frozenset[str]:
    """Return the BatchNorm layers that use their running statistics, unchanged, during training.

    Args:
        mask: boolean tree, True where a leaf trains.
        batch_stats: the ``batch_stats`` collection.
        mode: "auto" (layers whose own parameters are all frozen), "frozen" (all layers) or "train" (none).
    """
    owners = {path.rpartition("/")[0] for path in tree.flatten(mask)}  # skip statistics without a layer
    layers = {path.rpartition("/")[0] for path in tree.flatten(batch_stats)} & owners
    if mode != "auto":
        return frozenset(layers if mode == "frozen" else ())
    trained_layers = {path.rpartition("/")[0] for path, trains in tree.flatten(mask).items() if trains}
    return frozenset(layers - trained_layers)


@contextlib.contextmanager
def use_running_statistics(layers: frozenset[str], momentum: float = 0.0) -> Iterator[None]:
    """Run the named BatchNorm layers in evaluation mode, whatever ``train`` the model gets.

    BatchNorm statistics are not parameters, so masking the optimizer does not freeze them. The other layers keep the
    fraction ``momentum`` of the old statistics at each step; 0 uses the momentum that the model defines.
    """

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and "/".join(context.module.path) in layers:
            # Models set it in the constructor or in the call, and flax rejects both at once.
            object.__setattr__(context.module, "use_running_average", None)
            args, kwargs = args[:1], {**kwargs, "use_running_average": True}
        elif isinstance(context.module, nn.BatchNorm) and momentum:
            object.__setattr__(context.module, "momentum", momentum)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
