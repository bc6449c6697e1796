"""Cache compiled programs on disk, so that the next start of a configuration need not compile them."""

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

MAX_BYTES = 2 * 2**30  # of all programs of a machine; the least recently used ones are removed
MIN_COMPILE_SECONDS = 0.05  # compile time from which a program is cached; an estimate
LOCK_FILE, LOCK_TIMEOUT = ".lockfile", 5.0  # JAX's lock of the folder, and the seconds to wait for it
PROGRAM_SUFFIX, ATIME_SUFFIX = "-cache", "-atime"  # suffixes of the two files that JAX writes per program
# JAX's warnings about programs that cannot be read or written.
READ_WARNING = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")
WRITE_WARNING = re.compile(r"Error writing persistent compilation cache entry for '[^']+': (.*)", re.S)

_settings = {"owned": False}  # whether the process is a command of this project


def enable() -> Path | None:
    """Let JAX cache compiled programs in ``programs`` of the cache folder; return the folder, or None if it does not.

    For commands, which own their process. A folder set by the user (``JAX_COMPILATION_CACHE_DIR``) and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` are respected. Cached programs are executed, so a folder that others can
    write to is not used, and each kind of processor, which may share a home folder, has its own.
    """
    _settings["owned"] = True
    config = cast(Any, jax.config)  # JAX adds options on import
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    folder = cache_dir() / "programs" / cpu_id()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # caching is optional
        return None
    if not _is_private(folder):
        return None
    repair(folder)
    warnings.showwarning = _repair_on_warning(folder, warnings.showwarning)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)  # also enables locks
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return folder


def clear() -> None:
    """Clear JAX's programs in memory, only in a command: other programs may still use theirs."""
    if _settings["owned"]:
        jax.clear_caches()


def repair(folder: Path) -> None:
    """Repair the files that a killed process or a full disk left incomplete.

    JAX writes NAME-cache, then NAME-atime. A single NAME-cache makes its eviction fail for every later program
    (``LRUCache._evict_if_needed`` reads each NAME-atime), so that none is cached. A complete NAME-cache gets its
    NAME-atime; an incomplete one is removed.
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
    except (OSError, filelock.Timeout) as error:  # caching is optional
        logger.debug("the program cache %s was not tidied: %s", folder, error)


def _is_complete(path: Path) -> bool:
    """Return whether a program is complete, that is whether zlib can decompress it."""
    try:
        zlib.decompress(path.read_bytes())
    except zlib.error:
        return False
    return True


def _repair_on_warning(folder: Path, showwarning: Callable[..., None]) -> Callable[..., None]:
    """Return a ``warnings.showwarning`` that repairs the folder on JAX's warnings, and passes on others.

    A damaged program is removed, as JAX recompiles it on each start without replacing the file. Incomplete files on a
    full disk are removed too, with one message instead of one per program.
    """
    reported: set[str] = set()

    def repair_or_show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if damaged := READ_WARNING.match(str(message)):
            for path in folder.glob(f"{damaged[1]}-*{PROGRAM_SUFFIX}"):
                _remove_program(folder, path.name.removesuffix(PROGRAM_SUFFIX))
            logger.info("a cached program of %s was damaged; it is compiled again", damaged[1])
        elif failed := WRITE_WARNING.match(str(message)):
            repair(folder)
            if not reported:
                logger.warning("compiled programs are not cached: %s", failed[1])
            reported.add(failed[1])
        else:
            showwarning(message, *args, **kwargs)

    return repair_or_show


def _remove_program(folder: Path, name: str) -> None:
    for suffix in (PROGRAM_SUFFIX, ATIME_SUFFIX):
        with contextlib.suppress(OSError):
            (folder / f"{name}{suffix}").unlink()


def cpu_id() -> str:
    """Return a name of the processors that can run the same native code."""
    try:
        lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        lines = []
    facts = "\n".join(sorted(set(lines))) or platform.node()
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _is_private(folder: Path) -> bool:
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
