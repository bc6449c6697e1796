"""Functions for workers, which import them by name."""

import os
import signal
import time
from pathlib import Path


def count(folder, at):
    """Note the call in a file and return its square."""
    with Path(folder, f"call{at}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return {"square": at * at}


def fails_at_first(folder, at):
    """Fail at the first call with an odd number."""
    path = Path(folder, f"failed{at}")
    if at % 2 and not path.exists():
        path.touch()
        raise ValueError(f"number {at} is odd")
    return count(folder, at)


def always_fails(folder, at):
    """Fail."""
    raise ValueError(f"number {at}\nis wrong")


def dies_at_first(folder, at):
    """Kill its own process at the first call with number 2."""
    path = Path(folder, f"died{at}")
    if at == 2 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return count(folder, at)
