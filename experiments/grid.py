"""Run a recipe for a grid of field values: one run after another, in processes, or on a Ray cluster.

    python -m experiments.grid --config=configs/digits_resnet.py --set=arms="()" --set=seeds="()" --workdir=runs/grid \
        --vary="optim.lr=1e-3,3e-3" --vary="data.per_class=5,20" --vary="seed=0,1,2"
    python -m experiments.grid ... --launcher=processes --workers=2
    python -m experiments.grid ... --launcher=ray --address=auto          a running cluster; "" starts one here

Values are Python literals or words. Each combination is a run in its own folder, and a row of ``RESULTS.csv`` with its
test metrics. Existing rows are skipped, interrupted runs are resumed, and failed runs are retried and listed at the
end. With Ray (the extra ``sweeps``) all nodes must share the folder.

``launch`` runs many calls of any function in these ways. The calling process gets each result once, as it arrives; a
call that fails, or whose process dies, is retried.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import flags

from experiments import record
from experiments.recipe import format_value, load_config, parse_pair, parse_values, split_pair
from tl_jax.train.logging import say
from tl_jax.utils import command, plugins
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra

FLAGS = flags.FLAGS
Call = Callable[..., Any]
ROOT = Path(__file__).parents[1]
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU, which runs that share one must not take whole
Outcome = tuple[int, Any, str]  # which call, what it returned, why it failed ("" where it did not)


def define_flags() -> None:
    """Define the flags of the command; not on import, so that programs with flags of their own can call ``launch``."""
    flags.DEFINE_string("config", "configs/digits_resnet.py", "Recipe, with :VARIANT.")
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE for all runs.")
    flags.DEFINE_multi_string("vary", None, "FIELD=VALUE,VALUE,... of the grid.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("results", "", "Prefix of the results files; in the workdir if empty.")
    flags.DEFINE_enum("launcher", "serial", list(LAUNCHERS), "How to launch the runs.")
    flags.DEFINE_integer("workers", 2, "Parallel runs, with processes; with ray the cluster decides.")
    flags.DEFINE_string("address", "", "Address of a Ray cluster; empty starts one on this machine.")
    flags.DEFINE_float("gpus", 0.0, "GPUs per run on Ray, possibly a fraction.")
    flags.DEFINE_integer("tries", 3, "Maximum attempts per run.")


def main(_: list[str]) -> None:
    """Run what is missing, then show all."""
    recipe, fixed = FLAGS.config, dict(map(parse_pair, FLAGS.set))
    grid = {field: parse_values(values) for field, values in map(split_pair, FLAGS.vary)}
    folder = Path(FLAGS.workdir).expanduser().absolute()
    prefix = Path(FLAGS.results or folder / "grid")
    load_config(recipe, fixed | {field: values[0] for field, values in grid.items()})  # mistakes now, not in a worker
    record.begin_record(prefix, {"recipe": recipe, "set": {k: repr(v) for k, v in fixed.items()}, "vary": list(grid)})
    rows = record.read_rows(prefix)
    done = {tuple(row[field] for field in grid) for row in rows}
    jobs = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    missing = [job for job in jobs if tuple(map(format_value, job.values())) not in done]
    say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done before")
    modules = tuple(plugins.IMPORTED.values())
    work = [(recipe, fixed, job, str(folder / run_name(job)), modules) for job in missing]

    def add_row(index: int, values: Mapping[str, Any]) -> None:
        rows.append({**{field: format_value(value) for field, value in missing[index].items()}, **values})
        record.write_rows(prefix, rows)

    options = {"workers": FLAGS.workers, "address": FLAGS.address, "gpus": FLAGS.gpus}
    failed = launch(FLAGS.launcher, run_one, work, add_row, [run_name(job) for job in missing], FLAGS.tries, **options)
    for index, reason in failed.items():
        say(f"FAILED {run_name(missing[index])}: {reason}")
    say(f"{prefix}.csv has {len(rows)} rows")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed {FLAGS.tries} times; the same command tries again")


def run_one(
    recipe: str, fixed: Mapping[str, Any], job: Mapping[str, Any], folder: str, modules: Sequence[str] = ()
) -> dict[str, Any]:
    """Run one combination, in whatever process this is, with these modules of the user's; return its columns."""
    plugins.import_modules(modules)
    plugins.import_entry_points()
    from tl_jax import training

    summary = training.train(load_config(recipe, {**fixed, **job}), folder)
    seconds = summary["seconds"]["total"]
    return {**summary["metrics"], "steps": summary["steps"], "seconds": seconds, "commit": record.commit()}


def run_name(job: Mapping[str, Any]) -> str:
    """Return a name for the folder of a combination."""
    return ",".join(
        f"{field.rpartition('.')[2]}={format_value(value)}".replace(os.sep, "_") for field, value in job.items()
    )


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


if __name__ == "__main__":
    define_flags()
    command.run(main)
