"""Grid of runs of a recipe: every combination of some fields' values, one by one, in processes, or on a Ray cluster.

    python -m experiments.grid --config=configs/digits_resnet.py --set=arms="()" --set=seeds="()" --workdir=runs/grid \
        --vary="optim.lr=1e-3,3e-3" --vary="data.per_class=5,20" --vary="seed=0,1,2"
    python -m experiments.grid ... --launcher=processes --workers=2
    python -m experiments.grid ... --launcher=ray --address=auto          a cluster that runs; "" starts one here

Values are Python literals, or words. Each combination is a run of its own in the folder, and a row of ``RESULTS.csv``
with its test metrics. Rows that are there are not run again, interrupted runs are resumed, and failed runs are retried
and named at the end. With Ray (the extra ``sweeps``) all nodes must see the folder.

``launch`` makes many calls of any function in these ways. Results come one by one, each once, to the calling process; a
call that fails, or whose process dies, is retried.
"""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments import record
from experiments.launchers import LAUNCHERS, launch
from experiments.recipe import format_value, load_config, parse_pair, parse_values, split_pair
from tl_jax.train.logging import say
from tl_jax.utils import command
from tl_jax.utils.errors import UserError

CONFIG = flags.DEFINE_string("config", "configs/digits_resnet.py", "Recipe, with :VARIANT.")
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE for all runs.")
VARY = flags.DEFINE_multi_string("vary", None, "FIELD=VALUE,VALUE,... of the grid.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
RESULTS = flags.DEFINE_string("results", "", "Prefix of the record; in the workdir if empty.")
LAUNCHER = flags.DEFINE_enum("launcher", "serial", list(LAUNCHERS), "How runs are run.")
WORKERS = flags.DEFINE_integer("workers", 2, "Runs at a time, with processes; with ray the cluster decides.")
ADDRESS = flags.DEFINE_string("address", "", "Of a Ray cluster; empty starts one on this machine.")
GPUS = flags.DEFINE_float("gpus", 0.0, "Share of a GPU that a run on Ray takes.")
TRIES = flags.DEFINE_integer("tries", 3, "How often a run may fail.")


def main(_: list[str]) -> None:
    """Run what is missing, then show all."""
    recipe, fixed = CONFIG.value, dict(map(parse_pair, SET.value))
    grid = {field: parse_values(values) for field, values in map(split_pair, VARY.value)}
    folder = Path(WORKDIR.value).expanduser().absolute()
    prefix = Path(RESULTS.value or folder / "grid")
    load_config(recipe, fixed | {field: values[0] for field, values in grid.items()})  # mistakes now, not in a worker
    record.begin_record(prefix, {"recipe": recipe, "set": {k: repr(v) for k, v in fixed.items()}, "vary": list(grid)})
    rows = record.read_rows(prefix)
    done = {tuple(row[field] for field in grid) for row in rows}
    jobs = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    missing = [job for job in jobs if tuple(map(format_value, job.values())) not in done]
    say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done before")
    work = [(recipe, fixed, job, str(folder / run_name(job))) for job in missing]

    def add_row(index: int, values: Mapping[str, Any]) -> None:
        rows.append({**{field: format_value(value) for field, value in missing[index].items()}, **values})
        record.write_rows(prefix, rows)

    options = {"workers": WORKERS.value, "address": ADDRESS.value, "gpus": GPUS.value}
    failed = launch(LAUNCHER.value, run_one, work, add_row, [run_name(job) for job in missing], TRIES.value, **options)
    for index, reason in failed.items():
        say(f"FAILED {run_name(missing[index])}: {reason}")
    say(f"{prefix}.csv has {len(rows)} rows")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed {TRIES.value} times; the same command tries again")


def run_one(recipe: str, fixed: Mapping[str, Any], job: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Run one combination, in whatever process this is; return its columns."""
    from tl_jax import api

    summary = api.run(load_config(recipe, {**fixed, **job}), folder)
    seconds = summary["seconds"]["total"]
    return {**summary["metrics"], "steps": summary["steps"], "seconds": seconds, "commit": record.commit()}


def run_name(job: Mapping[str, Any]) -> str:
    """Return a name for the folder of a combination."""
    return ",".join(
        f"{field.rpartition('.')[2]}={format_value(value)}".replace(os.sep, "_") for field, value in job.items()
    )


if __name__ == "__main__":
    command.run(main)
