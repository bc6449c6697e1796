"""Messages of the library, logged as "tl_jax"; nothing is printed, except warnings, until ``show_messages``."""

import functools
import logging
import sys

from tqdm import tqdm

from tl_jax.utils import disk

LOGGER = logging.getLogger("tl_jax")


def warn(text: str) -> None:
    """Log a warning about data, files or results, and continue."""
    LOGGER.warning("%s", text)


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning once per process, however often a data set is read."""
    warn(text)


class ScreenHandler(logging.Handler):
    """Writes lines above a progress bar: messages to stdout, warnings to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        with disk.translate_errors("the output"):
            stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
            tqdm.write(record.getMessage(), file=stream)
            stream.flush()


def show_messages() -> None:
    """Show progress and results in the terminal or notebook; the messages do not go to other log handlers then."""
    if not any(isinstance(handler, ScreenHandler) for handler in LOGGER.handlers):
        LOGGER.addHandler(ScreenHandler())
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
