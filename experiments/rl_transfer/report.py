"""Report of the policy-transfer study: table, learning curves and transfer metrics, paired by seed with scratch.

The metrics are those of Taylor and Stone 2009, JMLR 10.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state
from matplotlib.ticker import EngFormatter

from experiments import record
from tl_jax.report import html
from tl_jax.report.plots import t_interval
from tl_jax.train.workdir import read_json
from tl_jax.utils import disk

ASYMPTOTE_SHARE = 0.2  # share of the evaluations, from the end, that the asymptote is the mean of


def jump_start(curve: np.ndarray, scratch: np.ndarray) -> float:
    """Return how much better the first evaluation is, before anything is trained; curves (V,) of V evaluations."""
    return float(curve[0] - scratch[0])


def asymptote(curve: np.ndarray) -> float:
    """Return the mean of the last evaluations."""
    return float(curve[-max(1, round(ASYMPTOTE_SHARE * len(curve))) :].mean())


def steps_to(curve: np.ndarray, steps: Sequence[float] | np.ndarray, threshold: float) -> float:
    """Return the steps after which an evaluation first reaches ``threshold``; infinite where none does."""
    reached = np.flatnonzero(np.asarray(curve) >= threshold)
    return float(steps[reached[0]]) if len(reached) else float("inf")


def area_ratio(curve: np.ndarray, scratch: np.ndarray, floor: float) -> float:
    """Return the area between a curve and ``floor``, over that of scratch, minus 1: 0 where transfer changes nothing.

    Args:
        curve, scratch: (V,) at the same steps.
        floor: what an untrained policy has, so that worlds with negative rewards can be compared.
    """
    areas = [float(np.trapezoid(np.asarray(values) - floor)) for values in (curve, scratch)]
    return areas[0] / areas[1] - 1.0 if areas[1] > 0 else float("nan")


THRESHOLD_SHARE = 0.8  # share of the way from the untrained policy to the best of scratch that counts as the threshold


def write_report(prefix: Path) -> str:
    """Write ``PREFIX.md`` and the pictures; return the table."""
    rows, steps = record.read_rows(prefix), read_json(Path(f"{prefix}.json"))["steps"]
    curves = {
        (target, way): np.array(
            [[float(v) for v in r["curve"].split()] for r in rows if (r["target"], r["way"]) == (target, way)]
        )
        for target, way in dict.fromkeys((row["target"], row["way"]) for row in rows)
    }
    metrics = transfer_metrics(curves, steps)
    text = html.to_markdown(make_table(metrics))
    seeds = len(next(iter(curves.values())))
    notes = (
        f"Means and 95 % intervals over {seeds} seeds, paired by seed with scratch. The threshold is "
        f"{THRESHOLD_SHARE:.0%} of the way from the untrained policy to scratch's best mean evaluation; "
        "`never` counts the seeds that did not reach it. The area ratio is 0 where transfer changes nothing."
    )
    disk.write_text(Path(f"{prefix}.md"), f"{text}\n\n{notes}\n")
    plot_curves(curves, steps, Path(f"{prefix}_curves.png"))
    distances = {row["target"]: float(row["distance"]) for row in rows}
    if np.isfinite(list(distances.values())).any():  # between games there is none
        plot_distance(metrics, distances, Path(f"{prefix}_distance.png"))
    return text


def transfer_metrics(curves: dict[tuple[str, str], np.ndarray], steps: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Return for each (target, way) the values by seed of each metric."""
    metrics = {}
    for (target, way), returns in curves.items():
        scratch = curves[target, "scratch"]
        floor, best = scratch[:, 0].mean(), scratch.mean(0).max()
        threshold = floor + THRESHOLD_SHARE * (best - floor)
        evaluated_at = np.linspace(0, steps, returns.shape[1])
        pairs = list(zip(returns, scratch, strict=True))
        metrics[target, way] = {
            "jump-start": [jump_start(a, b) for a, b in pairs],
            "asymptote": [asymptote(a) for a in returns],
            "area ratio": [area_ratio(a, b, floor) for a, b in pairs],
            "steps to threshold": [steps_to(a, evaluated_at, threshold) for a in returns],
            "threshold": threshold,
        }
    return metrics


