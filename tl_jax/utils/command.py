"""Run commands: show progress in a terminal, and report user errors in one line."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from tl_jax.utils import disk, log, plugins
from tl_jax.utils.errors import Preempted, UserError

EXIT_PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: the same command resumes
TF_LOG_LEVEL = "3"  # hides XLA's message about slow compilation, logged as an error; real errors are also raised
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # value of GLIBC_TUNABLES, since glibc 2.35
REFRESH_SECONDS = 1.0  # between two refreshes of a line
_display_lock = threading.Lock()  # held while show_elapsed shows a line, since one is enough


def use_huge_pages() -> None:
    """Restart this process with huge pages in glibc's allocator, if available; call it first.

    XLA on CPU allocates the memory of a program on each call. Clearing pages of 4 KiB takes longer than much of the
    computation: a step of MobileNetV2 takes 1.4 times as long. glibc reads the setting only when a process starts. An
    existing GLIBC_TUNABLES is not changed.
    """
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) else None
    _, _, version = (libc or "").partition("glibc ")
    if version and tuple(map(int, version.split(".")[:2])) >= (2, 35) and "GLIBC_TUNABLES" not in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # slower otherwise
            os.execve(
                sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES}
            )


def name_flags(message: str) -> str:
    """Return a message with flags for the fields in its advice; the library's messages are for Python callers."""
    problem, separator, action = message.partition("; ")
    return problem + separator + re.sub(r"(?<![\w./-])config\.(?!json\b)(?=[a-z])", "--config.", action)


def run(main: Callable[[list[str]], int | None], **options: Any) -> None:
    """Call ``main`` with ``absl.app.run``, and turn expected errors into a line and an exit status.

    The modules of ``--import`` are imported first, so that the flags can use what they register.

    The exit status is 2 for a user error, 130 for Ctrl-C, 75 for SIGTERM after the state was saved, and otherwise the
    result of ``main``.

    Args:
        main: function of the remaining arguments.
        options: further arguments of ``app.run``, such as ``flags_parser``.
    """
    use_huge_pages()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", TF_LOG_LEVEL)
    from absl import app  # defines flags, so only for commands

    log.show_messages()

    def main_and_flush(argv: list[str]) -> int | None:
        from tl_jax.utils import compile_cache  # imports JAX

        compile_cache.enable()
        status = main(argv)
        sys.stdout.flush()  # raise errors of the output here, not at exit
        return status

    try:
        sys.argv, modules = plugins.take_imports(sys.argv)
        with show_elapsed(f"importing {', '.join(modules)}") if modules else contextlib.nullcontext():
            plugins.import_modules(modules)
        plugins.import_entry_points()
        app.run(main_and_flush, **options)
    except UserError as error:
        _discard_output()
        print(f"error: {name_flags(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command to resume", file=sys.stderr)
        sys.exit(130)
    except Preempted as error:
        print(f"preempted: {error}; run the same command to resume", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except BrokenPipeError:  # the reader, such as ``head``, has closed
        _discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if not (number := disk.disk_errno(error)):
            raise
        _discard_output()
        verb, where = ("read or write", error.filename) if error.filename else ("write", "the output")
        print(f"error: {disk.write_error(where, number, verb)}", file=sys.stderr)
        sys.exit(2)


def show(text: str) -> None:
    """Print ``text``; ignore that its reader, such as ``head``, closes early."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """Discard buffered output, which would otherwise raise a traceback at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def show_elapsed(message: str) -> Iterator[None]:
    """Show ``message`` with the elapsed seconds in a line on stderr until the block ends.

    A nested block shows nothing. Lines of ``tqdm.write`` appear above it.
    """
    if not sys.stderr.isatty() or not _display_lock.acquire(blocking=False):
        yield
        return
    try:
        with tqdm(total=0, bar_format="{desc} ({elapsed})", desc=message, leave=False, file=sys.stderr) as bar:
            with auto_refresh(bar):
                yield
    finally:
        _display_lock.release()


@contextlib.contextmanager
def auto_refresh(bar: tqdm) -> Iterator[None]:
    """Refresh a bar each second, so that its clock runs between updates."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(REFRESH_SECONDS):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
