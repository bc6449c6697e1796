"""Modules of the user's own, which register networks, tasks, data sets and so on when they are imported.

A command imports what ``--import=MODULE`` names, and what installed packages offer as entry points of ``GROUP``. Runs
and bundles record the modules that they need, but nothing is ever imported because a file says so.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from tl_jax.utils.errors import UserError

GROUP = "tl_jax.plugins"
FLAG = "--import"


def take_imports(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without ``--import=MODULE`` or ``--import MODULE``, and the modules."""
    remaining, modules, arguments = [], [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if f"--{name.lstrip('-')}" != FLAG or not name.startswith("-"):
            remaining.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value:
            raise UserError(f"{FLAG} has no value; write {FLAG}=MODULE")
        modules.append(value)
    return remaining, modules


def import_modules(modules: Sequence[str]) -> None:
    """Import modules by name, or files ``NAME.py``, from the current folder or wherever Python finds them.

    Raises:
        UserError: there is no such module, or it ends in an error.
    """
    for module in modules:
        path = Path(module)
        folder, name = (path.parent, path.stem) if path.suffix == ".py" else (Path(), module)
        if path.suffix == ".py" and not path.is_file():
            raise UserError(f"{FLAG}={module}: there is no such file; check the path")
        if str(folder.resolve()) not in sys.path:
            sys.path.append(str(folder.resolve()))
        _import(name, f"{FLAG}={module}")


def import_entry_points() -> None:
    """Import what installed packages offer as entry points of ``GROUP``."""
    for entry in entry_points(group=GROUP):
        _import(entry.module, f"the entry point {entry.name!r} of {GROUP}")


def _import(name: str, where: str) -> None:
    try:
        importlib.import_module(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] and error.name != name:
            raise UserError(f"{where}: {error}, which {name} imports; install it") from None
        raise UserError(f"{where}: no module {name} here; call from its folder, or install its package") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{where} ended in {type(error).__name__}: {error} ({last.filename}:{last.lineno}); mend the module"
        raise UserError(message) from error


def check_imported(modules: Sequence[str], where: object) -> None:
    """Refuse what needs modules that are not imported.

    Args:
        modules: names; ``__main__`` is one that only lived in a program of the user's.
        where: the run or bundle that needs them, for the message.

    Raises:
        UserError: names the first one, and says how to import it.
    """
    missing = [name for name in modules if name not in sys.modules and name != "__main__"]
    if missing:
        flags = " ".join(f"{FLAG}={name}" for name in missing)
        raise UserError(f"{where} was made with modules of its user's; pass {flags}, or import them in Python first")