def make_table(metrics: dict[tuple[str, str], dict[str, Any]]) -> html.Table:
    """Return the table."""
    names = [
        "target",
        "way",
        "first evaluation over scratch's",
        "asymptote",
        "area ratio",
        "steps to threshold",
        "never",
    ]
    rows = []
    for (target, way), values in metrics.items():
        steps = np.array(values["steps to threshold"])
        finite = steps[np.isfinite(steps)]
        cells = [
            _format_interval(values["jump-start"], "+.1f"),
            _format_interval(values["asymptote"], ".1f"),
            _format_interval(values["area ratio"], "+.2f"),
        ]
        if way == "scratch":
            cells[0] = cells[2] = ""
        rows.append(
            [
                target,
                way,
                *cells,
                _format_interval(finite, ",.0f") if len(finite) else "",
                f"{len(steps) - len(finite)}",
            ]
        )
    return html.Table(names, rows)


def plot_curves(curves: dict[tuple[str, str], np.ndarray], steps: int, path: Path) -> None:
    """Draw mean and 95 % interval of the evaluations of each way, a panel for each target."""
    targets = list(dict.fromkeys(target for target, _ in curves))
    ways = list(dict.fromkeys(way for _, way in curves))
    columns = min(3, len(targets))
    rows = -(-len(targets) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.5), dpi=110, layout="constrained")
    axes: Any = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, target in zip(axes, targets, strict=False):
        for k, way in enumerate(ways):
            if (target, way) not in curves:
                continue
            returns = curves[target, way]
            evaluated_at = np.linspace(0, steps, returns.shape[1])
            intervals = [t_interval(column) for column in returns.T]
            mean, half = np.array([m for m, _ in intervals]), np.array([h or 0.0 for _, h in intervals])
            axis.plot(evaluated_at, mean, color="black" if way == "scratch" else f"C{k}", label=way, lw=1.6)
            axis.fill_between(
                evaluated_at, mean - half, mean + half, color="black" if way == "scratch" else f"C{k}", alpha=0.12
            )
        seen = np.concatenate([returns.ravel() for (name, _), returns in curves.items() if name == target])
        margin = 0.05 * (seen.max() - seen.min()) + 1e-9
        axis.set_ylim(seen.min() - margin, seen.max() + margin)  # an interval may reach where no return can
        axis.set_title(target, fontsize=11)
        axis.set_xlabel("steps in the target")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    for axis in axes[len(targets) :]:
        axis.axis("off")
    axes[0].set_ylabel("return of greedy episodes")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ways), fontsize=9)
    disk.save_figure(figure, path, colors=128)


def plot_distance(metrics: dict[tuple[str, str], dict[str, Any]], distances: dict[str, float], path: Path) -> None:
    """Draw the area ratio of each way against the distance of the physics."""
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axis: Any = figure.subplots()
    ways = [way for way in dict.fromkeys(way for _, way in metrics) if way != "scratch"]
    for k, way in enumerate(ways):
        points = sorted(
            (distances[target], t_interval(values["area ratio"]), target)
            for (target, w), values in metrics.items()
            if w == way and np.isfinite(distances[target])
        )
        if points:
            x, intervals = [p[0] + 0.02 * k for p in points], [p[1] for p in points]
            axis.errorbar(
                x,
                [m for m, _ in intervals],
                yerr=[h or 0.0 for _, h in intervals],
                fmt="o-",
                capsize=3,
                color=f"C{k + 1}",
                label=way,
                lw=1,
            )
    for target, distance in distances.items():
        if np.isfinite(distance):
            axis.annotate(
                target,
                (distance, 1.0),
                (0, 2),
                textcoords="offset points",
                xycoords=("data", "axes fraction"),
                ha="center",
                fontsize=8,
            )
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xlabel("distance of the physics (log ratios)")
    axis.set_ylabel("area ratio over scratch")
    if ways:
        axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    disk.save_figure(figure, path, colors=128)


def _format_interval(values: Any, form: str) -> str:
    mean, half = t_interval(values)
    return f"{mean:{form}}" + ("" if half is None else f" ± {half:{form.lstrip('+')}}")
