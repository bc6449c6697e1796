"""Check that recipes still give the results in experiments/expected.json: run them again and compare.

    python -m experiments.verify                                       the quick ones
    python -m experiments.verify --recipes=digits_resnet,docs_bert     these
    python -m experiments.verify --all --data_dir=FOLDER               every entry; some need data
    python -m experiments.verify --record --recipes=NAME               measure, and write the entry

Each figure is "as expected" or "drifted", or "untested" if no value would be a drift. A recipe is "skipped" if its data
are absent, and may have "failed". The exit status is 1 if something drifted or failed. Nothing is written but the
folder of the runs (a temporary one if none is named) and, with --record, the file.

A figure is the mean of a metric over the seeds of its entry. The same commit gives the same figures on the same
hardware with the same libraries. Elsewhere sums round differently, and training amplifies this until a run differs as
much as one with another seed. So the mean may move by the 95 % prediction interval of the mean of as many new seeds,
and by two test examples if seeds hardly differ. A loss after few steps must stay within ``CLOSE`` of itself, because
rounding has not grown by then.
"""

import contextlib
import json
import math
import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging

from experiments import recipe, record
from experiments.recipe import configured
from tl_jax.train import workdir
from tl_jax.train.logging import say
from tl_jax.utils import command as command_module
from tl_jax.utils import disk, environment
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.waiting import waiting

FILE = Path(__file__).parent / "expected.json"
CHEAP = 40.0  # seconds of processor time: entries that took no longer are verified where none is named
FEW = 100  # steps, in which differences of rounding do not grow
CLOSE = 0.01  # share of a loss
RESOLUTION = 2  # tested examples
BAD = ("drifted", "failed")
SHARES = ("accuracy", "auc", "f1", "map")  # metrics that lie in [0, 1]


class Row(NamedTuple):
    """A line of the table: a figure, or a recipe that was not measured."""

    recipe: str
    figure: str = ""
    measured: float | None = None
    expected: float | None = None
    within: float | None = None
    verdict: str = ""
    reason: str = ""
    seconds: float | None = None


def read(path: Path = FILE) -> dict[str, Any]:
    """Return the entries by name."""
    return json.loads(path.read_text())["recipes"] if path.is_file() else {}


def without(path: Path = FILE) -> dict[str, str]:
    """Return the recipes that have no entry, and why."""
    return json.loads(path.read_text())["without"]


def write(path: Path, entries: Mapping[str, Any]) -> None:
    """Write the entries by name; what has one needs no reason for having none."""
    reasons = without(path) if path.is_file() else {}
    reasons = {name: reason for name, reason in reasons.items() if name not in entries}
    text = json.dumps({"without": reasons, "recipes": dict(sorted(entries.items()))}, indent=1)
    disk.write_text(path, text + "\n")


def cheap(entries: Mapping[str, Any]) -> list[str]:
    """Return the names of those that took ``CHEAP`` seconds or less, and need no data."""
    return [name for name, entry in entries.items() if entry["seconds"] <= CHEAP and not entry.get("needs")]


def command(name: str, asked: Mapping[str, Any]) -> str:
    """Return the command that makes the runs of an entry by hand."""
    fields = {**asked["set"], "seeds": tuple(asked["seeds"])}
    shown = [f"--config.{field}={shlex.quote(str(value))}" for field, value in fields.items()]
    shown += [f"--config.{field}=DATA_DIR/{path}" for field, path in asked.get("needs", {}).items()]
    return " ".join([f"tl-jax --config={name}", *shown])


