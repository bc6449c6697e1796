"""What is wrong with the disk when a run cannot write: full, gone, read-only, or another one in its place."""

import errno
import logging
import os
from pathlib import Path

from tl_jax import disk


class Home:
    """The folder of a run as it was when the run began."""

    def __init__(self, folder: Path):
        self._folder, self._begun = folder, _identity(folder)

    def check(self) -> None:
        """Raise ``OSError`` where the path leads elsewhere now, as after an unmount, when writing would still work."""
        if _identity(self._folder) != self._begun:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self._folder))

    def fault(self, error: BaseException) -> str:
        """Return why the disk is to blame for an error, "" where it is not."""
        if _identity(self._folder) != self._begun:
            return "the folder is not the one that the run began in: was it moved, or its disk unmounted?"
        for each in disk.chain(error):
            if (
                isinstance(each, OSError)
                and isinstance(each.filename, str | bytes)
                and not _within(each.filename, self._folder)
            ):
                continue
            if isinstance(each, OSError) and errno.errorcode.get(each.errno or 0) in disk.FAULTS:
                return os.strerror(each.errno or 0)
            said = str(each)  # what writes the arrays of a checkpoint has errors of its own, with the system's words
            if str(self._folder) in said and (number := disk.in_words(said)):
                return os.strerror(number)
        return ""


def hush() -> None:
    """Keep orbax from printing: tracebacks, from each of its threads, of errors that it raises anyway, and advice."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _within(file: str | bytes, folder: Path) -> bool:
    return Path(os.fsdecode(file)).absolute().is_relative_to(folder.absolute())
