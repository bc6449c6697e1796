"""The configuration of a run, in its editable form and in its frozen one, from the options of each component.

Recipes and flags change the editable form, an ``ml_collections.ConfigDict`` with the fields that mean something for the
kind of task. ``freeze`` makes of it the dataclasses that the library takes.
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

from tl_jax import tasks  # noqa: F401  # which fills TASKS
from tl_jax.config.options import Field
from tl_jax.config.renames import RenamingDict
from tl_jax.train.run_config import RunConfig
from tl_jax.train.task import TASKS
from tl_jax.transfer.phases import PhaseConfig
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.registry import IMPORT_HINT

Config = Any  # a ConfigDict, whose own annotations give each field the union of all types that one may have
DEFAULT_TASK = "image"
PHASE_FIELDS = PhaseConfig.fields()


def get_config(task: str = DEFAULT_TASK) -> Config:
    """Return the defaults of a kind of task, locked: an unknown field is an error that suggests the nearest name."""
    fields = TASKS[task].fields()
    defaults = {path: field.default for path, field in fields.items()} | {"task": task}
    nested = traverse_util.unflatten_dict(defaults, sep=".")
    config = RenamingDict()
    for name, value in nested.items():
        config[name] = RenamingDict(value) if isinstance(value, dict) and name not in fields else value
    return config.lock()


def freeze(config: Any) -> RunConfig:
    """Return a configuration as immutable dataclasses; one that is frozen already is returned as it is."""
    return config if isinstance(config, RunConfig) else TASKS[config["task"]].config_class.from_dict(config)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a frozen configuration as nested dicts of the fields that mean something for its kind of task."""
    values, fields = config.flat(), TASKS[config.task].fields()
    return traverse_util.unflatten_dict({path: values[path] for path in fields}, sep=".")


def edit(config: Any) -> Config:
    """Return a copy of a configuration, frozen or not, in its editable form."""
    if not isinstance(config, RunConfig):
        return ConfigDict(config.copy_and_resolve_references())
    editable = get_config(config.task)
    with editable.unlocked():  # model.options has whatever the model class takes
        editable.update(ConfigDict(to_dict(config)))
    return editable


def unused_fields(task: str) -> set[str]:
    """Return the fields of other kinds of tasks, and the groups of which a kind of task has none."""
    used, known = TASKS[task].fields(), all_fields()
    groups = {path.rpartition(".")[0] for path in known} - {path.rpartition(".")[0] for path in used}
    return (known.keys() - used.keys()) | groups


def default_workdir(config: Any) -> str:
    """Return ``runs/NAME-HASH``: the same configuration finds its folder again, another one gets its own."""
    text = json.dumps(to_dict(freeze(config)), sort_keys=True, default=str)
    return f"runs/{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def flatten_config(config: Any, fields: Mapping[str, Field], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested configuration by dotted path; a dict that is itself a field is not entered."""
    values = {}
    for key, value in config.items():
        path = prefix + key
        if isinstance(value, (ConfigDict, dict)) and path not in fields:
            values.update(flatten_config(value, fields, path + "."))
        else:
            values[path] = value
    return values


def check_known(path: str, fields: Mapping[str, Field], prefix: str = "config.") -> None:
    """Refuse a path that is no field, with the nearest one or the fields of its group."""
    if path not in fields:
        group = path.rpartition(".")[0]
        siblings = [field for field in fields if field.rpartition(".")[0] == group]
        matches = difflib.get_close_matches(path, fields, n=1, cutoff=0.85)
        advice = f"did you mean {matches[0]!r}?" if matches else f"choose one of {', '.join(siblings or fields)}"
        raise UserError(f"unknown field {prefix}{path}; {advice}")


def set_field(config: Any, path: str, value: Any) -> None:
    """Set a field of a configuration, such as "optim.lr"; a UserError says which there are."""
    check_of_task(path, config.task)
    config.update_from_flattened_dict({path: str(value) if isinstance(value, Path) else value})


def check_of_task(path: str, task: str) -> None:
    """Refuse a path that is no field of a kind of task, and say so if it is one of another kind."""
    fields = TASKS[task].fields()
    if path not in fields and path in all_fields():
        kinds = [kind for kind, other in TASKS.items() if path in other.fields()]
        raise UserError(f"config.{path} has no effect with config.task={task}; it is for task={', '.join(kinds)}")
    check_known(path, fields)


def all_fields() -> dict[str, Field]:
    """Return the fields of all kinds of tasks, by path."""
    return {path: field for cls in TASKS.values() for path, field in cls.config_class.fields().items()}


def check_value(name: str, value: Any, field: Field) -> None:
    """Refuse a value of the wrong type or out of range; ``name`` is the field's full name."""
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
        hint = f"; {IMPORT_HINT}" if callable(field.choices) else ""  # there may be some of the user's own
        raise UserError(f"{name}={value!r} is unknown; {nearest(str(value), choices)}{hint}")
