"""Registries by name: networks, tasks, data sets, metrics, regularizers, methods."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from tl_jax.utils.errors import UserError, nearest

T = TypeVar("T")
IMPORT_HINT = "a custom one needs --import=MODULE, or an import of its module in Python"


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names to entries, in the order of registration."""

    def __init__(self, what: str):
        """Create a registry; ``what`` is the kind of its entries, for messages."""
        self.what = what
        self._entries: dict[str, T] = {}
        self._origins: dict[str, tuple[str, str]] = {}

    def add(self, name: str, entry: T, module: str, qualname: str = "") -> None:
        """Add an entry of a module; importing the module again replaces it.

        Args:
            name: name of the entry.
            entry: the entry.
            module: module that adds it.
            qualname: name of the class or function, to distinguish entries of one module.

        Raises:
            UserError: another entry has this name.
        """
        origin = f"{module}.{qualname}" if qualname else module
        if self._origins.setdefault(name, (module, qualname)) != (module, qualname):
            other = ".".join(filter(None, self._origins[name]))
            raise UserError(f"{self.what} {name!r} of {origin} is already registered by {other}; choose another name")
        self._entries[name] = entry

    def module(self, name: str) -> str:
        """Return the name of the module that added an entry."""
        return self._origins[name][0]

    @contextlib.contextmanager
    def temporary(self) -> Iterator[None]:
        """Remove the entries added within the block when it ends."""
        entries, origins = dict(self._entries), dict(self._origins)
        try:
            yield
        finally:
            self._entries, self._origins = entries, origins

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UserError(self.unknown(name)) from None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry, or the default if there is none."""
        return self._entries.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def unknown(self, name: str) -> str:
        """Return the message about an unknown name."""
        return f"unknown {self.what} {name!r}; {nearest(name, self._entries)}; {IMPORT_HINT}"
