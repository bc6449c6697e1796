"""A guard for tests of hostile files."""

import faulthandler
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def guarded() -> Iterator[None]:
    """Fail on an allocation of over 1 GiB, and end the process with a trace when a file takes a minute."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
