"""Commands: what they are busy with is shown on a terminal, and what the user can mend is said in one line."""

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

EXIT_PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: the same command, tried again, goes on
TF_LOG_LEVEL = "3"  # XLA's banner about a slow compile is an "error" of its log; what is one is raised, too
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # of GLIBC_TUNABLES, since glibc 2.35
REFRESH_SECONDS = 1.0  # between two refreshes of a line
_display_lock = threading.Lock()  # held while a line of show_elapsed is there: one is enough


def use_huge_pages() -> None:
    """Start this process anew with an allocator that asks for huge pages, where that is glibc's; call it first.

    XLA on CPU allocates the memory of a program at each call. In pages of 4 KiB clearing that takes longer than much of
    what is computed: a step of MobileNetV2 takes 1.4 times as long. glibc reads the setting only at the start of a
    process. Who has set GLIBC_TUNABLES keeps it as it is.
    """
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) else None
    _, _, version = (libc or "").partition("glibc ")
    if version and tuple(map(int, version.split(".")[:2])) >= (2, 35) and "GLIBC_TUNABLES" not in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # then it is slower, no more
            os.execve(
                sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES}
            )


def name_flags(message: str) -> str:
    """Return a message of the library with flags in what it advises: its own words are for callers in Python."""
    problem, separator, action = message.partition("; ")
    return problem + separator + re.sub(r"(?<![\w./-])config\.(?!json\b)(?=[a-z])", "--config.", action)


def run(main: Callable[[list[str]], int | None], **options: Any) -> None:
    """Call ``main`` by ``absl.app.run``; a line and an exit status for what is not a defect.

    Modules that ``--import`` names are imported before, so that what they register is known when flags are read.

    They are 2 on an error of the user's, 130 on Ctrl-C, 75 where SIGTERM came and the state was saved, and otherwise
    what ``main`` returns.

    Args:
        main: takes what is left of the arguments.
        options: further arguments of ``app.run``, such as ``flags_parser``.
    """
    use_huge_pages()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", TF_LOG_LEVEL)
    from absl import app  # it defines flags, which are not for programs that only call the library

    log.show_on_screen()

    def main_and_flush(argv: list[str]) -> int | None:
        from tl_jax.utils import compile_cache  # which imports JAX

        compile_cache.enable()
        status = main(argv)
        sys.stdout.flush()  # what is printed at the end fails here, not where Python ends
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
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        sys.exit(130)
    except Preempted as error:
        print(f"preempted: {error}; the same command goes on there", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except BrokenPipeError:  # who read the output has enough, such as ``head``
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
    """Print ``text``; it is no error if its reader, such as ``head``, stops before the end."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """Let what is left in the buffer of the output go where it cannot: else Python ends with a traceback of its own."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def show_elapsed(message: str) -> Iterator[None]:
    """Show ``message`` with the elapsed seconds, in a line of its own on stderr, until the block ends.

    Within another such block nothing more is shown. Lines written by ``tqdm.write`` appear above it.
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
    """Refresh a bar each second, so that its clock goes on while nothing is counted."""
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
