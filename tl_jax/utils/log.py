"""What the library tells, by ``logging`` under the name tl_jax: it prints nothing, and commands show it on the screen.

    logging.basicConfig(level=logging.INFO)

shows it in other programs; warnings are shown without that.
"""

import functools
import logging
import sys

from tqdm import tqdm

from tl_jax.utils import disk

LOGGER = logging.getLogger("tl_jax")


def warn(text: str) -> None:
    """Tell what the user should know of data, files or results, without ending the work on them."""
    LOGGER.warning("%s", text)


@functools.cache
def warn_once(text: str) -> None:
    """Tell something once a process, however often a data set is read."""
    warn(text)


class ScreenHandler(logging.Handler):
    """Writes lines above a progress bar: news to stdout, warnings to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        with disk.translate_errors("the output"):
            stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
            tqdm.write(record.getMessage(), file=stream)
            stream.flush()


def show_on_screen() -> None:
    """Show what the library tells, as commands do, and nobody else's handlers twice."""
    if not any(isinstance(handler, ScreenHandler) for handler in LOGGER.handlers):
        LOGGER.addHandler(ScreenHandler())
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
