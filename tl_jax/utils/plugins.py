"""Modules of the user's own, which register networks, tasks, data sets and so on when they are imported.

A command imports what ``--import=MODULE`` names, and what installed packages offer as entry points of ``GROUP``. Runs
and bundles record the modules that they need, but nothing is ever imported because a file says so.
"""

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from tl_jax.utils.errors import UserError

MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
GROUP = "tl_jax.plugins"
FLAG = "--import"
# What this process has imported by ``import_modules``, as another process, in another folder, can do it again.
IMPORTED: dict[str, str] = {}


def take_imports(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without ``--import=MODULE`` or ``--import MODULE``, and the modules; "--" ends the flags."""
    remaining, modules, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument == "--":
            return [*remaining, argument, *arguments], modules
        name, equals, value = argument.partition("=")
        if f"--{name.lstrip('-')}" != FLAG or not name.startswith("-"):
            remaining.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value or value.startswith("-"):
            raise UserError(f"{FLAG} has no value; write {FLAG}=MODULE")
        modules.append(value)
    return remaining, modules


def import_modules(modules: Sequence[str]) -> None:
    """Import modules by name, or files ``NAME.py``, from the current folder or wherever Python finds them.

    Raises:
        UserError: there is no such module, or it ends in an error.
    """
    for module in modules:
        path, where = Path(module).expanduser(), f"{FLAG}={module}"
        is_file = path.suffix == ".py"
        if is_file and not (path.is_file() and path.stem.isidentifier()):
            raise UserError(f"{where}: there is no such file with a name that Python can import; check the path")
        folder, name = (path.parent, path.stem) if is_file else (Path(), module)
        if not is_file and not MODULE_NAME.fullmatch(module):
            raise UserError(f"{where} is no name of a module; write NAME, PACKAGE.NAME or a file NAME.py")
        if str(folder.resolve()) not in sys.path:
            sys.path.append(str(folder.resolve()))
        _import(name, where)
        origin = getattr(sys.modules[name], "__file__", None)
        IMPORTED[module] = str(Path(origin).resolve()) if origin and Path(origin).stem == name else name
        if is_file and (not origin or Path(origin).resolve() != path.resolve()):
            raise UserError(f"{where}: {name} is another module here ({origin or 'of Python itself'}); rename the file")


def import_entry_points() -> None:
    """Import what installed packages offer as entry points of ``GROUP``."""
    for entry in entry_points(group=GROUP):
        package = f" of {entry.dist.name}" if entry.dist else ""
        _import(entry.module, f"the entry point {entry.name!r}{package} (group {GROUP})")


def _import(name: str, where: str) -> None:
    try:
        importlib.import_module(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"{where}: no module {error.name} here; call from its folder, or install it") from None
        raise UserError(f"{where}: {error}, which {name} imports; install it") from None
    except SyntaxError as error:
        raise UserError(f"{where}: {error.msg} ({error.filename}:{error.lineno}); mend the module") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{where} ended in {type(error).__name__}: {error} ({last.filename}:{last.lineno}); mend the module"
        raise UserError(message) from error


def source_digest(module: str) -> str | None:
    """Return a hash of the source of a module that is imported; None if it has no file, as in a notebook."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None


def check_imported(modules: Sequence[str], where: object) -> None:
    """Refuse what needs modules that are not imported.

    Args:
        modules: names; ``__main__`` is one that only lived in a script or notebook.
        where: the run or bundle that needs them, for the message.

    Raises:
        UserError: names them, and says how to import them.
    """
    missing = [name for name in modules if name not in sys.modules]
    if missing:
        flags, names = " ".join(f"{FLAG}={name}" for name in missing), ", ".join(missing)
        raise UserError(f"{where} needs modules of its own, {names}: import them first in Python, or pass {flags}")
