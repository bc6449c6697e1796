"""Write files atomically, and report disk errors in one line with the file."""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl_jax.utils.errors import UserError

NO_SPACE = ("ENOSPC", "EDQUOT", "EFBIG")
NO_PERMISSION = ("EACCES", "EPERM", "EROFS")
# POSIX errors of a file system; others are bugs of a program.
DISK_ERRORS = (
    *NO_SPACE, *NO_PERMISSION, "ENAMETOOLONG", "EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT",
)  # fmt: skip


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, which replaces ``path`` on success; creates missing folders.

    Raises:
        UserError: the disk fails, whatever error the writing library raises.
    """
    temporary = path.with_name(path.name + ".tmp")
    with translate_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # would hide the first error
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def translate_errors(where: object) -> Iterator[None]:
    """Turn disk errors while writing ``where`` into a UserError of one line."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        number = disk_errno(error) or getattr(error, "errno", None)
        if number:
            raise write_error(where, number) from error
        if isinstance(error, OSError):  # without errno, as NumPy's for a short write
            raise UserError(f"cannot write {where} ({error}); free disk space, or choose another folder") from error
        raise


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Write a file atomically, see ``atomic_write``."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, see ``atomic_write``."""
    write_bytes(path, text.encode())


def save_figure(figure: Any, path: Path, *, colors: int = 0, **options: Any) -> Path:
    """Save a matplotlib figure atomically.

    Args:
        figure: to save.
        path: of the file.
        colors: for a PNG, the most colours of a palette, up to 256, which makes the file about three times smaller; 0
            keeps all colours.
        **options: of ``savefig``.

    Returns:
        ``path``.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."), **options)
    if colors:
        from PIL import Image

        image = Image.open(content).convert("RGB")
        content = io.BytesIO()
        # Coverage keeps the colour of a thin line, which a median cut would lose; means then bring large areas close.
        palette = image.quantize(colors, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        palette.save(content, "PNG", optimize=True)
    write_bytes(path, content.getvalue())
    return path


def write_error(where: object, number: int, verb: str = "write") -> UserError:
    """Return the error for a system error number, with an action."""
    name = errno.errorcode.get(number, "")
    action = "choose another path"
    if name in NO_SPACE:
        action = "free disk space there, or choose another folder, and run the same command again"
    elif name in NO_PERMISSION:
        action = "choose a folder that you can write to"
    elif name == "ENAMETOOLONG":
        action = "choose a shorter name"
    elif name in DISK_ERRORS:
        action = "repair that disk, or choose another folder, and run the same command again"
    return UserError(f"cannot {verb} {where}: {os.strerror(number)}; {action}")


def disk_errno(error: BaseException) -> int:
    """Return the system error number behind ``error``, 0 if it is no disk error.

    Libraries raise their own errors with the message of the system.
    """
    for cause in error_chain(error):
        if isinstance(cause, OSError) and errno.errorcode.get(cause.errno or 0) in DISK_ERRORS:
            return cause.errno or 0
        if number := errno_from_message(str(cause)):
            return number
    return 0


def errno_from_message(text: str) -> int:
    """Return the number of the disk error whose system message is in ``text``, 0 for none."""
    numbers = [getattr(errno, name) for name in DISK_ERRORS if hasattr(errno, name)]
    return next((number for number in numbers if os.strerror(number) in text), 0)


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        yield error
        visited.add(id(error))
        error = error.__cause__ or error.__context__
