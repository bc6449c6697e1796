"""Every field of a configuration, once: default, meaning, unit, choices. Recipes beside this file override a few."""

from collections.abc import Callable
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from tl_jax import models
from tl_jax.config import Field, check_known, check_value, leaves
from tl_jax.errors import UserError, nearest
from tl_jax.specs import SCALINGS
from tl_jax.transfer import phases
from tl_jax.transfer.partition import RECIPES
from tl_jax.weights.catalog import CATALOG

Config = Any  # a ConfigDict, whose own annotations give each field the union of all types that one may have
SOURCES = tuple(dict.fromkeys(source for _, source in CATALOG))

FIELDS = {
    "name": Field("base", "name of the recipe, for folders and summaries"),
    "seed": Field(0, "of the new head, the order and augmentation of examples, and the parts cut from train", low=0),
    "task": Field("image", "kind of task", ("image",)),
    # What is compared: every arm is run with every seed, and one summary and picture made of all.
    "seeds": Field((), "seeds to repeat the run with; empty for the one in `seed`"),
    "arms": Field((), "pairs (name, ((field, value), ...)): variants of this configuration to compare"),
    # The network and where its weights come from.
    "model.name": Field("resnet50", "network", models.names()),
    "model.num_classes": Field(0, "outputs of the head; 0 takes the number from the data", low=0),
    "model.endpoint": Field("", "part of the network on which the new head sits, such as stage3; empty for the last"),
    "model.channels": Field(3, "of the network's input; 1 turns pictures to grey", low=1, high=3),
    "model.dtype": Field("float32", "of the computation; parameters are always float32", ("float32", "bfloat16")),
    "model.options": Field({}, "further attributes of the model class, by name"),
    "init.source": Field("keras", "whose weights are loaded", (*SOURCES, "tl_jax", "random")),
    "init.layout": Field("keras", "source whose layout random weights take", (*SOURCES, "tl_jax")),
    "init.path": Field("", "local weights file; empty takes the embedded file or downloads the published one"),
    "init.head": Field("new", "draw a new head or keep the one in the file", ("new", "keep")),
    # Data.
    "data.name": Field("cifar10", "digits, gratings, folder, flowers, or any TFDS set with image and label"),
    "data.dir": Field("", "TFDS folder (empty: TFDS' own default), or the class folders of folder and flowers"),
    "data.generate": Field(False, "draw pictures by a generator where data.dir is empty (for smoke runs)"),
    "data.validation": Field(0.1, "share of train held out for validation, drawn by seed", low=0.0, high=0.9),
    "data.train_examples": Field(0, "random training examples kept; 0 for all", low=0),
    "data.per_class": Field(0, "random training examples kept of each class; 0 for all", low=0),
    "data.test_examples": Field(0, "first test examples used; 0 for all", low=0),
    # From stored pixels to network inputs.
    "input.size": Field(0, "side of the network's input in pixels; 0 takes that of the weights", low=0),
    "input.interpolation": Field("", "resize method; empty takes that of the weights", ("", "bilinear", "bicubic")),
    "input.crop": Field(1.0, "share of the shortest side that the centre crop keeps", low=0.1, high=1.0),
    "input.scaling": Field("spec", "pixel scaling; spec takes that of the weights", ("spec", *SCALINGS)),
    "augment.flip": Field(False, "mirror half of the training pictures left to right"),
    "augment.crop_pad": Field(0, "border in pixels of the stored picture before a random crop; 0 for none", low=0),
    "augment.rotate": Field(0.0, "largest rotation in degrees, either way; 0 for none", low=0.0, high=180.0),
    "batch_size": Field(64, "training examples a step, over all devices", low=1),
    "eval_batch_size": Field(256, "examples an evaluation step, over all devices", low=1),
    # What trains, how, and for how long.
    "freeze.recipe": Field("all", "what trains", tuple(RECIPES)),
    "freeze.rules": Field((), "pairs (regex over leaf paths, 'frozen' or a group); not empty, they replace the recipe"),
    "freeze.batch_stats": Field(
        "auto", "BatchNorm uses running statistics: where frozen, nowhere, everywhere", ("auto", "train", "frozen")
    ),
    "optim.name": Field("adam", "optimizer; with weight_decay adam is AdamW", ("adam", "sgd")),
    "optim.lr": Field(1e-3, "peak learning rate", low=0.0),
    "optim.schedule": Field("constant", "learning rate over a phase, after the warm-up", ("constant", "cosine")),
    "optim.warmup": Field(0.0, "share of a phase in which the rate rises linearly", low=0.0, high=1.0),
    "optim.weight_decay": Field(0.0, "of kernels", low=0.0),
    "optim.momentum": Field(0.9, "of sgd", low=0.0, high=1.0),
    "optim.epsilon": Field(1e-8, "of adam (Keras has 1e-7)", low=0.0),
    "optim.clip_norm": Field(0.0, "largest norm of the trained leaves' gradients; 0 for no clipping", low=0.0),
    "loss.label_smoothing": Field(0.0, "probability spread evenly over the classes", low=0.0, high=1.0),
    "epochs": Field(10.0, "length of the run where there are no phases, in passes over the training part", low=1e-6),
    "phases": Field((), "dicts name, epochs, recipe or rules, lr_scale (factor on optim.lr), run one after another"),
    # What is written down.
    "save_every": Field(1.0, "epochs between checkpoints, each after an evaluation on the validation part", low=1e-6),
    "test_on": Field("last", "checkpoint to test: the last, or the best on validation", ("last", "best")),
    "log_every": Field(20, "steps between rows of training metrics", low=1),
}

