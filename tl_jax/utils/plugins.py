"""User modules, which register networks, tasks, data sets and others on import.

A command imports the modules of ``--import=MODULE``, and the entry points ``GROUP`` of installed packages. Runs and
bundles record the modules that they need, but nothing is imported because a file names it.
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
# Modules imported by ``import_modules``, in a form that works in another process and folder.
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
    """Import modules by name, or files ``NAME.py``, from the current folder or Python's path.

    Raises:
        UserError: there is no such module, or its import fails.
    """
    for module in modules:
        path, where = Path(module).expanduser(), f"{FLAG}={module}"
        is_file = path.suffix == ".py"
        if is_file and not (path.is_file() and path.stem.isidentifier()):
            raise UserError(f"{where}: no such file, or a name that Python cannot import; check the path")
        folder, name = (path.parent, path.stem) if is_file else (Path(), module)
        if not is_file and not MODULE_NAME.fullmatch(module):
            raise UserError(f"{where} is no module name; write NAME, PACKAGE.NAME or a file NAME.py")
        if str(folder.resolve()) not in sys.path:
            sys.path.append(str(folder.resolve()))
        _import(name, where)
        origin = getattr(sys.modules[name], "__file__", None)
        IMPORTED[module] = str(Path(origin).resolve()) if origin and Path(origin).stem == name else name
        if is_file and (not origin or Path(origin).resolve() != path.resolve()):
            raise UserError(f"{where}: {name} is another module ({origin or 'of Python itself'}); rename the file")


def import_entry_points() -> None:
    """Import the entry points ``GROUP`` of installed packages."""
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
            raise UserError(f"{where}: no module {error.name}; run from its folder, or install it") from None
        raise UserError(f"{where}: import of {name}: {error}; install it") from None
    except SyntaxError as error:
        raise UserError(f"{where}: {error.msg} ({error.filename}:{error.lineno}); fix the module") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{where} raised {type(error).__name__}: {error} ({last.filename}:{last.lineno}); fix the module"
        raise UserError(message) from error


def source_digest(module: str) -> str | None:
    """Return a hash of the source of an imported module; None if it has no file, as in a notebook."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None


def check_imported(modules: Sequence[str], where: object) -> None:
    """Raise a UserError if modules are not imported.

    Args:
        modules: module names; ``__main__`` stands for one that existed only in a script or notebook.
        where: the run or bundle that needs them, for the message.

    Raises:
        UserError: names the modules, and tells how to import them.
    """
    missing = [name for name in modules if name not in sys.modules]
    if missing:
        flags, names = " ".join(f"{FLAG}={name}" for name in missing), ", ".join(missing)
        raise UserError(f"{where}: needs the modules {names}; import them first in Python, or pass {flags}")
