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
from tl_jax.utils.extras import require_extra

Call = Callable[..., Any]
ROOT = Path(__file__).parents[1]
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU, which runs that share one must not take whole
Outcome = tuple[int, Any, str]  # which call, what it returned, why it failed ("" where it did not)


def launch(
    launcher: str,
    function: Call,
    calls: Sequence[tuple[Any, ...]],
    on_result: Callable[[int, Any], None],
    names: Sequence[str],
    tries: int = 3,
    **options: Any,
) -> dict[int, str]:
    """Call ``function`` with each of ``calls``; return why some failed for good, by their place in ``calls``.

    Args:
        launcher: a key of ``LAUNCHERS``.
        function: of a module that workers can import.
        calls: arguments of each call.
        on_result: takes place and result of a call as soon as it is done.
        names: of the calls, for the progress lines.
        tries: how often a call may fail.
        options: ``workers`` of processes; ``address`` and ``gpus`` of ray.
    """
    remaining, failures = dict(enumerate(calls)), dict.fromkeys(range(len(calls)), 0)
    done, failed, start = 0, {}, time.monotonic()
    while remaining:
        for index, result, reason in LAUNCHERS[launcher](function, remaining, **options):
            if not reason:
                on_result(index, result)
                del remaining[index]
                done += 1
            else:
                failures[index] += 1
                if failures[index] == tries:
                    failed[index] = reason
                    del remaining[index]
            spent = time.monotonic() - start
            eta = f", {spent / done * len(remaining) / 60:.1f} min left" if done and remaining else ""
            status = "done" if not reason else f"failed ({failures[index]} of {tries}): {reason}"
            say(f"[{done + len(failed)}/{len(calls)}] {names[index]}: {status}{eta}")
    return failed


def run_serial(function: Call, remaining: Mapping[int, tuple[Any, ...]], **_: Any) -> Iterator[Outcome]:
    """Make the calls in this process."""
    for index, arguments in list(remaining.items()):
        try:
            yield index, function(*arguments), ""
        except Exception as e:
            yield index, None, _reason(e)


def run_processes(
    function: Call, remaining: Mapping[int, tuple[Any, ...]], workers: int = 2, **_: Any
) -> Iterator[Outcome]:
    """Make the calls in processes, each in one of its own: what it leaves in memory, or on a GPU, ends with it.

    Where one dies the pool is lost, and the calls that were under way count as failed; those not begun do not.
    """
    waiting, running = list(remaining.items()), {}
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault(MEMORY, f"{0.9 / workers:.3f}")  # what they inherit
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                index, arguments = waiting.pop(0)
                running[pool.submit(function, *arguments)] = index
            finished, _rest = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                index, error = running.pop(future), future.exception()
                yield index, None if error else future.result(), _reason(error) if error else ""
                if isinstance(error, BrokenProcessPool):
                    yield from ((index, None, _reason(error)) for index in running.values())
                    return


def run_on_ray(
    function: Call, remaining: Mapping[int, tuple[Any, ...]], address: str = "", gpus: float = 0.0, **_: Any
) -> Iterator[Outcome]:
    """Make the calls on a Ray cluster, which makes those of a dead worker or node again by itself."""
    with require_extra("sweeps"):
        import ray as engine  # pyright: ignore[reportMissingImports]
    if not engine.is_initialized():
        engine.init(address=address or None, log_to_driver=False)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": paths} | ({MEMORY: f"{0.9 * gpus:.3f}"} if 0 < gpus < 1 else {})
    options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 3, "max_calls": 1}
    remote = engine.remote(**options, runtime_env={"env_vars": environment})(function)
    waiting = {remote.remote(*arguments): index for index, arguments in remaining.items()}
    while waiting:
        (ready,), _rest = engine.wait(list(waiting), num_returns=1)
        index = waiting.pop(ready)
        try:
            yield index, engine.get(ready), ""
        except Exception as e:
            yield index, None, _reason(e)


LAUNCHERS: dict[str, Callable[..., Iterator[Outcome]]] = {
    "serial": run_serial,
    "processes": run_processes,
    "ray": run_on_ray,
}


def _reason(error: BaseException) -> str:
    """Return the last line of an error, which says what it was."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"[:300]
