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
MIN_COMPILE_SECONDS = 0.05  # of compiling, below which a program is not kept; an estimate
LOCK_FILE, LOCK_TIMEOUT = ".lockfile", 5.0  # JAX's own lock of the folder, and how long to wait for it
PROGRAM_SUFFIX, ATIME_SUFFIX = "-cache", "-atime"  # endings of the two files that JAX writes for each program
# JAX's warnings of a program that cannot be read, and of one that cannot be written.
READ_WARNING = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")
WRITE_WARNING = re.compile(r"Error writing persistent compilation cache entry for '[^']+': (.*)", re.S)

_settings = {"owned": False}  # whether the process is a command of this project


def enable() -> Path | None:
    """Let JAX keep compiled programs in ``programs`` of the cache folder; return the folder, None where it does not.

    It is for commands, whose process is their own. A folder that the user gave JAX (``JAX_COMPILATION_CACHE_DIR``) is
    left as it is, and so is ``JAX_ENABLE_COMPILATION_CACHE=false``. Programs are run as they are found: a folder into
    which others can write is not used, and processors of another kind, which may see the same home, get a folder of
    their own.
    """
    _settings["owned"] = True
    config = cast(Any, jax.config)  # JAX adds its options as it is imported
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    folder = cache_dir() / "programs" / cpu_id()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # nowhere to write is no reason to stop
        return None
    if not _is_private(folder):
        return None
    repair(folder)
    warnings.showwarning = _repair_on_warning(folder, warnings.showwarning)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)  # with it come locks: processes may share the folder
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return folder


def clear() -> None:
    """Drop all programs that JAX holds, in a command: those of other programs are not the library's to drop."""
    if _settings["owned"]:
        jax.clear_caches()


def repair(folder: Path) -> None:
    """Repair what a killed process or a full disk left half written.

    JAX writes NAME-cache, then NAME-atime. With one NAME-cache alone its eviction fails at every later program
    (``LRUCache._evict_if_needed`` reads each NAME-atime), and none is kept any more. A whole NAME-cache gets its
    NAME-atime, half of one is removed.
    """
    try:
        with filelock.FileLock(folder / LOCK_FILE, timeout=LOCK_TIMEOUT):
            programs = {path.name.removesuffix(PROGRAM_SUFFIX) for path in folder.glob(f"*{PROGRAM_SUFFIX}")}
            timestamps = {
                path.name.removesuffix(ATIME_SUFFIX) for path in folder.glob(f"*{ATIME_SUFFIX}") if path.stat().st_size
            }
            for name in programs ^ timestamps:
                if name in programs and _is_complete(folder / f"{name}{PROGRAM_SUFFIX}"):
                    (folder / f"{name}{ATIME_SUFFIX}").write_bytes(time.time_ns().to_bytes(8, "little"))
                else:
                    _remove_program(folder, name)
    except (OSError, filelock.Timeout) as error:  # without it programs are compiled again, which is no reason to stop
        logger.debug("the program cache %s was not tidied: %s", folder, error)


def _is_complete(path: Path) -> bool:
    """Return whether a program is complete; one that zlib cannot decompress counts as cut short."""
    try:
        zlib.decompress(path.read_bytes())
    except zlib.error:
        return False
    return True


def _repair_on_warning(folder: Path, showwarning: Callable[..., None]) -> Callable[..., None]:
    """Return a ``warnings.showwarning`` that repairs the folder if JAX warns of it, and passes on all other warnings.

    A damaged program is removed: JAX compiles it again, but never replaces the file, so that every start would pay.
    What a full disk left half written is removed too, and said once rather than for each program.
    """
    reported: set[str] = set()

    def repair_or_show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if damaged := READ_WARNING.match(str(message)):
            for path in folder.glob(f"{damaged[1]}-*{PROGRAM_SUFFIX}"):
                _remove_program(folder, path.name.removesuffix(PROGRAM_SUFFIX))
            logger.info("a compiled program of %s was damaged and is made anew", damaged[1])
        elif failed := WRITE_WARNING.match(str(message)):
            repair(folder)
            if not reported:
                logger.warning("compiled programs are not kept for the next start: %s", failed[1])
            reported.add(failed[1])
        else:
            showwarning(message, *args, **kwargs)

    return repair_or_show


def _remove_program(folder: Path, name: str) -> None:
    for suffix in (PROGRAM_SUFFIX, ATIME_SUFFIX):
        with contextlib.suppress(OSError):
            (folder / f"{name}{suffix}").unlink()


def cpu_id() -> str:
    """Return a name for processors that can run each other's programs, which are native code."""
    try:
        lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        lines = []
    facts = "\n".join(sorted(set(lines))) or platform.node()
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _is_private(folder: Path) -> bool:
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
