"""Defaults and shared settings of recipes; those in ``recipes_dir()`` override a few fields."""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

from tl_jax import models
from tl_jax.config import recipes_dir, renames, schema
from tl_jax.config.schema import PHASE_FIELDS, Config, check_known, check_of_task, get_config
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.registry import IMPORT_HINT

__all__ = ["PHASE_FIELDS", "Config", "get_config"]

MEMBER = "member"  # folder of an ensemble's runs, laid out like those of an arm
PHASE_FIELD_NAME = re.compile(r"phases\[(\d+)\]\.(.*)")  # in flags and arms


def load(name: str) -> Any:
    """Return the module of the shipped recipe ``name``, such as "cifar_small"."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", recipes_dir() / f"{name}.py")
    if spec is None or spec.loader is None:
        raise UserError(f"no recipe {name} in {recipes_dir()}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(config: Config, variant: str, **choices: Callable[[Config], None]) -> Config:
    """Apply the variant of ``--config=FILE:VARIANT``; an empty one leaves the recipe unchanged."""
    if variant:
        if not choices:
            raise UserError(f"{config.name} has no variants; remove :{variant}, or pass variants to recipe.variants")
        if variant not in choices:
            raise UserError(f"{config.name} has no variant {variant!r}; {nearest(variant, choices)}; {IMPORT_HINT}")
        config.name += f"_{variant}"
        choices[variant](config)
    return config


def fine_tuning(config: Config) -> None:
    """Set the defaults of accelerator recipes: light augmentation, AdamW with warmup and cosine decay, clipping."""
    config.augment.flip = True
    if "crop_pad" in config.augment:  # not for boxes
        config.augment.crop_pad = 4
    config.batch_size = 128
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.05
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0


def fine_tuning_text(config: Config) -> None:
    """Set the defaults of text recipes: a hub BERT, AdamW with warmup and linear decay, three epochs."""
    config.model.name = "bert"
    config.init.source = "huggingface"
    config.init.path = "google-bert/bert-base-uncased"
    config.batch_size = 32
    config.eval_batch_size = 128
    config.epochs = 3.0
    config.optim.lr = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0


def smoke_text(config: Config) -> None:
    """Shrink a text recipe to seconds: the small shipped BERT, and 64 texts from installed libraries."""
    smoke(config)
    config.input.max_length = 32
    config.init.source = "tl_jax"
    config.init.path = ""
    config.optim.lr = 1e-3


def policy(config: Config) -> None:
    """Set the defaults of policy recipes: PPO, Adam with linear decay, random initialization."""
    config.model.name = models.POLICY
    config.init.source = "random"
    config.batch_size = 2048
    config.epochs = 1.0
    config.optim.schedule = "linear"
    config.optim.epsilon = 1e-5
    config.optim.clip_norm = 0.5
    config.save_every = 0.1


def smoke_policy(config: Config) -> None:
    """Shrink a policy recipe to seconds."""
    config.smoke = True
    config.rl.total_timesteps = 4096
    config.rl.num_envs = 8
    config.rl.ppo_epochs = 2
    config.rl.episodes = 4
    config.batch_size = 512
    config.save_every = 0.5
    config.log_every = 2


def smoke(config: Config) -> None:
    """Shrink a recipe to seconds: 64 examples, synthetic without ``data.dir``, and one epoch per phase."""
    config.smoke = True
    config.data.generate = True
    config.data.train_examples = 64
    if "test_examples" in config.data:  # faces are split by person
        config.data.test_examples = 64
    config.batch_size = 16
    config.eval_batch_size = 64
    if "size" in config.input:  # images
        config.input.size = 32
    config.min_steps = 0
    if not config.phases:
        config.epochs = 2.0
    config.phases = tuple({**phase, "epochs": 1.0} for phase in config.phases)
    config.log_every = 2


def override(config: Config, changes: tuple[tuple[str, Any], ...]) -> Config:
    """Return a copy of ``config`` with ``(field, value)`` changes; raise a UserError for one that is invalid."""
    config = schema.edit(config)
    for path, value in changes:
        path, value = renames.current_name(path), renames.rename_entries(path, value)
        if path == "task" and value != config.task:
            raise UserError(f"config.task={value!r}: start from tl_jax.config.recipe.get_config({value!r})")
        if phase := PHASE_FIELD_NAME.fullmatch(path):
            set_in_phase(config, int(phase[1]), phase[2], value)
            continue
        check_of_task(path, config.task)
        try:
            config.update_from_flattened_dict({path: value})
        except (TypeError, ValueError) as e:
            raise UserError(f"config.{path}={value!r}: wrong type ({e}); pass a value like the default") from None
    return config


def set_in_phase(config: Config, index: int, name: str, value: Any) -> None:
    """Set a field of phase ``index`` of ``config``, counted from 0, whether or not the phase sets it already.

    Raises:
        UserError: unknown phase or field.
    """
    check_known(name, PHASE_FIELDS, f"config.phases[{index}].")
    count = len(config.phases)
    if index >= count:
        available = f"{count} phase{'s' * (count != 1)}, phases[0] to phases[{count - 1}]" if count else "no phases"
        raise UserError(
            f"config.phases[{index}]: {config.name} has {available}; set one of these, or all of config.phases"
        )
    phases = [dict(phase) for phase in config.phases]
    phases[index][name] = value
    config.phases = tuple(phases)


def with_task(config: Config, task: str) -> Config:
    """Return the defaults of a task with the values of ``config`` for the fields that it shares."""
    other = get_config(task)
    values = schema.flatten_config(config, schema.all_fields())
    known = schema.TASKS[task].fields()
    with other.unlocked():  # model.options holds any argument of the model class
        other.update_from_flattened_dict({k: v for k, v in values.items() if k in known and k != "task"})
    return other


def comparison_runs(config: Config) -> list[tuple[str, int, Config]]:
    """Return (arm, seed, configuration) of each run of a comparison or ensemble, seed by seed."""
    if config.ensemble:
        return _ensemble_runs(config)
    arms = config.arms or ((config.name, ()),)
    seeds = config.seeds or (config.seed,)
    single_run = (("seeds", ()), ("arms", ()))
    return [
        (arm, seed, override(config, (*changes, *single_run, ("seed", seed))))
        for seed in seeds
        for arm, changes in arms
    ]


def _ensemble_runs(config: Config) -> list[tuple[str, int, Config]]:
    """Return (MEMBER, seed, configuration) of each network of an ensemble.

    The networks are not calibrated: the mean of calibrated probabilities is underconfident, so one temperature is
    fitted to the mean (Rahaman and Thiery 2021, arXiv:2007.08792).
    """
    is_calibrated = "calibrate" in schema.TASKS[config.task].fields()
    single_run = (("ensemble", 0), *((("calibrate", False),) if is_calibrated else ()))
    return [
        (MEMBER, config.seed + i, override(config, (*single_run, ("seed", config.seed + i), ("member", i))))
        for i in range(config.ensemble)
    ]
