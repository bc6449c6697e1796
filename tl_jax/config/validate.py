"""Validate configurations before anything is loaded: values, contradictions, and fields without effect.

A field that the task lacks, or that another field disables, is refused, so that no result is attributed to it.
"""

from collections.abc import Callable
from typing import Any

from tl_jax.config.recipe import comparison_runs
from tl_jax.config.schema import PHASE_FIELDS, Config, check_known, check_of_task, check_value, flatten_config, freeze
from tl_jax.pretrained import prefixes
from tl_jax.train.run_config import AUTO, RunConfig
from tl_jax.train.task import TASKS, Conflicts
from tl_jax.transfer import freeze as freeze_rules
from tl_jax.transfer import phases
from tl_jax.transfer.optimizer import OptimConfig
from tl_jax.transfer.phases import PRETEXT, PhaseConfig
from tl_jax.transfer.regularizers import REGULARIZERS
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.registry import IMPORT_HINT


def task_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    """Return the conflicts of fields with the task: message -> whether it applies."""
    task, kind = TASKS[config.task], config.task
    return {
        f"model.name={config.model.name} is no network for task={kind}; choose one of {', '.join(task.networks())}": (
            config.model.name not in task.networks()
        ),
        f"init.source={config.init.source} has no weights for task={kind}; choose one of {', '.join(task.sources())}": (
            config.init.source not in task.sources()
        ),
        **task.conflicts(config, changed),
    }


# Fields that act on the backbone, without effect if only the head is trained.
BACKBONE_FIELDS = ("optim.layer_decay", "regularize.stochastic_norm")
# Terms that change every image in each step.
PER_STEP_TERMS = ("mixup", "cutmix", "stochastic_norm", "drop_path")
TWO_VIEW_PRETEXTS = ("simclr", "simsiam")


def effect_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    """Return the fields that other fields disable: message -> whether it applies."""
    return {
        **_training_conflicts(config, changed),
        **(_caching_conflicts(config, changed) if hasattr(config, "cache") else {}),
        **_pretext_conflicts(config, changed),
    }


def _sets(phase: PhaseConfig, *names: str) -> bool:
    """Return whether a phase sets one of these fields."""
    return any(getattr(phase, name) is not None for name in names)


def _training_conflicts(config: Any, changed: Callable[..., bool]) -> Conflicts:
    recipes, phases = _freeze_recipes(config), config.phases
    penalties = [f"regularize.{name}" for name, penalty in REGULARIZERS.items() if penalty.on_backbone]
    unused = [path for path in (*BACKBONE_FIELDS, *penalties) if recipes == {"head"} and changed(path)]
    untrained = [path for path in config.fields() if path.startswith("regularize.") and changed(path)]
    overridden = [
        path for path in ("freeze.batch_stats", "optim.layer_decay", "optim.lr_multipliers")
        if phases and changed(path) and all(_sets(phase, path.partition(".")[2]) for phase in phases)
    ]  # fmt: skip
    defaults = OptimConfig()
    return {
        f"{(unused or [''])[0]} has no effect if only the head is trained; choose another config.freeze.recipe": unused,
        "regularize.l2_sp has no effect if only adapters and the head are trained; set config.regularize.l2_sp_head": (
            recipes and recipes <= {"head", "adapters"} and changed("regularize.l2_sp")
        ),
        f"{(untrained or [''])[0]} has no effect with config.epochs=0": (
            untrained and not config.epochs and not phases
        ),
        f"optim.momentum has an effect with config.optim.name=sgd only; set it back to {defaults.momentum:g}": (
            changed("optim.momentum") and config.optim.name != "sgd"
        ),
        f"optim.epsilon has an effect with config.optim.name=adam only; set it back to {defaults.epsilon:g}": (
            changed("optim.epsilon") and config.optim.name != "adam"
        ),
        f"{(overridden or [''])[0]} has no effect: every phase sets its own": overridden,
    }


def _freeze_recipes(config: RunConfig) -> set[str]:
    """Return the freezing recipes of the supervised phases; "" stands for rules."""
    phases = config.phases or (PhaseConfig(),)
    freezing = [phase.freezing(config.freeze) for phase in phases if phase.objective != PRETEXT]
    return {"" if freeze_config.rules else freeze_config.recipe for freeze_config in freezing}


