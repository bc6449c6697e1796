"""Check that recipes still give the results in experiments/expected.json: run them again and compare.

    python -m experiments.verify                                       the quick recipes
    python -m experiments.verify --recipes=digits_resnet,docs_bert     these recipes
    python -m experiments.verify --all --data_dir=FOLDER               every entry; some need data
    python -m experiments.verify --record --recipes=NAME               measure, and write the entry

Each figure is "as expected" or "drifted", or "untested" if no value would be a drift. A recipe is "skipped" if its data
are missing, and may have "failed". The exit status is 1 if something drifted or failed. Only the folder of the runs (by
default a temporary one) and, with --record, the file are written.

A figure is the mean of a metric over the seeds of its entry. The same commit gives the same figures on the same
hardware with the same libraries. Elsewhere sums round differently, and training amplifies this until a run differs as
much as one with another seed. So the mean may move by the 95 % prediction interval of the mean of as many new seeds,
and by two test examples if seeds hardly differ. A loss after few steps must stay within ``LOSS_TOLERANCE``, because
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
from tl_jax.train import workdir
from tl_jax.train.logging import say
from tl_jax.utils import command as command_module
from tl_jax.utils import disk, environment
from tl_jax.utils.command import show_elapsed
from tl_jax.utils.errors import UserError, nearest

FLAGS = flags.FLAGS
EXPECTED_FILE = Path(__file__).parent / "expected.json"
MAX_SECONDS = 40.0  # seconds of processor time: entries that took no longer are verified where none is named
MAX_LOSS_STEPS = 100  # steps, in which differences of rounding do not grow
LOSS_TOLERANCE = 0.01  # share of a loss
MIN_CHANGED_EXAMPLES = 2  # tested examples
BAD_OUTCOMES = ("drifted", "failed")
UNIT_METRICS = ("accuracy", "auc", "f1", "map")  # metrics that lie in [0, 1]


class Row(NamedTuple):
    """A line of the table: a figure, or a recipe that was not measured."""

    recipe: str
    figure: str = ""
    measured: float | None = None
    expected: float | None = None
    tolerance: float | None = None
    outcome: str = ""
    reason: str = ""
    seconds: float | None = None


def define_flags() -> None:
    """Define the flags of the command; not on import, so that the checks can be called beside other flags."""
    flags.DEFINE_list("recipes", [], "Names of entries, such as digits_resnet or cifar_vgg:smoke.")
    flags.DEFINE_bool("all", False, "Run every entry.")
    flags.DEFINE_bool("record", False, "Measure, and write the entries.")
    flags.DEFINE_list("seeds", [], "With --record: seeds of the entry; by default its current ones, or 0,1,2.")
    flags.DEFINE_multi_string("set", [], "With --record: FIELD=VALUE of the entry.")
    flags.DEFINE_multi_string("needs", [], "With --record: FIELD=PATH below --data_dir that the entry reads.")
    flags.DEFINE_string("workdir", "", "Folder of the runs; a temporary one if empty.")
    flags.DEFINE_string("data_dir", "", "Folder of the data that some entries need; $TL_JAX_TEST_DATA if empty.")
    flags.DEFINE_string("expected", str(EXPECTED_FILE), "File with the entries.")


def main(_: list[str]) -> int:
    """Verify or record; return the exit status."""
    logging.set_verbosity(logging.WARNING)
    workdir.silence_orbax()
    file = Path(FLAGS.expected)
    entries = read_entries(file)
    names = [_entry_name(name) for name in FLAGS.recipes]
    if FLAGS.record and not (names or FLAGS.all):
        raise UserError("--record overwrites entries; say which by --recipes=NAME,... or --all")
    if not FLAGS.record and (FLAGS.seeds or FLAGS.set or FLAGS.needs):
        raise UserError("--seeds, --set and --needs are what --record writes; leave them out to verify")
    names = names or (list(entries) if FLAGS.all else cheap_entries(entries))
    if not FLAGS.record and (unknown := [name for name in names if name not in entries]):
        raise UserError(f"--recipes={unknown[0]}: no entry in {file}; {nearest(unknown[0], entries)}")
    with contextlib.ExitStack() as stack:
        folder = Path(FLAGS.workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="verify_")))
        if any(run_folder(folder, name).exists() for name in names):
            raise UserError(f"{folder} has the runs of an earlier verification; pass another --workdir")
        if FLAGS.record:
            return _record_entries(names, entries, folder.expanduser().absolute(), file)
        rows = verify_recipes(names, entries, folder.expanduser().absolute(), data_dir())
    say(format_table(rows))
    return exit_status(rows)


def _record_entries(names: Sequence[str], entries: dict[str, Any], folder: Path, file: Path) -> int:
    """Measure recipes and write their entries, each as soon as it is there."""
    data = data_dir()
    for name in names:
        entry_before, start = entries.get(name, {}), time.process_time()
        seeds = [int(seed) for seed in FLAGS.seeds] or entry_before.get("seeds", [0, 1, 2])
        if len(seeds) < 3:
            raise UserError(f"--seeds={','.join(map(str, seeds))}: an interval wants three or more")
        entry = {"set": dict(map(recipe.parse_pair, FLAGS.set)) or entry_before.get("set", {}), "seeds": seeds}
        if needs := dict(map(recipe.split_pair, FLAGS.needs)) or entry_before.get("needs", {}):
            entry["needs"] = needs
        if problem := missing_data(entry, data):
            say(f"{name}: skipped, {problem}")
            continue
        say(f"{name} ...")
        with show_elapsed(name):
            results = measure_recipe(name, entry, run_folder(folder, name), data)
        entries[name] = make_entry(name, entry, results, time.process_time() - start)
        write_entries(file, entries)
        say(format_table(compare_figures(name, entries[name], results, time.process_time() - start)))
    return 0


def data_dir() -> Path | None:
    """Return the folder of data, None where none is named."""
    path = FLAGS.data_dir or os.environ.get("TL_JAX_TEST_DATA", "")
    return Path(path).expanduser().absolute() if path else None


def _entry_name(name: str) -> str:
    """Return the name of an entry for NAME, NAME.py or configs/NAME.py, each with or without :VARIANT."""
    path, separator, variant = name.partition(":")
    return Path(path).name.removesuffix(".py") + separator + variant


def read_entries(path: Path = EXPECTED_FILE) -> dict[str, Any]:
    """Return the entries by name."""
    return json.loads(path.read_text())["recipes"] if path.is_file() else {}


def recipes_without_entry(path: Path = EXPECTED_FILE) -> dict[str, str]:
    """Return the recipes that have no entry, and why."""
    return json.loads(path.read_text())["without"]


def write_entries(path: Path, entries: Mapping[str, Any]) -> None:
    """Write the entries by name; what has one needs no reason for having none."""
    reasons = recipes_without_entry(path) if path.is_file() else {}
    reasons = {name: reason for name, reason in reasons.items() if name not in entries}
    text = json.dumps({"without": reasons, "recipes": dict(sorted(entries.items()))}, indent=1)
    disk.write_text(path, text + "\n")


def cheap_entries(entries: Mapping[str, Any]) -> list[str]:
    """Return the names of those that took ``MAX_SECONDS`` seconds or less, and need no data."""
    return [name for name, entry in entries.items() if entry["seconds"] <= MAX_SECONDS and not entry.get("needs")]


def run_command(name: str, settings: Mapping[str, Any]) -> str:
    """Return the command that makes the runs of an entry by hand."""
    fields = {**settings["set"], "seeds": tuple(settings["seeds"])}
    arguments = [f"--config.{field}={shlex.quote(str(value))}" for field, value in fields.items()]
    arguments += [f"--config.{field}=DATA_DIR/{path}" for field, path in settings.get("needs", {}).items()]
    return " ".join([f"tl-jax --config={name}", *arguments])


def make_entry(name: str, settings: Mapping[str, Any], results: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what is written of a measurement: what was asked for (``set``, ``seeds``, ``needs``), and what came."""
    import jax

    figures = {}
    for figure, values in results["figures"].items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: {figure} could not be measured in every seed; take another recipe, or more tests")
        tolerance, reason = allowed_drift(figure, values, results["examples"])
        figures[figure] = {"mean": _round(np.mean(values)), "within": _round(tolerance), "why": reason}
        figures[figure]["values"] = [_round(value) for value in values]
    kind, cpu = jax.devices()[0].device_kind, f"{os.cpu_count()} CPU cores, {environment.processor()}"
    return {
        "command": run_command(name, settings),
        **settings,
        "figures": figures,
        "examples": results["examples"],
        "steps": results["steps"],
        "seconds": round(seconds, 1),  # of processor time, which other work on the machine does not change
        "hardware": cpu if kind == "cpu" else f"{len(jax.devices())} x {kind}",
        "versions": {package: environment.versions()[package] for package in ("tl_jax", "jax", "numpy")},
        "commit": record.commit(),
    }


