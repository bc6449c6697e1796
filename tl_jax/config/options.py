"""Options as frozen dataclasses, one per component, with the meaning of every field.

    @dataclass(frozen=True)
    class OptimConfig(Options):
        lr: float = option(1e-3, "peak learning rate", low=0.0)

The editable configuration of a run, its flags, their checks and their documentation are generated from these classes,
see ``schema``. Instances are immutable and hashable, so that jitted functions can take them as static arguments.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeVar

from flax.core import FrozenDict

T = TypeVar("T", bound="Options")


class Field(NamedTuple):
    """Description of one field; ``low`` and ``high`` are inclusive limits of a number.

    ``choices`` may be a function, so that names registered later are included.
    """

    default: Any
    doc: str
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    low: float | None = None
    high: float | None = None


def option(
    default: Any,
    doc: str,
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    *,
    low: float | None = None,
    high: float | None = None,
    inherited: bool = False,
    entries: Any = None,
) -> Any:
    """Return a dataclass field of options.

    Args:
        default: default value, whose type is that of all values.
        doc: short description with the unit.
        choices: allowed names; empty for any.
        low: minimum of a number.
        high: maximum of a number.
        inherited: whether the attribute is None, rather than ``default``, when unset, so that another field decides.
        entries: options class of the entries, if the field holds a tuple of them.
    """
    metadata = {"option": Field(default, doc, choices, low, high), "entries": entries, "inherited": inherited}
    value = None if inherited else _freeze(default)
    return dataclasses.field(default=value, metadata=metadata)


def group(cls: type[T]) -> Any:
    """Return a dataclass field that holds nested options, with their defaults."""
    return dataclasses.field(default_factory=cls, metadata={"group": cls})


def _freeze(value: Any) -> Any:
    """Convert lists to tuples and dicts to immutable mappings, so that the value is hashable."""
    if hasattr(value, "items"):
        return FrozenDict({key: _freeze(entry) for key, entry in value.items()})
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _freeze_entries(values: Any, cls: type[T]) -> Any:
    """Convert mappings to options; leave other values to ``validate``."""
    if not isinstance(values, (tuple, list)):
        return values
    return tuple(cls.from_dict(value) if hasattr(value, "items") else value for value in values)


def _thaw(value: Any) -> Any:
    if isinstance(value, Options):
        return value.to_dict()
    if isinstance(value, FrozenDict):
        return {key: _thaw(entry) for key, entry in value.items()}
    return tuple(map(_thaw, value)) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Options:
    """Base class of options."""

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """Return name -> field, nested options by dotted path."""
        found = {}
        for field in dataclasses.fields(cls):
            if inner := field.metadata.get("group"):
                found |= {f"{field.name}.{path}": entry for path, entry in inner.fields().items()}
            elif "option" in field.metadata:
                found[field.name] = field.metadata["option"]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return options from nested values, such as a ConfigDict; missing values take their default."""
        found = {}
        for field in dataclasses.fields(cls):
            if field.name not in values:
                continue
            value, inner, entries = values[field.name], field.metadata.get("group"), field.metadata.get("entries")
            if inner:
                found[field.name] = inner.from_dict(value)
            else:
                found[field.name] = _freeze_entries(value, entries) if entries else _freeze(value)
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Return the set values as nested dicts."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            unset = field.metadata.get("inherited") and value is None
            if "group" in field.metadata or ("option" in field.metadata and not unset):
                found[field.name] = _thaw(value)
        return found

    def flat(self) -> dict[str, Any]:
        """Return dotted path -> value, for the paths of ``fields``."""
        groups = {field.name for field in dataclasses.fields(self) if "group" in field.metadata}
        found = {}
        for name, value in self.to_dict().items():
            inner = getattr(self, name).flat() if name in groups else {}
            found |= {f"{name}.{path}": entry for path, entry in inner.items()} or {name: value}
        return found

    def narrow(self, cls: type[T], **values: Any) -> T:
        """Return these options as ``cls``, for example a base class, with some values replaced."""
        shared = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(cls) if hasattr(self, field.name)
        }
        return cls(**{**shared, **values})
