"""Compiled programs stay on disk, so that the second start of a configuration need not compile them again."""

import hashlib
import os
import platform
import re
import stat
from pathlib import Path

import jax

from tl_jax.fetch import cache_dir

MAX_BYTES = 2 * 2**30  # of all programs of a machine; those used longest ago make room
LEAST_SECONDS = 0.05  # of compiling, below which a program is not kept; an estimate


def enable() -> Path | None:
    """Let JAX keep compiled programs in ``programs`` of the cache folder; return the folder, None where it does not.

    A folder that the user gave JAX (``JAX_COMPILATION_CACHE_DIR``) is left as it is, and so is
    ``JAX_ENABLE_COMPILATION_CACHE=false``. Programs are run as they are found: a folder into which others can write is
    not used, and processors of another kind, which may see the same home, get a folder of their own.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    folder = cache_dir() / "programs" / machine()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # nowhere to write is no reason to stop
        return None
    if not _only_mine(folder):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)  # with it come locks: processes may share the folder
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


def machine() -> str:
    """Return a name for processors that can run each other's programs, which are native code."""
    try:
        lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        lines = []
    facts = "\n".join(sorted(set(lines))) or platform.node()
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _only_mine(folder: Path) -> bool:
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
