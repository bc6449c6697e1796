"""Ctrl-C and SIGTERM, deferred to the end of a step: compiled code may lose them and the compiler may crash."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from tl_jax.utils.errors import Preempted


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], type[BaseException] | None]]:
    """Defer the first SIGINT or SIGTERM; yield a function that returns the exception to raise, or None.

    A second SIGINT acts at once. With several processes, SIGTERM to any of them stops all at the same step.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield lambda: None
        return
    received: list[int] = []
    num_calls = 0

    def on_signal(signum, frame):
        if signum == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(signum)

    def stop_signal() -> type[BaseException] | None:
        nonlocal num_calls
        num_calls += 1
        # JAX handles SIGTERM in each of several processes, and agrees on a call that none of them has made yet.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(num_calls):
            return Preempted
        return (KeyboardInterrupt if received[0] == signal.SIGINT else Preempted) if received else None

    # Ctrl-C ends one of several processes at once: the others could not agree on a step to save.
    signals = () if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    previous_handlers = {signum: signal.signal(signum, on_signal) for signum in signals}
    try:
        yield stop_signal
        if received:
            raise KeyboardInterrupt if received[0] == signal.SIGINT else Preempted("preempted after the last step")
    finally:
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)