# Of one entry of ``phases``; name and epochs must be there, what is left out is taken from the whole configuration.
PHASE_FIELDS = {
    "name": Field("", "for logs"),
    "epochs": Field(1.0, "length of the phase in passes over the training part", low=1e-6),
    "recipe": Field("all", "what trains", tuple(RECIPES)),
    "rules": Field((), "instead of a recipe, as freeze.rules"),
    "lr_scale": Field(1.0, "factor on optim.lr", low=0.0),
}


def get_config() -> Config:
    """Return the defaults, locked: assigning an unknown field is an error that suggests the nearest name."""
    nested = traverse_util.unflatten_dict({path: field.default for path, field in FIELDS.items()}, sep=".")
    return ConfigDict(nested).lock()


def variants(config: Config, variant: str, **known: Callable[[Config], None]) -> Config:
    """Apply the variant that stands behind the colon of ``--config=FILE:VARIANT``; empty is the recipe as it is."""
    if variant:
        if variant not in known:
            raise UserError(f"{config.name} has no variant {variant!r}; {nearest(variant, known)}")
        config.name += f"_{variant}"
        known[variant](config)
    return config


def fine_tuning(config: Config) -> None:
    """Set what the recipes for accelerators share: light augmentation, AdamW with warm-up and cosine, clipping."""
    config.augment.flip = True
    config.augment.crop_pad = 4
    config.batch_size = 128
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.05
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0


def smoke(config: Config) -> None:
    """Shrink a recipe to seconds: 64 examples, from ``data.dir`` if given and drawn if not, and an epoch a phase."""
    config.data.generate = True
    config.data.train_examples = 64
    config.data.test_examples = 64
    config.batch_size = 16
    config.eval_batch_size = 64
    config.input.size = 32
    if not config.phases:
        config.epochs = 2.0
    config.phases = tuple({**phase, "epochs": 1.0} for phase in config.phases)
    config.log_every = 2


def override(config: Config, changes: tuple[tuple[str, Any], ...]) -> Config:
    """Return a copy of ``config`` with ``(field, value)`` pairs put in; a UserError names what does not fit."""
    config = ConfigDict(config.copy_and_resolve_references())
    for path, value in changes:
        check_known(path, FIELDS)
        try:
            config.update_from_flattened_dict({path: value})
        except (TypeError, ValueError) as e:
            raise UserError(f"config.{path}={value!r} does not fit: {e}") from None
    return config


def members(config: Config) -> list[tuple[str, int, Config]]:
    """Return (arm, seed, configuration) of every run that a comparison is made of, seed by seed."""
    arms = config.arms or ((config.name, ()),)
    seeds = config.seeds or (config.seed,)
    alone = (("seeds", ()), ("arms", ()))
    return [
        (arm, seed, override(config, (*changes, *alone, ("seed", seed)))) for seed in seeds for arm, changes in arms
    ]


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
    phases.resolve(config, 1)  # its own errors: malformed rules
    if config.seeds or config.arms:
        _check_members(config)


def _check_phase(name: str, phase: Any) -> None:
    if not hasattr(phase, "items"):
        raise UserError(f"{name}={phase!r} is not a dict such as {{'name': 'head', 'epochs': 2.0, 'recipe': 'head'}}")
    for key, value in phase.items():
        check_known(key, PHASE_FIELDS, f"{name}.")
        check_value(f"{name}.{key}", value, PHASE_FIELDS[key])
    if not {"name", "epochs"} <= set(phase):
        raise UserError(f"{name} needs a name and a number of epochs")
    if "recipe" in phase and phase.get("rules"):
        raise UserError(f"{name} has a recipe and rules; leave one out")


def _check_together(config: Config) -> None:
    """Refuse fields that another field would make meaningless, rather than ignore them."""

    def changed(path: str) -> bool:
        return leaves(config, FIELDS)[path] != FIELDS[path].default

    for i, phase in enumerate(config.phases):
        _check_phase(f"config.phases[{i}]", phase)
    own = config.phases and all("recipe" in phase or "rules" in phase for phase in config.phases)
    loaded = config.init.source != "random"
    usual = FIELDS["epochs"].default
    refused = {
        f"epochs has no effect beside phases; set config.phases[0].epochs, and this back to {usual:g}": (
            config.phases and config.epochs != usual
        ),
        "freeze.recipe has no effect: every phase has its own": own and changed("freeze.recipe"),
        "freeze.rules has no effect: every phase has its own": own and changed("freeze.rules"),
        "init.path is not read with config.init.source=random; name its source": not loaded and config.init.path,
        "init.head=keep needs weights, not config.init.source=random": not loaded and config.init.head == "keep",
        "init.layout has an effect with config.init.source=random only": loaded and changed("init.layout"),
        "test_on=best needs a validation part; raise config.data.validation": (
            config.test_on == "best" and not config.data.validation
        ),
        "data.train_examples and config.data.per_class are both set; leave one at 0": (
            config.data.train_examples and config.data.per_class
        ),
        "seed has no effect beside config.seeds; change those": config.seeds and changed("seed"),
    }
    for message, wrong in refused.items():
        if wrong:
            raise UserError(f"config.{message}")


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
