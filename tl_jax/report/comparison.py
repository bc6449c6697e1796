"""Arms over the same seeds: mean, 95 % intervals over seeds and test examples, paired gain, a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit  # the quantile of Student's t; scipy.stats takes 0.7 s to import

from tl_jax import disk
from tl_jax.json_files import read_json
from tl_jax.report import sampling

SMOKE = "smoke run: it shows that every part works and measures nothing; for results run the recipe without :smoke"


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % interval (Student's t), which one value does not have."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), None
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def summarise(workdir: Path, arms: Sequence[str], seeds: Sequence[int], metric: str = "accuracy") -> dict[str, Any]:
    """Read ``workdir/ARM/seedN/summary.json`` of every arm and seed and put the comparison together.

    The first arm is the one the others are measured against: ``gain`` is its mean advantage over each, paired by seed.
    Each row has half the widths of three 95 % intervals: ``interval95`` over seeds (Student's t), ``interval95_test``
    by sampling of test examples alone, which all seeds share, and ``interval95_both`` with both; None if unknown.
    """
    folders = {arm: [workdir / arm / f"seed{seed}" for seed in seeds] for arm in arms}
    files = {
        arm: [sampling.Run(_read(folder / "summary.json"), _read(folder / "test_details.json")) for folder in each]
        for arm, each in folders.items()
    }
    runs = {arm: [run.summary for run in each] for arm, each in files.items()}
    out: dict[str, Any] = {"seeds": list(seeds), "metric": metric, "arms": {}, "gain": {}}
    for arm, rows in runs.items():
        values = [row["metrics"][metric] for row in rows]
        mean, half = interval(values)
        out["arms"][arm] = {"values": values, "mean": mean, **_halves(half, sampling.of_mean(metric, files[arm]))}
    first = runs[arms[0]]
    for arm in arms[1:]:
        pairs = zip(first, runs[arm], strict=True)
        mean, half = interval([a["metrics"][metric] - b["metrics"][metric] for a, b in pairs])
        test = sampling.of_difference(metric, files[arms[0]], files[arm])
        out["gain"][arm] = {"mean": mean, **_halves(half, test)}
    names = first[0]["metrics"]
    parts = first[0]["seconds"]
    return out | {
        "steps": first[0]["steps"],
        "examples": first[0]["examples"],
        "examples_evaluated": first[0]["examples_evaluated"],
        "metrics": {name: float(np.mean(np.asarray([row["metrics"][name] for row in first], float))) for name in names},
        "parameters": first[0]["parameters"],
        "seconds": {p: sum(row["seconds"][p] for rows in runs.values() for row in rows) for p in parts},
    }


SHARES = ("accuracy", "auc", "f1", "map", "matthews")  # metrics from 0 to 1, shown in percent; others as they are


def table(summary: Mapping[str, Any]) -> str:
    """Return the comparison as lines of text."""
    seeds, metric = len(summary["seeds"]), summary["metric"]
    scale, unit, points = (100, " %", " points") if metric in SHARES else (1, "", "")
    width = max(12, *(len(arm) for arm in summary["arms"])) + 2
    over = f"{seeds} seed{'s' * (seeds != 1)}"
    whole = any(row.get("interval95_test") is not None for row in summary["arms"].values())
    between = f"95 % intervals over {over}" if whole else f"95 % interval over {over}, without the test set's sampling"
    between = f"95 % interval, {over}" if whole and seeds == 1 else between
    smoke = "smoke run, which measures nothing; " if summary.get("smoke") else ""
    lines = [f"{'arm':<{width}}{metric} ({smoke}test part; mean and {between})"]
    for arm, row in summary["arms"].items():
        each = " ".join(f"{scale * value:.1f}" for value in row["values"])
        lines.append(f"{arm:<{width}}{percent(row, scale=scale)}{unit}{margins(row, scale)}   ({each})")
    first = next(iter(summary["arms"]))
    for arm, row in summary["gain"].items():
        lines.append(f"{first} over {arm}: {percent(row, '+', scale)}{points}{margins(row, scale)}")
    return "\n".join(lines)


def percent(row: Mapping[str, Any], sign: str = "", scale: int = 100) -> str:
    """Return "90.1 ± 3.0" with the interval over seeds, or the mean alone where one seed gives no interval."""
    half = row["interval95"]
    return f"{scale * row['mean']:{sign}.1f}" + ("" if half is None else f" ± {scale * half:.1f}")


def margins(row: Mapping[str, Any], scale: int = 100) -> str:
    """Return what stands behind ``percent``, such as " over seeds, ± 5.4 with the test set's sampling"."""
    test, both = row.get("interval95_test"), row.get("interval95_both")
    if both is not None:
        return f" over seeds, ± {scale * both:.1f} with the test set's sampling"
    return "" if test is None or row["interval95"] is not None else f" ± {scale * test:.1f} by the test set's sampling"


def _halves(seeds: float | None, test: float | None) -> dict[str, float | None]:
    return {"interval95": seeds, "interval95_test": test, "interval95_both": sampling.together(seeds, test)}


def draw(summary: Mapping[str, Any], path: Path) -> Path:
    """Draw each seed's result as a dot, with mean and intervals, and save it as a PNG."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(6.4, 1.4 + 0.7 * len(summary["arms"])), dpi=150, layout="constrained")
    axis = figure.subplots()
    names = list(summary["arms"])
    scale, unit = (100, " in percent") if summary["metric"] in SHARES else (1, "")
    for y, name in enumerate(reversed(names)):
        row, colour = summary["arms"][name], f"C{names.index(name)}"
        half, wide = (scale * (row.get(key) or 0.0) for key in ("interval95", "interval95_both"))
        if wide:
            axis.errorbar(scale * row["mean"], y, xerr=wide, color=colour, alpha=0.35, linewidth=4)
        axis.errorbar(scale * row["mean"], y, xerr=half, fmt="D", color=colour, capsize=4, markersize=6)
        axis.plot(
            scale * np.asarray(row["values"]), np.full(len(row["values"]), y + 0.18), "o", color=colour, alpha=0.4
        )
        axis.annotate(
            percent(row, scale=scale),
            (scale * row["mean"], y),
            (0, -15),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlabel(f"test {summary['metric']}{unit}, {summary['examples_evaluated']:,} examples")
    pale = any(row.get("interval95_both") for row in summary["arms"].values())
    name = f"{summary['config_name']}{' (a smoke run, which measures nothing)' if summary.get('smoke') else ''}"
    axis.set_title(
        f"{name}: {summary['examples']['train']:,} training examples, {len(summary['seeds'])} seeds\n"
        "diamonds: mean and 95 % interval over seeds; dots: single seeds"
        + ("\npale: with the test set's sampling" if pale else ""),
        fontsize=10,
    )
    axis.grid(axis="x", alpha=0.3)
    return disk.save_figure(figure, path)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "run the same command again without it") if path.is_file() else {}
