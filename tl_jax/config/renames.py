"""Field names of version 0.1, which stored runs, command lines and user recipes may still use.

They work for one release, with a warning.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from tl_jax.utils.errors import nearest

# A field keeps its group, so that old names can be looked up within a group.
RENAMED_FIELDS = {
    "detect.most": "detect.max_detections",
    "detect.overlap": "detect.nms_iou",
    "detect.score": "detect.score_threshold",
    "detect.visible": "detect.min_visibility",
    "faces.min_pictures": "faces.min_images",
    "faces.test_people": "faces.test_identities",
    "freeze.prove": "freeze.verify",
    "init.surgery": "init.allow_shape_mismatch",
    "init.take": "init.load_parts",
    "input.length": "input.max_length",
    "optim.norm_momentum": "optim.batch_norm_momentum",
    "optim.rates": "optim.lr_multipliers",
    "pretext.share": "pretext.mask_prob",
    "rl.discount": "rl.gamma",
    "rl.entropy": "rl.entropy_coef",
    "rl.passes": "rl.ppo_epochs",
    "rl.physics": "rl.env_params",
    "rl.smoothing": "rl.gae_lambda",
    "rl.steps": "rl.total_timesteps",
    "rl.value_weight": "rl.value_coef",
    "rl.world": "rl.env",
    "rl.worlds": "rl.num_envs",
    "save_rest": "min_checkpoint_interval",
    "test_on": "eval_checkpoint",
}
# Within an entry of ``phases``.
RENAMED_PHASE_FIELDS = {"rates": "lr_multipliers"}


class RenamedField(FutureWarning):
    """Warning that fields were set by old names; ``names`` maps old -> current."""

    def __init__(self, names: Mapping[str, str]):
        super().__init__(dict(names))  # so that the warning can be pickled
        self.names = dict(names)

    def __str__(self) -> str:
        changes = ", ".join(f"{old} is now {new}" for old, new in self.names.items())
        return f"fields were renamed in 0.2: {changes}; change them"


def current_name(path: str) -> str:
    """Return the current name of a field, such as "rl.worlds" or "phases[0].rates"; warn if it was renamed."""
    new = _current_name(path)
    if new != path:
        warnings.warn(RenamedField({path: new}), stacklevel=3)
    return new


def rename_entries(field: str, value: Any) -> Any:
    """Return the value of a field with current names in ``phases`` and ``arms``; warn about renamed ones."""
    names: dict[str, str] = {}
    renamed = _rename_entries(field, value, names) if field in ENTRIES else value
    if names:
        warnings.warn(RenamedField(names), stacklevel=3)
    return renamed


def rename_fields(content: Mapping[str, Any], warn: bool = True) -> dict[str, Any]:
    """Return a stored configuration with current names, with one warning about all renamed fields.

    If both an old and the current name are present, the old one is kept, so that it is refused as unknown.
    """
    names: dict[str, str] = {}
    renamed = _rename_level(content, "", names)
    renamed |= {field: _rename_entries(field, value, names) for field, value in renamed.items() if field in ENTRIES}
    if names and warn:
        warnings.warn(RenamedField(names), stacklevel=3)
    return renamed


def _current_name(path: str) -> str:
    group, dot, name = path.rpartition("].")
    if dot:  # a field of a phase
        return group + dot + RENAMED_PHASE_FIELDS.get(name, name)
    return RENAMED_FIELDS.get(path, path)


def _rename_level(content: Mapping[str, Any], group: str, names: dict[str, str]) -> dict[str, Any]:
    """Return one level of a configuration with current names; add renamed ones to ``names``."""
    renamed = {}
    for key, value in content.items():
        new = RENAMED_FIELDS.get(group + key, group + key).removeprefix(group)
        if new != key and new not in content:
            names[group + key] = group + new
            key = new
        renamed[key] = _rename_level(value, f"{key}.", names) if isinstance(value, Mapping) and not group else value
    return renamed


def _rename_phase(entry: Any, names: dict[str, str]) -> Any:
    """Return an entry of ``phases`` with current names; leave other values to ``validate``."""
    if not isinstance(entry, Mapping):
        return entry
    here = {old: new for old, new in RENAMED_PHASE_FIELDS.items() if old in entry and new not in entry}
    names |= {f"phases.{old}": f"phases.{new}" for old, new in here.items()}
    return {here.get(key, key): value for key, value in entry.items()}


def _rename_arm(entry: Any, names: dict[str, str]) -> Any:
    """Return an arm (name, changes) with current names; leave malformed ones to ``validate``."""
    try:
        name, changes = entry
        names |= {field: _current_name(field) for field, _ in changes if _current_name(field) != field}
        return type(entry)(
            (name, type(changes)(type(change)((_current_name(change[0]), change[1])) for change in changes))
        )
    except (TypeError, ValueError):
        return entry


ENTRIES = {"phases": _rename_phase, "arms": _rename_arm}  # fields whose values contain field names


def _rename_entries(field: str, value: Any, names: dict[str, str]) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    return type(value)(ENTRIES[field](entry, names) for entry in value)


class RenamingDict(ConfigDict):
    """A ConfigDict that accepts old names of fields, with a warning."""

    def __getattr__(self, attribute: str) -> Any:
        return super().__getattr__(self._current_name(attribute))

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute == "task" and "task" in self and value != self.task:
            raise AttributeError(f"config.task: cannot be changed; start from recipe.get_config({value!r})")
        name = self._current_name(attribute)
        if not name.startswith("_") and name not in self and self.is_locked:
            raise AttributeError(f"unknown field {name!r}; {nearest(name, map(str, self.keys()))}")
        super().__setattr__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, rename_entries(key, value))

    def _current_name(self, attribute: str) -> str:
        if attribute.startswith("_") or attribute in self:
            return attribute
        for old, new in RENAMED_FIELDS.items():
            if old.rpartition(".")[2] == attribute and (name := new.rpartition(".")[2]) in self:
                warnings.warn(RenamedField({old: new}), stacklevel=3)
                return name
        return attribute
