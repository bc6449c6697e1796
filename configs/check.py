"""Refuse configurations that cannot mean what they say, before anything is loaded."""

from collections.abc import Callable
from typing import Any

from configs import kinds
from configs.base import FIELDS, PHASE_FIELDS, Config, members, part_names
from configs.check_effects import effects
from configs.check_measures import measures
from configs.fields import OF_PICTURES
from configs.kinds import Refused
from tl_jax.config import check_known, check_value, leaves
from tl_jax.data import views
from tl_jax.errors import UserError
from tl_jax.transfer import partition, phases
from tl_jax.weights import prefixes


def validate(config: Config) -> None:
    """Refuse unknown fields, values out of range and fields without effect, before anything is loaded.

    Raises:
        UserError: names the field, its value, and what it may be.
    """
    found = leaves(config, FIELDS)
    for path in found:
        check_known(path, FIELDS)
    for path, field in FIELDS.items():
        if path not in found:
            raise UserError(f"config.{path} is missing; start recipes from configs.base.get_config()")
        check_value(f"config.{path}", found[path], field)
    _check_together(config)
    prefixes.check(config.init.rename)
    partition.check_rules([(config.adapt.targets, "config.adapt.targets")])
    phases.resolve(config, {"train": 1, "unlabelled": 1}, part_names(config))  # its own errors: malformed rules
    if config.seeds or config.arms:
        _check_members(config)


def _check_phase(name: str, phase: Any, config: Config) -> None:
    if not hasattr(phase, "items"):
        raise UserError(f"{name}={phase!r} is not a dict such as {{'name': 'head', 'epochs': 2.0, 'recipe': 'head'}}")
    for key, value in phase.items():
        check_known(key, PHASE_FIELDS, f"{name}.")
        check_value(f"{name}.{key}", value, PHASE_FIELDS[key])
    if not {"name", "epochs"} <= set(phase):
        raise UserError(f"{name} needs a name and a number of epochs")
    if "recipe" in phase and phase.get("rules"):
        raise UserError(f"{name} has a recipe and rules; leave one out")
    own = "recipe" in phase or "rules" in phase
    chosen = phase if own else config.freeze
    if "stages" in phase and (chosen.get("rules") or chosen.get("recipe") != partition.LAST):
        raise UserError(f"{name}.stages has an effect with recipe={partition.LAST} only")


def _check_together(config: Config) -> None:
    """Refuse fields that another field would make meaningless, rather than ignore them."""
    values = leaves(config, FIELDS)

    def changed(*paths: str) -> bool:
        return any(values[path] != FIELDS[path].default for path in paths)

    for i, phase in enumerate(config.phases):
        _check_phase(f"config.phases[{i}]", phase, config)
    for table in (kinds.kind, kinds.faces, measures, _start, _length, _freezing, _regularizing, effects):
        for message, wrong in table(config, changed).items():
            if wrong:
                raise UserError(f"config.{message}")


def _start(config: Config, changed: Callable[..., bool]) -> Refused:
    loaded = config.init.source != "random"
    return {
        "init.path is not read with config.init.source=random; name its source": (
            not loaded and config.init.path and config.task in OF_PICTURES  # a text network's folder has the tokenizer
        ),
        "init.head=keep needs weights, not config.init.source=random": not loaded and config.init.head == "keep",
        f"init.rename has no effect with config.init.source={config.init.source}": (
            config.init.source in ("random", "tl_jax") and config.init.rename
        ),
        "init.layout has an effect with config.init.source=random only": loaded and changed("init.layout"),
        "data.train_examples and config.data.per_class are both set; leave one at 0": (
            config.data.train_examples and config.data.per_class
        ),
        "seed has no effect beside config.seeds; change those": config.seeds and changed("seed"),
        f"test_views={config.test_views} must be 1, 2 or 10": config.test_views not in views.COUNTS,
        "init.strength has an effect with config.init.head=logistic or ridge only": (
            changed("init.strength") and config.init.head not in ("logistic", "ridge")
        ),
    }