def make_entry(name: str, asked: Mapping[str, Any], found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what is written of a measurement: what was asked for (``set``, ``seeds``, ``needs``), and what came."""
    import jax

    from tl_jax import api

    figures = {}
    for figure, values in found["figures"].items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: {figure} could not be measured in every seed; take another recipe, or more tests")
        half, why = within(figure, values, found["examples"])
        figures[figure] = {"mean": _short(np.mean(values)), "within": _short(half), "why": why}
        figures[figure]["values"] = [_short(value) for value in values]
    kind, cpu = jax.devices()[0].device_kind, f"{os.cpu_count()} CPU cores, {environment.processor()}"
    return {
        "command": command(name, asked),
        **asked,
        "figures": figures,
        "examples": found["examples"],
        "steps": found["steps"],
        "seconds": round(seconds, 1),  # of processor time, which other work on the machine does not change
        "hardware": cpu if kind == "cpu" else f"{len(jax.devices())} x {kind}",
        "versions": {package: api.versions()[package] for package in ("tl_jax", "jax", "numpy")},
        "commit": record.commit(),
    }


def within(figure: str, values: Sequence[float], examples: int) -> tuple[float, str]:
    """Return what the mean of a figure may move by, and why.

    Args:
        figure: "ARM METRIC".
        values: of the seeds.
        examples: that were tested on.
    """
    from scipy import stats

    values = np.asarray(values, float)
    if figure.endswith("loss"):
        return CLOSE * abs(float(values.mean())), f"{CLOSE:.0%} of it, the same seeds and few steps"
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) * np.sqrt(2 / n))
    least = RESOLUTION / examples * max(1.0, float(np.abs(values).max()))
    if half < least:
        return least, f"{RESOLUTION} of {examples} tests; the interval of {n} seeds is narrower"
    return half, f"95 % prediction interval, {n} seeds"


def compare(name: str, entry: Mapping[str, Any], found: Mapping[str, Any], seconds: float) -> list[Row]:
    """Return a row for each figure that is expected, or was found and is not."""
    rows = []
    for figure in {**entry["figures"], **found["figures"]}:
        old, values = entry["figures"].get(figure), found["figures"].get(figure)
        mean = float(np.mean(values)) if values else None
        if old is None or mean is None:
            absent = "is not expected; record it anew" if old is None else "was not measured"
            rows.append(Row(name, figure, mean, old and old["mean"], verdict="drifted", reason=absent))
            continue
        good = abs(mean - old["mean"]) <= old["within"] * (1 + 1e-4)  # which is written with five digits; NaN is bad
        verdict, reason = "as expected" if good else "drifted", ""
        if good and not can_drift(figure, old["mean"], old["within"]):
            verdict, reason = "untested", "no value that it can have would be a drift; record it with more seeds"
        rows.append(Row(name, figure, mean, old["mean"], old["within"], verdict, reason, seconds))
    return rows


def can_drift(figure: str, mean: float, within: float) -> bool:
    """Return whether a figure could come out as drifted: a share lies in [0, 1], a difference of two in [-1, 1]."""
    if figure.split()[-1] not in SHARES:
        return True
    lowest = -1.0 if " over " in figure else 0.0
    return mean - within > lowest or mean + within < 1.0


def status(rows: Sequence[Row]) -> int:
    """Return the exit status: 1 where anything has drifted or failed."""
    return int(any(row.verdict in BAD for row in rows))


def table(rows: Sequence[Row]) -> str:
    """Return the rows drawn for the screen, and their number by verdict."""
    head = ("recipe", "figure", "measured", "expected", "verdict")
    lines = [head]
    for row in rows:
        wanted = "" if row.expected is None else f"{row.expected:.4g}" + (f" ± {row.within:.2g}" if row.within else "")
        seen = "" if row.measured is None else f"{row.measured:.4g}"
        verdict = row.verdict + (f": {row.reason}" if row.reason else "")
        lines.append((row.recipe, row.figure, seen, wanted, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    drawn = ["  ".join([*(c.ljust(w) for c, w in zip(line[:4], widths, strict=True)), line[4]]) for line in lines]
    verdicts = ("as expected", *BAD, "untested", "skipped")
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in verdicts}
    return "\n".join([*drawn, ", ".join(f"{n} {verdict}" for verdict, n in count.items())])


def _short(value: Any) -> float:
    return float(f"{float(value):.5g}")


def verify(names: Sequence[str], known: dict[str, Any], folder: Path, data: Path | None) -> list[Row]:
    """Run the recipes of entries again, below ``folder``; return a row for each figure."""
    rows: list[Row] = []
    for at, name in enumerate(names, 1):
        entry, begin = known[name], time.process_time()
        cost = f"{entry['seconds']:.0f} s of processor time on {entry['hardware']}"
        say(f"{name} ({at} of {len(names)}; it took {cost}) ...")
        if absent := missing(entry, data):
            rows.append(Row(name, verdict="skipped", reason=absent))
            continue
        try:
            with waiting(f"{name}, {at} of {len(names)}"):
                found = measure(name, entry, place(folder, name), data)
        except Exception as error:  # whatever it is, the other recipes are still to be looked at
            first = f"{error}".strip().partition("\n")[0]
            rows.append(Row(name, verdict="failed", reason=f"{type(error).__name__}: {first}"))
            continue
        rows += compare(name, entry, found, time.process_time() - begin)
    return rows


def missing(entry: dict[str, Any], data: Path | None) -> str:
    """Return what keeps an entry from being run here, "" if nothing does."""
    paths = list(entry.get("needs", {}).values())
    if paths and data is None:
        return f"needs data; pass --data_dir=FOLDER with {', '.join(paths)}"
    absent = [path for path in paths if data and not (data / path).exists()]
    return f"no {absent[0]} in {data}" if absent else ""


def measure(name: str, entry: dict[str, Any], folder: Path, data: Path | None) -> dict[str, Any]:
    """Run a recipe with each seed of its entry; what it prints goes to ``folder/output.txt``.

    Returns:
        ``figures``, name -> a value for each seed, ``examples`` that were tested on, and ``steps``.
    """
    from tl_jax import api
    from tl_jax.train import sharding
    from tl_jax.train.workdir import read_json

    changes = {field: tuple(value) if isinstance(value, list) else value for field, value in entry["set"].items()}
    changes |= {field: str(data / path) for field, path in entry.get("needs", {}).items() if data}
    config = configured(name, {**changes, "seeds": tuple(entry["seeds"])})
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            summary = api.run(config, folder)
        finally:
            sharding.forget()  # the programs of dozens of recipes are too many for one process
    metric, first, *others = summary["metric"], *summary["arms"]
    values = {arm: row["values"] for arm, row in summary["arms"].items()}
    figures = {f"{arm} {metric}": row for arm, row in values.items()} if others else {metric: values[first]}
    for arm in others:
        gains = [a - b for a, b in zip(values[first], values[arm], strict=True)]
        figures[f"{first} over {arm}, {metric}"] = gains
    if summary["steps"] <= FEW and "loss" in summary["metrics"]:
        runs = [read_json(folder / first / f"seed{seed}" / "summary.json") for seed in entry["seeds"]]
        figures[f"{first} loss" if others else "loss"] = [run["metrics"]["loss"] for run in runs]
    figures = {figure: [math.nan if v is None else v for v in row] for figure, row in figures.items()}
    return {"figures": figures, "examples": summary["examples_evaluated"], "steps": summary["steps"]}


def place(folder: Path, name: str) -> Path:
    """Return the folder of an entry's runs."""
    return folder / name.replace(":", "_")  # which not every system has in a name


RECIPES = flags.DEFINE_list("recipes", [], "Names of entries, such as digits_resnet or cifar_vgg:smoke.")
ALL = flags.DEFINE_bool("all", False, "Every entry.")
RECORD = flags.DEFINE_bool("record", False, "Measure, and write the entries.")
SEEDS = flags.DEFINE_list("seeds", [], "With --record: seeds of the entry; those that it has, or 0,1,2.")
SET = flags.DEFINE_multi_string("set", [], "With --record: FIELD=VALUE of the entry.")
NEEDS = flags.DEFINE_multi_string("needs", [], "With --record: FIELD=PATH below --data_dir that the entry reads.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the runs; a temporary one if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data that some entries need; $TL_JAX_TEST_DATA if empty.")
EXPECTED = flags.DEFINE_string("expected", str(FILE), "The file with the entries.")


def main(_: list[str]) -> int:
    """Verify or record; return the exit status."""
    logging.set_verbosity(logging.WARNING)
    workdir.hush()
    file = Path(EXPECTED.value)
    known = read(file)
    names = [_named(name) for name in RECIPES.value]
    if RECORD.value and not (names or ALL.value):
        raise UserError("--record overwrites entries; say which by --recipes=NAME,... or --all")
    if not RECORD.value and (SEEDS.value or SET.value or NEEDS.value):
        raise UserError("--seeds, --set and --needs are what --record writes; leave them out to verify")
    names = names or (list(known) if ALL.value else cheap(known))
    if not RECORD.value and (unknown := [name for name in names if name not in known]):
        raise UserError(f"--recipes={unknown[0]}: no entry in {file}; {nearest(unknown[0], known)}")
    with contextlib.ExitStack() as stack:
        folder = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory(prefix="verify_")))
        if any(place(folder, name).exists() for name in names):
            raise UserError(f"{folder} has the runs of an earlier verification; pass another --workdir")
        if RECORD.value:
            return _record(names, known, folder.expanduser().absolute(), file)
        rows = verify(names, known, folder.expanduser().absolute(), data_dir())
    say(table(rows))
    return status(rows)