def _caching_conflicts(config: Any, changed: Callable[..., bool]) -> Conflicts:
    unused = [path for path in ("cache.dir", "cache.gigabytes", "cache.views") if changed(path)]
    augmented = any(path.startswith("augment.") and changed(path) for path in config.fields())
    comparing = [name for name, penalty in REGULARIZERS.items() if penalty.compares_maps]
    per_step = [name for name in (*PER_STEP_TERMS, *comparing) if changed(f"regularize.{name}")]
    return {
        f"{(unused or [''])[0]} has no effect with config.cache.features=off": unused
        and config.cache.features == "off",
        "cache.views has no effect without augmentation; set config.augment, or leave it at 0": (
            config.cache.views and not augmented
        ),
        f"cache.views has no effect with config.regularize.{(per_step or [''])[0]}, which changes images each step": (
            config.cache.views and per_step
        ),
        "cache.views has no effect with config.pretext.weight or test_views": (
            config.cache.views and (config.pretext.weight or changed("test_views"))
        ),
    }


def _pretext_conflicts(config: Any, changed: Callable[..., bool]) -> Conflicts:
    name = config.pretext.name
    supervised = not config.phases or any(phase.objective != PRETEXT for phase in config.phases)
    view_fields = [path for path in ("pretext.width", "pretext.crop", "pretext.jitter") if changed(path)]
    return {
        f"{(view_fields or [''])[0]} has an effect with config.pretext.name=simclr or simsiam only": (
            view_fields and name and name not in TWO_VIEW_PRETEXTS
        ),
        "pretext.weight has no effect: no phase is supervised": config.pretext.weight and not supervised,
    }