def _length(config: Config, changed: Callable[..., bool]) -> Refused:
    usual, names = FIELDS["epochs"].default, [phase["name"] for phase in config.phases]
    return {
        f"epochs has no effect beside phases; set config.phases[0].epochs, and this back to {usual:g}": (
            config.phases and config.epochs != usual
        ),
        "test_on=best needs a validation part; raise config.data.validation": (
            config.test_on == "best" and not config.data.validation
        ),
        f"phases have the same name twice or none ({', '.join(map(repr, names))}); give each its own": (
            len(set(names)) < len(names) or "" in names
        ),
        "patience, optim.ema and wise_ft have no effect with config.epochs=0": (
            not config.epochs and changed("patience", "optim.ema", "wise_ft")
        ),
        "patience needs a validation part; raise config.data.validation": (
            config.patience and not config.data.validation
        ),
        "wise_ft needs a validation part; raise config.data.validation": config.wise_ft and not config.data.validation,
        "wise_ft mixes with the head at the start; set config.init.head to logistic, ridge or keep": (
            config.wise_ft and config.init.head == "new"
        ),
    }


def _freezing(config: Config, changed: Callable[..., bool]) -> Refused:
    own = config.phases and all("recipe" in phase or "rules" in phase for phase in config.phases)
    recipes = {phase.get("recipe", config.freeze.recipe) for phase in config.phases} or {config.freeze.recipe}
    rules = config.freeze.rules or any(phase.get("rules") for phase in config.phases)
    return {
        "freeze.recipe has no effect: every phase has its own": own and changed("freeze.recipe"),
        "freeze.rules has no effect: every phase has its own": own and changed("freeze.rules"),
        "wise_ft mixes weights, which adapters of low rank are not; set it or config.adapt.kind, not both": (
            config.wise_ft and config.adapt.kind in ("lora", "parallel")
        ),
        "adapt.alpha and targets are those of config.adapt.kind=lora or parallel": (
            config.adapt.kind == "bottleneck" and changed("adapt.alpha", "adapt.targets")
        ),
        "freeze.stages has an effect with the recipe last_n_stages only": (
            changed("freeze.stages") and partition.LAST not in recipes
        ),
        "adapt.kind has no effect: nothing trains the adapters; set config.freeze.recipe=adapters": (
            config.adapt.kind and not rules and not recipes & {"adapters", "all", partition.LAST}
        ),
        "freeze.recipe=adapters needs config.adapt.kind": "adapters" in recipes and not config.adapt.kind,
        "adapt.rank, alpha and targets have an effect with config.adapt.kind only": (
            not config.adapt.kind and changed("adapt.rank", "adapt.alpha", "adapt.targets")
        ),
    }


def _regularizing(config: Config, changed: Callable[..., bool]) -> Refused:
    pretexts = [phase.get("objective") == "pretext" for phase in config.phases]
    compares = config.regularize.distill or config.regularize.delta
    others = [path for path in FIELDS if path.startswith("pretext.") and path != "pretext.name"]
    others = [path for path in others if config.task != "masked" or path != "pretext.share"]
    return {
        "regularize.co_tuning takes each picture's own label, which mixup and cutmix change; set one of them": (
            config.regularize.co_tuning and (config.regularize.mixup or config.regularize.cutmix)
        ),
        "augment.magnitude has an effect with config.augment.randaugment only": (
            changed("augment.magnitude") and not config.augment.randaugment
        ),
        "regularize.endpoints has an effect with config.regularize.distill or delta only": (
            config.regularize.endpoints and not compares
        ),
        "regularize.mixup and config.regularize.cutmix are both set; leave one at 0": (
            config.regularize.mixup and config.regularize.cutmix
        ),
        "pretext fields need config.pretext.name": not config.pretext.name and (any(pretexts) or changed(*others)),
        "pretext.name has no effect; set config.pretext.weight, or a phase with objective=pretext": (
            config.pretext.name and not config.pretext.weight and not any(pretexts)
        ),
        "pretext.temperature is that of config.pretext.name=simclr": (
            changed("pretext.temperature") and config.pretext.name != "simclr"
        ),
    }


def _check_members(config: Config) -> None:
    arms = config.arms
    if not all(len(arm) == 2 and isinstance(arm[0], str) and arm[0].isidentifier() for arm in arms):
        raise UserError(f"config.arms={arms!r} are not pairs (name, ((field, value), ...)) with names like words")
    if len({arm[0] for arm in arms}) < len(arms):
        raise UserError("config.arms has the same name twice; give each its own")
    seeds = config.seeds
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"config.seeds={seeds!r} must be different whole numbers from 0 on")
    for arm, _, member in members(config)[: max(1, len(arms))]:
        try:
            validate(member)
        except UserError as e:
            raise UserError(f"arm {arm!r}: {e}") from None
