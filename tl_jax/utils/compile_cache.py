"""Compiled programs stay on disk, so that the second start of a configuration need not compile them again."""

import contextlib
import hashlib
import logging
import os
import platform
import re
import stat
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import filelock
import jax

from tl_jax.utils.download import cache_dir

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30  # of all programs of a machine; those used longest ago make room
LEAST_SECONDS = 0.05  # of compiling, below which a program is not kept; an estimate
LOCK, LOCK_SECONDS = ".lockfile", 5.0  # JAX's own lock of the folder, and how long to wait for it
PROGRAM, USED = "-cache", "-atime"  # endings of the two files that JAX writes for each program
# JAX's warnings of a program that cannot be read, and of one that cannot be written.
UNREAD = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")
UNWRITTEN = re.compile(r"Error writing persistent compilation cache entry for '[^']+': (.*)", re.S)


def enable() -> Path | None:
    """Let JAX keep compiled programs in ``programs`` of the cache folder; return the folder, None where it does not.

    A folder that the user gave JAX (``JAX_COMPILATION_CACHE_DIR``) is left as it is, and so is
    ``JAX_ENABLE_COMPILATION_CACHE=false``. Programs are run as they are found: a folder into which others can write is
    not used, and processors of another kind, which may see the same home, get a folder of their own.
    """
    config = cast(Any, jax.config)  # JAX adds its options as it is imported
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    folder = cache_dir() / "programs" / machine()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # nowhere to write is no reason to stop
        return None
    if not _only_mine(folder):
        return None
    tidy(folder)
    warnings.showwarning = _mending(folder, warnings.showwarning)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)  # with it come locks: processes may share the folder
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


def tidy(folder: Path) -> None:
    """Mend what a killed process or a full disk left half written.

    JAX writes NAME-cache, then NAME-atime. With one NAME-cache alone its eviction fails at every later program
    (``LRUCache._evict_if_needed`` reads each NAME-atime), and none is kept any more. A whole NAME-cache gets its
    NAME-atime, half of one is removed.
    """
    try:
        with filelock.FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            programs = {path.name.removesuffix(PROGRAM) for path in folder.glob(f"*{PROGRAM}")}
            used = {path.name.removesuffix(USED) for path in folder.glob(f"*{USED}") if path.stat().st_size}
            for name in programs ^ used:
                if name in programs and _whole(folder / f"{name}{PROGRAM}"):
                    (folder / f"{name}{USED}").write_bytes(time.time_ns().to_bytes(8, "little"))
                else:
                    _remove(folder, name)
    except (OSError, filelock.Timeout) as error:  # without it programs are compiled again, which is no reason to stop
        logger.debug("the program cache %s was not tidied: %s", folder, error)


def _whole(path: Path) -> bool:
    """Whether a program is stored whole; zlib tells, and what JAX compressed by anything else counts as cut."""
    try:
        zlib.decompress(path.read_bytes())
    except zlib.error:
        return False
    return True


def _mending(folder: Path, show: Callable[..., None]) -> Callable[..., None]:
    """Return a ``warnings.showwarning`` that mends the folder where JAX warns of it; ``show`` has all other warnings.

    A damaged program is removed: JAX compiles it again, but never replaces the file, so that every start would pay.
    What a full disk left half written is removed too, and said once rather than for each program.
    """
    said: set[str] = set()

    def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if unread := UNREAD.match(str(message)):
            for path in folder.glob(f"{unread[1]}-*{PROGRAM}"):
                _remove(folder, path.name.removesuffix(PROGRAM))
            logger.info("a compiled program of %s was damaged and is made anew", unread[1])
        elif unwritten := UNWRITTEN.match(str(message)):
            tidy(folder)
            if not said:
                logger.warning("compiled programs are not kept for the next start: %s", unwritten[1])
            said.add(unwritten[1])
        else:
            show(message, *args, **kwargs)

    return shown


def _remove(folder: Path, name: str) -> None:
    for ending in (PROGRAM, USED):
        with contextlib.suppress(OSError):
            (folder / f"{name}{ending}").unlink()


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
