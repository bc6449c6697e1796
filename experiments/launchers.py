"""Calls one after another, in processes, or on Ray; those that fail are tried again."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tl_jax.train.logging import say
from tl_jax.utils.extras import needs

Call = Callable[..., Any]
ROOT = Path(__file__).parents[1]
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU, which runs that share one must not take whole
Outcome = tuple[int, Any, str]  # which call, what it returned, why it failed ("" where it did not)


def launch(
    launcher: str,
    function: Call,
    work: Sequence[tuple[Any, ...]],
    keep: Callable[[int, Any], None],
    names: Sequence[str],
    tries: int = 3,
    **options: Any,
) -> dict[int, str]:
    """Call ``function`` with each of ``work``; return why some failed for good, by their place in ``work``.

    Args:
        launcher: a key of ``LAUNCHERS``.
        function: of a module that workers can import.
        work: arguments of each call.
        keep: takes place and result of a call as soon as it is done.
        names: of the calls, for the progress lines.
        tries: how often a call may fail.
        options: ``workers`` of processes; ``address`` and ``gpus`` of ray.
    """
    left, failures = dict(enumerate(work)), dict.fromkeys(range(len(work)), 0)
    done, failed, begin = 0, {}, time.monotonic()
    while left:
        for at, result, reason in LAUNCHERS[launcher](function, left, **options):
            if not reason:
                keep(at, result)
                del left[at]
                done += 1
            else:
                failures[at] += 1
                if failures[at] == tries:
                    failed[at] = reason
                    del left[at]
            spent = time.monotonic() - begin
            eta = f", {spent / done * len(left) / 60:.1f} min left" if done and left else ""
            what = "done" if not reason else f"failed ({failures[at]} of {tries}): {reason}"
            say(f"[{done + len(failed)}/{len(work)}] {names[at]}: {what}{eta}")
    return failed


def serial(function: Call, left: Mapping[int, tuple[Any, ...]], **_: Any) -> Iterator[Outcome]:
    """Make the calls in this process."""
    for at, arguments in list(left.items()):
        try:
            yield at, function(*arguments), ""
        except Exception as e:
            yield at, None, _reason(e)


def processes(function: Call, left: Mapping[int, tuple[Any, ...]], workers: int = 2, **_: Any) -> Iterator[Outcome]:
    """Make the calls in processes, each in one of its own: what it leaves in memory, or on a GPU, ends with it.

    Where one dies the pool is lost, and the calls that were under way count as failed; those not begun do not.
    """
    waiting, running = list(left.items()), {}
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault(MEMORY, f"{0.9 / workers:.3f}")  # what they inherit
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                at, arguments = waiting.pop(0)
                running[pool.submit(function, *arguments)] = at
            ready, _rest = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                at, error = running.pop(future), future.exception()
                yield at, None if error else future.result(), _reason(error) if error else ""
                if isinstance(error, BrokenProcessPool):
                    yield from ((at, None, _reason(error)) for at in running.values())
                    return


def ray(
    function: Call, left: Mapping[int, tuple[Any, ...]], address: str = "", gpus: float = 0.0, **_: Any
) -> Iterator[Outcome]:
    """Make the calls on a Ray cluster, which makes those of a dead worker or node again by itself."""
    with needs("sweeps"):
        import ray as engine  # pyright: ignore[reportMissingImports]
    if not engine.is_initialized():
        engine.init(address=address or None, log_to_driver=False)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": paths} | ({MEMORY: f"{0.9 * gpus:.3f}"} if 0 < gpus < 1 else {})
    how = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 3, "max_calls": 1}
    remote = engine.remote(**how, runtime_env={"env_vars": environment})(function)
    waiting = {remote.remote(*arguments): at for at, arguments in left.items()}
    while waiting:
        (ready,), _rest = engine.wait(list(waiting), num_returns=1)
        at = waiting.pop(ready)
        try:
            yield at, engine.get(ready), ""
        except Exception as e:
            yield at, None, _reason(e)


LAUNCHERS: dict[str, Callable[..., Iterator[Outcome]]] = {"serial": serial, "processes": processes, "ray": ray}


def _reason(error: BaseException) -> str:
    """Return the last line of an error, which says what it was."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"[:300]
