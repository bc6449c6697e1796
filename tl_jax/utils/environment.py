"""Describe the environment of a run: versions, devices, memory, commit."""

import functools
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from tl_jax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, Any]:
    """Return the environment for a summary; the memory is the peak of this process in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there and in KiB elsewhere
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
        "devices": [d.device_kind for d in jax.devices()],
        "machine": {"system": platform.system(), "processor": processor(), "cores": os.cpu_count() or 0},
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def total_memory() -> int:
    """Return the total memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    """Return the name of the processor if the system provides it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and the numerical libraries."""
    return {"tl_jax": __version__, **{name: version(name) for name in PACKAGES}}


@functools.cache  # of the imported code, even if another commit is checked out later
def commit() -> str:
    """Return the short commit of the checkout that contains this file; "" outside one."""
    folder = Path(__file__).parent
    tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]  # excludes projects with an untracked copy
    try:
        if subprocess.run(tracked, cwd=folder, capture_output=True).returncode:
            return ""
        result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return result.stdout.strip()
