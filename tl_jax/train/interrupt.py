"""Ctrl-C between two steps: inside compiled code it may be lost, and inside the compiler it may end in a crash."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Hold back the first SIGINT; the function given raises KeyboardInterrupt once it came. The second acts at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: None
        return
    asked = threading.Event()

    def note(signum, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)