def validate(config: Config | RunConfig) -> RunConfig:
    """Return the frozen configuration; refuse unknown fields, values out of range and fields without effect.

    Nothing is loaded.

    Raises:
        UserError: names the field, its value, and the allowed values.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task!r} is unknown; {nearest(str(config.task), TASKS)}; {IMPORT_HINT}")
    fields = TASKS[config.task].fields()
    if isinstance(config, RunConfig):  # has all fields of its class
        defaults = config.fields()
        values = {p: v for p, v in config.flat().items() if p in fields or v != defaults[p].default}
    else:
        values = flatten_config(config, fields)
    for path in values.keys() - fields.keys():
        check_of_task(path, config.task)
    for path, field in fields.items():
        if path not in values:
            raise UserError(f"config.{path} is missing; start recipes from tl_jax.config.recipe.get_config()")
        check_value(f"config.{path}", values[path], field)
    for i, phase in enumerate(config.phases):
        _check_phase(f"config.phases[{i}]", phase)
    frozen = freeze(config)
    _check_conflicts(frozen)
    prefixes.check_renames(frozen.init.rename)
    freeze_rules.check_rules([(frozen.adapt.targets, "config.adapt.targets")])
    task = TASKS[frozen.task]
    phases.resolve(frozen, {"train": 1, "unlabelled": 1}, task.stage_names(frozen), task.extra_heads)  # check rules
    if frozen.seeds or frozen.arms:
        _check_arms(config)
    return frozen


def _check_phase(name: str, phase: Any) -> None:
    """Refuse an invalid entry of ``phases``."""
    if isinstance(phase, PhaseConfig):
        phase = phase.to_dict()
    if not hasattr(phase, "items"):
        raise UserError(f"{name}={phase!r} is not a dict such as {{'name': 'head', 'epochs': 2.0, 'recipe': 'head'}}")
    for key, value in phase.items():
        check_known(key, PHASE_FIELDS, f"{name}.")
        check_value(f"{name}.{key}", value, PHASE_FIELDS[key])
    if not {"name", "epochs"} <= set(phase):
        raise UserError(f"{name}: name or epochs is missing; set both")
    if "recipe" in phase and phase.get("rules"):
        raise UserError(f"{name} has a recipe and rules; remove one")


def _check_conflicts(config: RunConfig) -> None:
    """Refuse fields that another field disables, rather than ignore them."""
    values, fields = config.flat(), config.fields()

    def changed(*paths: str) -> bool:
        """Return whether one of the fields, if the task has it, differs from its default."""
        return any(values[path] != fields[path].default for path in paths if path in fields)

    for i, phase in enumerate(config.phases):
        freezing = phase.freezing(config.freeze)
        if phase.stages is not None and (freezing.rules or freezing.recipe != freeze_rules.LAST_N_STAGES):
            raise UserError(f"config.phases[{i}].stages has an effect with recipe={freeze_rules.LAST_N_STAGES} only")
    for table in (
        task_conflicts,
        _init_conflicts,
        _method_conflicts,
        _ensemble_conflicts,
        _length_conflicts,
        _freezing_conflicts,
        _regularizing_conflicts,
        effect_conflicts,
    ):
        for message, applies in table(config, changed).items():
            if applies:
                raise UserError(f"config.{message}")


def _init_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    loaded, is_probe = config.init.source != "random", config.init.head in ("logistic", "ridge")
    return {
        "init.path has no effect with config.init.source=random; set its source": (
            not loaded and config.init.path and not TASKS[config.task].random_files
        ),
        "init.head=keep needs pretrained weights; change config.init.source=random": not loaded
        and config.init.head == "keep",
        f"init.rename has no effect with config.init.source={config.init.source}": (
            config.init.source in ("random", "tl_jax") and config.init.rename
        ),
        "init.layout has an effect with config.init.source=random only": loaded and changed("init.layout"),
        "data.train_examples and config.data.per_class are both set; leave one at 0": (
            config.data.train_examples and config.data.per_class
        ),
        "seed has no effect with config.seeds; change config.seeds": config.seeds and changed("seed"),
        "init.strength has an effect with config.init.head=logistic or ridge only": (
            changed("init.strength") and not is_probe
        ),
        "init.folds has an effect with config.init.head=logistic or ridge, and config.init.strength=0, only": (
            changed("init.folds") and (not is_probe or changed("init.strength"))
        ),
        "init.start_loss has an effect with config.init.head=logistic or ridge, and training, only": (
            changed("init.start_loss") and not (is_probe and config.trains)
        ),
        "init.folds=1 leaves no validation fold; set it to 2 or more, or to 0": config.init.folds == 1,
    }


def _method_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    task, auto = TASKS[config.task], config.method == AUTO
    return {
        f"method=auto needs one class per example, which config.task={config.task} lacks; leave it empty": (
            auto and not task.can_choose_method
        ),
        "method=auto needs pretrained weights; change config.init.source=random": (
            auto and config.init.source == "random"
        ),
        "method=auto sets config.phases; leave one of them empty": auto and config.phases,
        "method=auto sets config.wise_ft; leave one of them unset": auto and config.wise_ft,
        "method=auto is supervised; leave config.pretext.name empty": auto and config.pretext.name,
        "method=auto has no effect with config.epochs=0; change one of them": auto and not config.epochs,
        "method=auto fits the head; leave config.init.head=new": auto
        and task.can_choose_method
        and config.init.head != "new",
        "budget has an effect with config.method=auto only": config.budget and not auto,
    }


def _ensemble_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    can_average, size = TASKS[config.task].can_average, config.ensemble
    kinds = " or ".join(kind for kind, task in TASKS.items() if task.can_average)
    return {
        f"ensemble={size}: ensembles need one class per example ({kinds}), which config.task={config.task} lacks; "
        "leave it at 0": size and not can_average,
        "ensemble=1 is no ensemble; set it to 2 or more, or to 0 for one run": size == 1,
        "ensemble sets its seeds, from config.seed on; leave config.seeds and config.arms empty": (
            size and (config.seeds or config.arms)
        ),
        f"member={config.member} is set by config.ensemble in its runs; leave it at 0": (
            config.member and (size or config.seeds or config.arms or not can_average)
        ),
        f"member={config.member}: the first seed of its ensemble would be {config.seed - config.member}; raise "
        "config.seed, or leave member at 0": config.member > config.seed,
    }


def _length_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    default, names = RunConfig().epochs, [phase.name for phase in config.phases]
    return {
        f"epochs has no effect with config.phases; set config.phases[0].epochs, and this back to {default:g}": (
            config.phases and config.epochs != default
        ),
        "min_steps has no effect with config.phases; set config.phases[0].epochs": config.min_steps and config.phases,
        "eval_checkpoint=best needs a validation split; raise config.data.validation": (
            config.eval_checkpoint == "best" and not config.data.validation
        ),
        "phases has one named start, which is reserved for the scores before training; rename it": ("start" in names),
        f"phases have duplicate or empty names ({', '.join(map(repr, names))}); give each its own": (
            len(set(names)) < len(names) or "" in names
        ),
        "patience, optim.ema and wise_ft have no effect with config.epochs=0": (
            not config.epochs and changed("patience", "optim.ema", "wise_ft")
        ),
        "patience needs a validation split; raise config.data.validation": (
            config.patience and not config.data.validation
        ),
        "wise_ft needs a validation split; raise config.data.validation, or set config.wise_ft_share": (
            config.wise_ft and not config.data.validation and not config.wise_ft_share
        ),
        "wise_ft_share has an effect with config.wise_ft only": config.wise_ft_share and not config.wise_ft,
        "wise_ft needs a useful head at the start; set config.init.head to logistic, ridge or keep": (
            config.wise_ft and config.init.head == "new"
        ),
    }


def _freezing_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    own_rules = config.phases and all(_sets(phase, "recipe", "rules") for phase in config.phases)
    recipes = {phase.recipe or config.freeze.recipe for phase in config.phases} or {config.freeze.recipe}
    rules = config.freeze.rules or any(phase.rules for phase in config.phases)
    return {
        "freeze.recipe has no effect: every phase sets its own": own_rules and changed("freeze.recipe"),
        "freeze.rules has no effect: every phase sets its own": own_rules and changed("freeze.rules"),
        "wise_ft cannot interpolate low-rank adapters; set it or config.adapt.kind, not both": (
            config.wise_ft and config.adapt.kind in ("lora", "parallel")
        ),
        "adapt.alpha and targets have an effect with config.adapt.kind=lora or parallel only": (
            config.adapt.kind == "bottleneck" and changed("adapt.alpha", "adapt.targets")
        ),
        "freeze.stages has an effect with config.freeze.recipe=last_n_stages only": (
            changed("freeze.stages") and freeze_rules.LAST_N_STAGES not in recipes
        ),
        "adapt.kind has no effect: the adapters are frozen; set config.freeze.recipe=adapters": (
            config.adapt.kind and not rules and not recipes & {"adapters", "all", freeze_rules.LAST_N_STAGES}
        ),
        "freeze.recipe=adapters needs config.adapt.kind": "adapters" in recipes and not config.adapt.kind,
        "adapt.rank, alpha and targets have an effect with config.adapt.kind only": (
            not config.adapt.kind and changed("adapt.rank", "adapt.alpha", "adapt.targets")
        ),
    }


def _regularizing_conflicts(config: RunConfig, changed: Callable[..., bool]) -> Conflicts:
    is_pretext = [phase.objective == PRETEXT for phase in config.phases]
    comparing = [name for name, penalty in REGULARIZERS.items() if penalty.compares_maps]
    compares_features = config.regularize.compares_maps
    pretext_fields = [path for path in config.fields() if path.startswith("pretext.") and path != "pretext.name"]
    pretext_fields = [path for path in pretext_fields if path not in TASKS[config.task].pretext_fields]
    return {
        "regularize.co_tuning needs one label per image, which mixup and cutmix change; set one of them": (
            changed("regularize.co_tuning") and (config.regularize.mixup or config.regularize.cutmix)
        ),
        "augment.magnitude has an effect with config.augment.randaugment only": (
            changed("augment.magnitude") and not changed("augment.randaugment")
        ),
        f"regularize.endpoints has an effect with config.regularize.{', '.join(comparing)} only": (
            config.regularize.endpoints and not compares_features
        ),
        "regularize.mixup and config.regularize.cutmix are both set; leave one at 0": (
            config.regularize.mixup and config.regularize.cutmix
        ),
        "pretext fields need config.pretext.name; set it": not config.pretext.name
        and (any(is_pretext) or changed(*pretext_fields)),
        "pretext.name has no effect; set config.pretext.weight, or a phase with objective=pretext": (
            config.pretext.name and not config.pretext.weight and not any(is_pretext)
        ),
        "pretext.temperature has an effect with config.pretext.name=simclr only": (
            changed("pretext.temperature") and config.pretext.name != "simclr"
        ),
    }


def _check_arms(config: Config) -> None:
    """Refuse malformed arms and seeds, and arms whose changes give an invalid configuration."""
    arms = config.arms
    if not all(len(arm) == 2 and isinstance(arm[0], str) for arm in arms):
        raise UserError(f"config.arms={arms!r}: malformed; write pairs (name, ((field, value), ...))")
    if unfit := [arm[0] for arm in arms if not arm[0].isidentifier()]:
        raise UserError(f"config.arms, arm {unfit[0]!r}: the name is no word; use letters, digits and _")
    if len({arm[0] for arm in arms}) < len(arms):
        raise UserError("config.arms has the same name twice; give each its own")
    seeds = config.seeds
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"config.seeds={seeds!r}: malformed; write different integers from 0 on")
    for arm, _, member in comparison_runs(config)[: max(1, len(arms))]:
        try:
            validate(member)
        except UserError as e:
            raise UserError(f"arm {arm!r}: {e}") from None
        if member.ensemble or member.member:  # an arm has one run per seed
            raise UserError(f"arm {arm!r}: config.ensemble is not for arms; train the ensemble on its own")
