"""What a command is busy with, and for how many seconds: shown on a terminal, silent elsewhere."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

REFRESH_SECONDS = 1.0  # between two refreshes
_display_lock = threading.Lock()  # held while there is such a line: one is enough


@contextlib.contextmanager
def show_elapsed(message: str) -> Iterator[None]:
    """Show ``message`` with the elapsed seconds, in a line of its own on stderr, until the block ends.

    Within another such block nothing more is shown. Lines written by ``tqdm.write`` appear above it.
    """
    if not sys.stderr.isatty() or not _display_lock.acquire(blocking=False):
        yield
        return
    try:
        with tqdm(total=0, bar_format="{desc} ({elapsed})", desc=message, leave=False, file=sys.stderr) as bar:
            with auto_refresh(bar):
                yield
    finally:
        _display_lock.release()


@contextlib.contextmanager
def auto_refresh(bar: tqdm) -> Iterator[None]:
    """Refresh a bar each second, so that its clock goes on while nothing is counted."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(REFRESH_SECONDS):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
