"""What recipes are expected to give, ``experiments/expected.json``, and what a new measurement may differ by.

A figure is the mean of a metric over the seeds of its entry. The same commit gives the same figures on the same
hardware with the same libraries. Elsewhere sums round otherwise, which training amplifies until a seed is as good as
another one. So the mean may move by the 95 % prediction interval of the mean of as many new seeds, and by two tested
examples where seeds hardly differ. A loss after few steps is compared more closely, within ``CLOSE`` of itself:
rounding has not grown by then.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import record
from tl_jax import disk, machine
from tl_jax.errors import UserError

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


def entry(name: str, asked: Mapping[str, Any], found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
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
    kind, cpu = jax.devices()[0].device_kind, f"{os.cpu_count()} CPU cores, {machine.processor()}"
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
