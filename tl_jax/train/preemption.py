"""Ctrl-C and SIGTERM between two steps: compiled code may lose them, and the compiler may crash on them."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from tl_jax.utils.errors import Preempted


@contextlib.contextmanager
def between_steps() -> Iterator[Callable[[], type[BaseException] | None]]:
    """Hold back the first SIGINT and SIGTERM; the function given returns what to raise once one came, else None.

    The second SIGINT acts at once. Of several processes SIGTERM stops all at the same step, whichever was told to.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: None
        return
    came: list[int] = []
    calls = 0

    def note(signum, frame):
        if signum == signal.SIGINT and signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(signum)

    def asked() -> type[BaseException] | None:
        nonlocal calls
        calls += 1
        # JAX listens to SIGTERM in each of several processes, and finds a call that all of them are yet to make.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(calls):
            return Preempted
        return (KeyboardInterrupt if came[0] == signal.SIGINT else Preempted) if came else None

    # Ctrl-C of one of several ends it at once: the others could not know at which step to save.
    heard = () if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.signal(signum, note) for signum in heard}
    try:
        yield asked
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else Preempted("preempted after the last step")
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