def allowed_drift(figure: str, values: Sequence[float], examples: int) -> tuple[float, str]:
    """Return what the mean of a figure may move by, and why.

    Args:
        figure: "ARM METRIC".
        values: the figure of each seed.
        examples: that were tested on.
    """
    from scipy import stats

    by_seed = np.asarray(values, float)
    if figure.endswith("loss"):
        return LOSS_TOLERANCE * abs(float(by_seed.mean())), f"{LOSS_TOLERANCE:.0%} of it, the same seeds and few steps"
    n = len(by_seed)
    half = float(stats.t.ppf(0.975, n - 1) * by_seed.std(ddof=1) * np.sqrt(2 / n))
    min_tolerance = MIN_CHANGED_EXAMPLES / examples * max(1.0, float(np.abs(by_seed).max()))
    if half < min_tolerance:
        return min_tolerance, f"{MIN_CHANGED_EXAMPLES} of {examples} tests; the interval of {n} seeds is narrower"
    return half, f"95 % prediction interval, {n} seeds"


def compare_figures(name: str, entry: Mapping[str, Any], results: Mapping[str, Any], seconds: float) -> list[Row]:
    """Return a row for each figure that is expected, or was found and is not."""
    rows = []
    for figure in {**entry["figures"], **results["figures"]}:
        expected, values = entry["figures"].get(figure), results["figures"].get(figure)
        mean = float(np.mean(values)) if values else None
        if expected is None or mean is None:
            problem = "is not expected; record it anew" if expected is None else "was not measured"
            rows.append(Row(name, figure, mean, expected and expected["mean"], outcome="drifted", reason=problem))
            continue
        # The tolerance is written with five digits; NaN is not expected.
        is_expected = abs(mean - expected["mean"]) <= expected["within"] * (1 + 1e-4)
        outcome, reason = "as expected" if is_expected else "drifted", ""
        if is_expected and not can_drift(figure, expected["mean"], expected["within"]):
            outcome, reason = "untested", "no value that it can have would be a drift; record it with more seeds"
        rows.append(Row(name, figure, mean, expected["mean"], expected["within"], outcome, reason, seconds))
    return rows


