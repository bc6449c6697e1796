"""Files are written beside their place and renamed; a disk that fails is one line that names the file."""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl_jax.utils.errors import UserError

ROOM = ("ENOSPC", "EDQUOT", "EFBIG")
RIGHTS = ("EACCES", "EPERM", "EROFS")
# What POSIX calls the ways in which a file system fails; others are mistakes of a program.
FAULTS = (
    *ROOM, *RIGHTS, "ENAMETOOLONG", "EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT",
)  # fmt: skip


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; put it in place whole or not at all. Missing folders are made.

    Raises:
        UserError: the disk fails, whatever the library that writes makes of that.
    """
    temporary = path.with_name(path.name + ".tmp")
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # it would hide what was wrong first
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def telling(where: object) -> Iterator[None]:
    """Turn what goes wrong while ``where`` is written into the one line that says it."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        number = fault(error) or getattr(error, "errno", None)
        if number:
            raise cannot_write(where, number) from error
        if isinstance(error, OSError):  # without a number, as NumPy's of a file that is shorter than it should be
            raise UserError(f"cannot write {where} ({error}); is there room? Choose another folder") from error
        raise


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Write a file whole or not at all, see ``replacing``."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 whole or not at all, see ``replacing``."""
    write_bytes(path, text.encode())


def save_figure(figure: Any, path: Path, **how: Any) -> Path:
    """Write a figure of matplotlib whole or not at all, and return ``path``; ``how`` goes to ``savefig``."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."), **how)
    write_bytes(path, content.getvalue())
    return path


def cannot_write(where: object, number: int, verb: str = "write") -> UserError:
    """Return the one line for an error of the system, by its number, with what to do."""
    name = errno.errorcode.get(number, "")
    then = "choose another one"
    if name in ROOM:
        then = "free some space there, or choose another folder, and give the same command again"
    elif name in RIGHTS:
        then = "choose a folder that you can write"
    elif name == "ENAMETOOLONG":
        then = "choose a shorter name"
    elif name in FAULTS:
        then = "mend that disk, or choose another folder, and give the same command again"
    return UserError(f"cannot {verb} {where}: {os.strerror(number)}; {then}")


def fault(error: BaseException) -> int:
    """Return the number of the system's error that ``error`` came from, 0 where the disk is not to blame.

    Libraries have errors of their own, with the system's words.
    """
    for each in chain(error):
        if isinstance(each, OSError) and errno.errorcode.get(each.errno or 0) in FAULTS:
            return each.errno or 0
        if number := in_words(str(each)):
            return number
    return 0


def in_words(text: str) -> int:
    """Return the number of the fault whose words of the system's are in ``text``, 0 for none."""
    numbers = [getattr(errno, name) for name in FAULTS if hasattr(errno, name)]
    return next((number for number in numbers if os.strerror(number) in text), 0)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