def _record(names: Sequence[str], known: dict[str, Any], folder: Path, file: Path) -> int:
    """Measure recipes and write their entries, each as soon as it is there."""
    data = data_dir()
    for name in names:
        old, begin = known.get(name, {}), time.process_time()
        seeds = [int(seed) for seed in SEEDS.value] or old.get("seeds", [0, 1, 2])
        if len(seeds) < 3:
            raise UserError(f"--seeds={','.join(map(str, seeds))}: an interval wants three or more")
        entry = {"set": dict(map(recipe.pair, SET.value)) or old.get("set", {}), "seeds": seeds}
        if needs := dict(map(recipe.split_pair, NEEDS.value)) or old.get("needs", {}):
            entry["needs"] = needs
        if absent := missing(entry, data):
            say(f"{name}: skipped, {absent}")
            continue
        say(f"{name} ...")
        with waiting(name):
            found = measure(name, entry, place(folder, name), data)
        known[name] = make_entry(name, entry, found, time.process_time() - begin)
        write(file, known)
        say(table(compare(name, known[name], found, time.process_time() - begin)))
    return 0


def data_dir() -> Path | None:
    """Return the folder of data, None where none is named."""
    named = DATA_DIR.value or os.environ.get("TL_JAX_TEST_DATA", "")
    return Path(named).expanduser().absolute() if named else None


def _named(given: str) -> str:
    """Return the name of an entry for NAME, NAME.py or configs/NAME.py, each with or without :VARIANT."""
    path, colon, variant = given.partition(":")
    return Path(path).name.removesuffix(".py") + colon + variant


if __name__ == "__main__":
    command_module.run(main)