def can_drift(figure: str, mean: float, tolerance: float) -> bool:
    """Return whether a figure could come out as drifted: a share lies in [0, 1], a difference of two in [-1, 1]."""
    if figure.split()[-1] not in UNIT_METRICS:
        return True
    minimum = -1.0 if " over " in figure else 0.0
    return mean - tolerance > minimum or mean + tolerance < 1.0


def exit_status(rows: Sequence[Row]) -> int:
    """Return the exit status: 1 where anything has drifted or failed."""
    return int(any(row.outcome in BAD_OUTCOMES for row in rows))


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows drawn for the screen, and their number by outcome."""
    header = ("recipe", "figure", "measured", "expected", "verdict")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        expected = (
            "" if row.expected is None else f"{row.expected:.4g}" + (f" ± {row.tolerance:.2g}" if row.tolerance else "")
        )
        measured = "" if row.measured is None else f"{row.measured:.4g}"
        outcome = row.outcome + (f": {row.reason}" if row.reason else "")
        lines.append((row.recipe, row.figure, measured, expected, outcome))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    formatted = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line[:4], widths, strict=True)), line[4]])
        for line in lines
    ]
    outcomes = ("as expected", *BAD_OUTCOMES, "untested", "skipped")
    count = {outcome: sum(row.outcome == outcome for row in rows) for outcome in outcomes}
    return "\n".join([*formatted, ", ".join(f"{n} {outcome}" for outcome, n in count.items())])


def _round(value: Any) -> float:
    return float(f"{float(value):.5g}")


def verify_recipes(names: Sequence[str], known: dict[str, Any], folder: Path, data: Path | None) -> list[Row]:
    """Run the recipes of entries again, below ``folder``; return a row for each figure."""
    rows: list[Row] = []
    for number, name in enumerate(names, 1):
        entry, start = known[name], time.process_time()
        cost = f"{entry['seconds']:.0f} s of processor time on {entry['hardware']}"
        say(f"{name} ({number} of {len(names)}; it took {cost}) ...")
        if problem := missing_data(entry, data):
            rows.append(Row(name, outcome="skipped", reason=problem))
            continue
        try:
            with show_elapsed(f"{name}, {number} of {len(names)}"):
                results = measure_recipe(name, entry, run_folder(folder, name), data)
        except Exception as error:  # whatever it is, the other recipes are still to be looked at
            message = f"{error}".strip().partition("\n")[0]
            rows.append(Row(name, outcome="failed", reason=f"{type(error).__name__}: {message}"))
            continue
        rows += compare_figures(name, entry, results, time.process_time() - start)
    return rows


def missing_data(entry: dict[str, Any], data: Path | None) -> str:
    """Return what keeps an entry from being run here, "" if nothing does."""
    paths = list(entry.get("needs", {}).values())
    if paths and data is None:
        return f"needs data; pass --data_dir=FOLDER with {', '.join(paths)}"
    missing = [path for path in paths if data and not (data / path).exists()]
    return f"no {missing[0]} in {data}" if missing else ""


def measure_recipe(name: str, entry: dict[str, Any], folder: Path, data: Path | None) -> dict[str, Any]:
    """Run a recipe with each seed of its entry; what it prints goes to ``folder/output.txt``.

    Returns:
        ``figures``, name -> a value for each seed, ``examples`` that were tested on, and ``steps``.
    """
    from tl_jax import training
    from tl_jax.train import sharding
    from tl_jax.train.workdir import read_json

    changes = {field: tuple(value) if isinstance(value, list) else value for field, value in entry["set"].items()}
    changes |= {field: str(data / path) for field, path in entry.get("needs", {}).items() if data}
    config = recipe.load_config(name, {**changes, "seeds": tuple(entry["seeds"])})
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            summary = training.train(config, folder)
        finally:
            sharding.clear_programs()  # the programs of dozens of recipes are too many for one process
    metric, first, *others = summary["metric"], *summary["arms"]
    values = {arm: row["values"] for arm, row in summary["arms"].items()}
    figures = {f"{arm} {metric}": row for arm, row in values.items()} if others else {metric: values[first]}
    for arm in others:
        gains = [a - b for a, b in zip(values[first], values[arm], strict=True)]
        figures[f"{first} over {arm}, {metric}"] = gains
    if summary["steps"] <= MAX_LOSS_STEPS and "loss" in summary["metrics"]:
        runs = [read_json(folder / first / f"seed{seed}" / "summary.json") for seed in entry["seeds"]]
        figures[f"{first} loss" if others else "loss"] = [run["metrics"]["loss"] for run in runs]
    figures = {figure: [math.nan if v is None else v for v in row] for figure, row in figures.items()}
    return {"figures": figures, "examples": summary["examples_evaluated"], "steps": summary["steps"]}


def run_folder(folder: Path, name: str) -> Path:
    """Return the folder of an entry's runs."""
    return folder / name.replace(":", "_")  # which not every system has in a name


if __name__ == "__main__":
    define_flags()
    command_module.run(main)
