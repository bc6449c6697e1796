"""The configuration of a run in an editable and a frozen form, generated from the options of each component.

Recipes and flags change the editable form, an ``ml_collections.ConfigDict`` with the fields of the task. ``freeze``
converts it to the dataclasses that the library uses.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from tl_jax import tasks  # noqa: F401  # registers the tasks
from tl_jax.config.options import Field
from tl_jax.config.renames import RenamingDict
from tl_jax.train.run_config import RunConfig
from tl_jax.train.task import TASKS
from tl_jax.transfer.phases import PhaseConfig
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.registry import IMPORT_HINT

Config = Any  # a ConfigDict, whose annotations are too wide
DEFAULT_TASK = "image"
PHASE_FIELDS = PhaseConfig.fields()


def get_config(task: str = DEFAULT_TASK) -> Config:
    """Return the defaults of a task, locked: setting an unknown field raises an error with the nearest name."""
    fields = TASKS[task].fields()
    defaults = {path: field.default for path, field in fields.items()} | {"task": task}
    nested = traverse_util.unflatten_dict(defaults, sep=".")
    config = RenamingDict()
    for name, value in nested.items():
        config[name] = RenamingDict(value) if isinstance(value, dict) and name not in fields else value
    return config.lock()


def freeze(config: Any) -> RunConfig:
    """Return a configuration as immutable dataclasses; a frozen one is returned unchanged."""
    return config if isinstance(config, RunConfig) else TASKS[config["task"]].config_class.from_dict(config)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a frozen configuration as nested dicts with the fields of its task."""
    values, fields = config.flat(), TASKS[config.task].fields()
    return traverse_util.unflatten_dict({path: values[path] for path in fields}, sep=".")


def edit(config: Any) -> Config:
    """Return an editable copy of a configuration, frozen or not."""
    if not isinstance(config, RunConfig):
        return ConfigDict(config.copy_and_resolve_references())
    editable = get_config(config.task)
    with editable.unlocked():  # model.options holds any argument of the model class
        editable.update(ConfigDict(to_dict(config)))
    return editable


def unused_fields(task: str) -> set[str]:
    """Return the fields that only other tasks have, and the groups without a field of this task."""
    used, known = TASKS[task].fields(), all_fields()
    groups = {path.rpartition(".")[0] for path in known} - {path.rpartition(".")[0] for path in used}
    return (known.keys() - used.keys()) | groups


def default_workdir(config: Any) -> str:
    """Return ``runs/NAME-HASH``, with a hash of the configuration."""
    text = json.dumps(to_dict(freeze(config)), sort_keys=True, default=str)
    return f"runs/{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def flatten_config(config: Any, fields: Mapping[str, Field], prefix: str = "") -> dict[str, Any]:
    """Return dotted path -> value of a nested configuration; a dict that is itself a field is kept."""
    values = {}
    for key, value in config.items():
        path = prefix + key
        if isinstance(value, (ConfigDict, dict)) and path not in fields:
            values.update(flatten_config(value, fields, path + "."))
        else:
            values[path] = value
    return values


def check_known(path: str, fields: Mapping[str, Field], prefix: str = "config.") -> None:
    """Raise a UserError for an unknown field, with the nearest name or the fields of its group."""
    if path not in fields:
        group = path.rpartition(".")[0]
        siblings = [field for field in fields if field.rpartition(".")[0] == group]
        same_name = [field for field in fields if field.rpartition(".")[2] == path]
        matches = difflib.get_close_matches(path, fields, n=1, cutoff=0.85) or same_name[:1]
        advice = f"did you mean {matches[0]!r}?" if matches else f"choose one of {', '.join(siblings or fields)}"
        raise UserError(f"unknown field {prefix}{path}; {advice}")


def set_field(config: Any, path: str, value: Any) -> None:
    """Set a field of a configuration, such as "optim.lr"; one text is a tuple of one where a tuple is expected.

    Raises:
        UserError: The field is unknown, or the value is of another type.
    """
    check_of_task(path, config.task)
    field = TASKS[config.task].fields()[path]
    value = str(value) if isinstance(value, Path) else value
    value = (value,) if isinstance(field.default, tuple) and isinstance(value, str) else value
    try:
        config.update_from_flattened_dict({path: value})
    except TypeError:
        check_value(f"config.{path}", value, field)
        raise


def check_of_task(path: str, task: str) -> None:
    """Raise a UserError if a task lacks the field; it names the tasks that have it."""
    fields = TASKS[task].fields()
    if path not in fields and path in all_fields():
        kinds = [kind for kind, other in TASKS.items() if path in other.fields()]
        raise UserError(f"config.{path} has no effect with config.task={task}; use it with task={', '.join(kinds)}")
    check_known(path, fields)


def all_fields() -> dict[str, Field]:
    """Return path -> field for the fields of all tasks."""
    return {path: field for cls in TASKS.values() for path, field in cls.config_class.fields().items()}


def check_value(name: str, value: Any, field: Field) -> None:
    """Raise a UserError for a value of the wrong type or out of range; ``name`` is the full name of the field."""
    default = field.default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        types = (int, float) if isinstance(default, float) else int
        if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"{name}={value!r} is not a finite number ({field.doc})")
        if field.low is not None and value < field.low:
            raise UserError(f"{name}={value} must be at least {field.low:g} ({field.doc})")
        if field.high is not None and value > field.high:
            raise UserError(f"{name}={value} must be at most {field.high:g} ({field.doc})")
    elif isinstance(default, tuple):
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{name}={value!r} is not a tuple ({field.doc})")
    elif not isinstance(value, (type(default), ConfigDict) if isinstance(default, dict) else type(default)):
        raise UserError(f"{name}={value!r} is not of type {type(default).__name__} ({field.doc})")
    choices = field.choices() if callable(field.choices) else field.choices
    if choices and value not in choices:
        hint = f"; {IMPORT_HINT}" if callable(field.choices) else ""  # users can register more
        raise UserError(f"{name}={value!r} is unknown; {nearest(str(value), choices)}{hint}")
