"""What a command is busy with, and for how many seconds: shown on a terminal, silent elsewhere."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

SECONDS = 1.0  # between two refreshes
_shown = threading.Lock()  # held while there is such a line: one is enough


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show ``what`` with the seconds it has taken, in a line of its own on stderr, until the block ends.

    Within another such block nothing more is shown. Lines written by ``tqdm.write`` appear above it.
    """
    if not sys.stderr.isatty() or not _shown.acquire(blocking=False):
        yield
        return
    try:
        with tqdm(total=0, bar_format="{desc} ({elapsed})", desc=what, leave=False, file=sys.stderr) as line:
            with ticking(line):
                yield
    finally:
        _shown.release()


@contextlib.contextmanager
def ticking(bar: tqdm) -> Iterator[None]:
    """Refresh a bar each second, so that its clock goes on while nothing is counted."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(SECONDS):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
