"""Plots as PNG and SVG: ROC, reliability diagram, comparison of arms over seeds, learning-rate range test.

SVG charts follow the light or dark mode of the page, and need no plotting library.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from scipy.special import stdtrit  # the quantile of Student's t; scipy.stats takes 0.7 s to import

from tl_jax.metrics import intervals
from tl_jax.metrics.classification import MAX_TEMPERATURE, Bins
from tl_jax.utils import disk
from tl_jax.utils.json_files import read_json


def plot_roc(
    far: np.ndarray, tar: np.ndarray, marks: Mapping[str, tuple[float, float]], title: str, path: Path
) -> Path:
    """Plot an ROC curve with marked points, and save it as a PNG.

    Args:
        far, tar: (T,) increasing from 0 to 1.
        marks: name -> (FAR, TAR) of a point.
        title: title of the plot.
        path: path of the PNG.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    min_far = far[far > 0].min()  # a single pair of different people, to show FAR 0 on a log axis
    axis.step(np.maximum(far, min_far), tar, where="post", color="C0")
    chance = np.geomspace(min_far, 1.0, 200)
    axis.plot(chance, chance, color="grey", linestyle=":", label="chance")
    for i, (name, (x, y)) in enumerate(marks.items()):
        axis.plot(max(x, min_far), y, "o", color=f"C{i + 1}", label=f"{name}: TAR {y:.3f}")
    axis.set_xscale("log")
    axis.set_xlim(min_far, 1.0)
    axis.set_ylim(0.0, 1.02)
    axis.set_xlabel("FAR: accepted share of pairs of different people")
    axis.set_ylabel("TAR: accepted share of pairs of one person")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    return disk.save_figure(figure, path)


def describe_bound(temperature: float) -> str:
    """Return a note if a fitted temperature is at a limit, so that there is no optimum; else ""."""
    if temperature < 1.001 / MAX_TEMPERATURE:
        return "at its lower limit: all validation predictions are correct"
    if temperature > 0.999 * MAX_TEMPERATURE:
        return "at its upper limit: probabilities hardly predict the validation labels, and become nearly uniform"
    return ""


def plot_reliability(before: Bins, after: Bins, temperature: float, path: Path) -> Path:
    """Plot both reliability diagrams, with the share of examples per bin below, and save them as a PNG."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(8, 5.2), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (bins, title) in enumerate(((before, "as trained"), (after, f"temperature {temperature:.2f}"))):
        top, bottom = axes[0, column], axes[1, column]
        count = len(bins.share)
        centers, filled = (np.arange(count) + 0.5) / count, np.asarray(bins.share) > 0
        top.bar(centers[filled], bins.accuracy[filled], 1 / count, color="tab:blue", edgecolor="white", label="right")
        top.plot(bins.confidence[filled], bins.accuracy[filled], "o", color="black", markersize=3)
        top.plot((0, 1), (0, 1), "--", color="grey", linewidth=1, label="calibrated")
        top.set(title=f"{title}: calibration error {bins.ece:.3f}", xlim=(0, 1), ylim=(0, 1))
        bottom.bar(centers, bins.share, 1 / count, color="tab:grey", edgecolor="white")
        bottom.set_xlabel("probability of the predicted class")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of examples")
    axes[0, 0].legend(loc="upper left", frameon=False)
    return disk.save_figure(figure, path)


SMOKE_NOTE = "smoke run: it checks that every part works, and its metrics mean nothing; for results omit :smoke"


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % interval (Student's t), None for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), None
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def summarize_comparison(
    workdir: Path, arms: Sequence[str], seeds: Sequence[int], metric: str = "accuracy"
) -> dict[str, Any]:
    """Summarize a comparison from ``workdir/ARM/seedN/summary.json`` of every arm and seed.

    The first arm is the reference: ``gain`` is its mean advantage over each other arm, paired by seed. Each row has the
    half-widths of three 95 % intervals, None if unknown: ``interval95`` over seeds (Student's t), ``interval95_test``
    over test examples only, which all seeds share, and ``interval95_both`` over both.
    """
    folders = {arm: [workdir / arm / f"seed{seed}" for seed in seeds] for arm in arms}
    files = {
        arm: [
            intervals.RunFiles(
                _read_if_present(folder / "summary.json"), _read_if_present(folder / "test_details.json")
            )
            for folder in arm_folders
        ]
        for arm, arm_folders in folders.items()
    }
    runs = {arm: [run.summary for run in arm_files] for arm, arm_files in files.items()}
    comparison: dict[str, Any] = {"seeds": list(seeds), "metric": metric, "arms": {}, "gain": {}}
    for arm, rows in runs.items():
        values = [row["metrics"][metric] for row in rows]
        mean, half = t_interval(values)
        comparison["arms"][arm] = {
            "values": values,
            "mean": mean,
            **_half_widths(half, intervals.mean_half_width(metric, files[arm])),
        }
    first = runs[arms[0]]
    for arm in arms[1:]:
        pairs = zip(first, runs[arm], strict=True)
        mean, half = t_interval([a["metrics"][metric] - b["metrics"][metric] for a, b in pairs])
        test = intervals.difference_half_width(metric, files[arms[0]], files[arm])
        comparison["gain"][arm] = {"mean": mean, **_half_widths(half, test)}
    names = first[0]["metrics"]
    timings = first[0]["seconds"]
    return comparison | {
        "steps": first[0]["steps"],
        "examples": first[0]["examples"],
        "examples_evaluated": first[0]["examples_evaluated"],
        "metrics": {name: float(np.mean(np.asarray([row["metrics"][name] for row in first], float))) for name in names},
        "parameters": first[0]["parameters"],
        "seconds": {p: sum(row["seconds"][p] for rows in runs.values() for row in rows) for p in timings},
    }


# Metrics from 0 to 1, shown in percent; others as they are.
PERCENT_METRICS = ("accuracy", "auc", "f1", "map", "matthews")


def comparison_table(summary: Mapping[str, Any]) -> str:
    """Return the comparison as a text table."""
    seeds, metric = len(summary["seeds"]), summary["metric"]
    scale, unit, points = (100, " %", " points") if metric in PERCENT_METRICS else (1, "", "")
    width = max(12, *(len(arm) for arm in summary["arms"])) + 2
    seed_count = f"{seeds} seed{'s' * (seeds != 1)}"
    with_sampling = any(row.get("interval95_test") is not None for row in summary["arms"].values())
    interval_note = (
        f"95 % intervals over {seed_count}"
        if with_sampling
        else f"95 % interval over {seed_count}, without test-set sampling"
    )
    interval_note = f"95 % interval, {seed_count}" if with_sampling and seeds == 1 else interval_note
    smoke = "smoke run without meaning; " if summary.get("smoke") else ""
    lines = [f"{'arm':<{width}}{metric} ({smoke}test split; mean and {interval_note})"]
    for arm, row in summary["arms"].items():
        seed_values = " ".join(f"{scale * value:.1f}" for value in row["values"])
        lines.append(
            f"{arm:<{width}}{format_percent(row, scale=scale)}{unit}{format_margins(row, scale)}   ({seed_values})"
        )
    first = next(iter(summary["arms"]))
    for arm, row in summary["gain"].items():
        lines.append(f"{first} over {arm}: {format_percent(row, '+', scale)}{points}{format_margins(row, scale)}")
    return "\n".join([*lines, *intervals.seed_notes(summary)])


def format_percent(row: Mapping[str, Any], sign: str = "", scale: int = 100) -> str:
    """Return "90.1 ± 3.0" with the interval over seeds, or only the mean if a single seed gives none."""
    half = row["interval95"]
    return f"{scale * row['mean']:{sign}.1f}" + ("" if half is None else f" ± {scale * half:.1f}")


def format_margins(row: Mapping[str, Any], scale: int = 100) -> str:
    """Return the suffix of ``format_percent``, such as " over seeds, ± 5.4 with test-set sampling"."""
    test, both = row.get("interval95_test"), row.get("interval95_both")
    if both is not None:
        return f" over seeds, ± {scale * both:.1f} with test-set sampling"
    return "" if test is None or row["interval95"] is not None else f" ± {scale * test:.1f} by test-set sampling"


def _half_widths(seeds: float | None, test: float | None) -> dict[str, float | None]:
    return {"interval95": seeds, "interval95_test": test, "interval95_both": intervals.combine_half_widths(seeds, test)}


def plot_comparison(summary: Mapping[str, Any], path: Path) -> Path:
    """Plot the result of each seed as a dot, with mean and intervals, and save it as a PNG."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(6.4, 1.4 + 0.7 * len(summary["arms"])), dpi=150, layout="constrained")
    axis = figure.subplots()
    names = list(summary["arms"])
    scale, unit = (100, " in percent") if summary["metric"] in PERCENT_METRICS else (1, "")
    for y, name in enumerate(reversed(names)):
        row, color = summary["arms"][name], f"C{names.index(name)}"
        half, outer_half = (scale * (row.get(key) or 0.0) for key in ("interval95", "interval95_both"))
        if outer_half:
            axis.errorbar(scale * row["mean"], y, xerr=outer_half, color=color, alpha=0.35, linewidth=4)
        axis.errorbar(scale * row["mean"], y, xerr=half, fmt="D", color=color, capsize=4, markersize=6)
        axis.plot(scale * np.asarray(row["values"]), np.full(len(row["values"]), y + 0.18), "o", color=color, alpha=0.4)
        axis.annotate(
            format_percent(row, scale=scale),
            (scale * row["mean"], y),
            (0, -15),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_ylim(-0.6, len(names) - 0.4)
    if summary["metric"] in PERCENT_METRICS:
        low, high = axis.get_xlim()
        least = min(value for row in summary["arms"].values() for value in row["values"])
        # Intervals of few seeds go beyond what is possible.
        axis.set_xlim(max(low, min(-2.0, scale * least - 2)), min(high, 102.0))
    axis.set_xlabel(f"test {summary['metric']}{unit}, {summary['examples_evaluated']:,} examples")
    has_outer = any(row.get("interval95_both") for row in summary["arms"].values())
    name = f"{summary['config_name']}{' (smoke run without meaning)' if summary.get('smoke') else ''}"
    axis.set_title(
        f"{name}: {summary['examples']['train']:,} training examples, {len(summary['seeds'])} seeds\n"
        "diamonds: mean and 95 % interval over seeds; dots: single seeds"
        + ("\npale: with test-set sampling" if has_outer else ""),
        fontsize=10,
    )
    axis.grid(axis="x", alpha=0.3)
    return disk.save_figure(figure, path)


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_json(path, "run the same command again without it") if path.is_file() else {}


def plot_lr_curve(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, marks: Mapping[str, float], title: str, path: Path
) -> Path:
    """Plot losses (S,) over learning rates (S,) with marked rates; save it as a PNG.

    Marks at the same rate share a line and an entry of the legend, so that none hides another.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, ".", color="C0", alpha=0.35, label="single steps")
    axis.plot(rates, smoothed, color="C0", label="running mean")
    for i, (label, rate) in enumerate(group_marks(marks).items(), start=1):
        axis.axvline(rate, color=f"C{i}", linestyle="--", label=label)
    axis.set_xscale("log")
    finite = smoothed[np.isfinite(smoothed)]
    margin = 0.1 * (finite.max() - finite.min()) + 1e-9
    axis.set_ylim(min(finite.min(), losses.min()) - margin, finite[0] + 3 * margin + (finite.max() - finite[0]) / 3)
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return disk.save_figure(figure, path)


def group_marks(marks: Mapping[str, float]) -> dict[str, float]:
    """Return the label of each marked rate -> the rate, names of the same rate in one label."""
    names: dict[str, list[str]] = {}
    for name, rate in marks.items():
        names.setdefault(f"{rate:.1e}", []).append(name)
    return {f"{rate}: {', '.join(group)}": marks[group[0]] for rate, group in names.items()}


def plot_score_curves(rates: np.ndarray, lines: Mapping[str, np.ndarray], title: str, path: Path) -> Path:
    """Plot test accuracies (S seeds, R rates) of each line over rates (R,), with 95 % intervals; save it as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    for i, (name, scores) in enumerate(lines.items()):
        means, halves = zip(*(t_interval(column) for column in scores.T), strict=True)
        shift = 1.03 ** (i - (len(lines) - 1) / 2)
        error = 100 * np.asarray([half or 0.0 for half in halves])
        axis.errorbar(rates * shift, 100 * np.asarray(means), yerr=error, marker="o", ms=4, capsize=3, label=name)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("test accuracy, percent")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return disk.save_figure(figure, path)


WIDTH, HEIGHT = 440, 270  # units, at most pixels
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 44  # margins
NUM_COLORS = 6
DASHES = ("none", "6 4", "2 3")

STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem 1.5rem; }
.charts figure { margin: 0; max-width: 34rem; }
svg { display: block; font: 13px system-ui, sans-serif; fill: var(--text); }
svg .grid { stroke: var(--line); } svg .soft { fill: var(--soft); } svg .axis { stroke: var(--soft); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; } svg .thin { stroke-width: 1; opacity: .45; }
svg .hollow { fill: var(--page); stroke-width: 1.5; }
svg .chance { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; font-size: 13px; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: .4rem; } .legend svg { flex: none; }
""" + "".join(f"svg .s{i} {{ stroke: var(--c{i}); }} svg .f{i} {{ fill: var(--c{i}); }}\n" for i in range(NUM_COLORS))


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: name in the legend, shown once for lines of one name.
        points: (x, y), sorted by x.
        color: number of its colour.
        dash: index into ``DASHES``.
        thin: whether the line is one of many, and not in the legend.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dash: int = 0
    thin: bool = False


class Axes(NamedTuple):
    """The ranges of a chart's axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of (x, y) in units from the left and the top."""
        right, down = (x - self.x[0]) / (self.x[1] - self.x[0]), (self.y[1] - y) / (self.y[1] - self.y[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str,
    chart_lines: Sequence[Line],
    x_name: str,
    y_name: str,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    chance: bool = False,
) -> Markup:
    """Return a line chart with its legend; ``chance`` adds the diagonal. Lines of one point are dots."""
    chart_lines = [line for line in chart_lines if line.points]
    points = [point for line in chart_lines for point in line.points]
    frame = Axes(x or _value_range([p[0] for p in points], 0.0), y or _value_range([p[1] for p in points], 0.05))
    body = Markup("")
    if chance:
        body += _svg_path([(frame.x[0], frame.y[0]), (frame.x[1], frame.y[1])], frame, "chance")
    for line in chart_lines:
        body += _svg_path(
            line.points, frame, f"line s{line.color % NUM_COLORS}{' thin' * line.thin}", DASHES[line.dash]
        )
        if len(line.points) <= 12 and not line.thin:
            style = "hollow s" if line.dash else "f"
            dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="{}{}"/>')
            body += Markup("").join(dot.format(*frame.at(*p), style, line.color % NUM_COLORS) for p in line.points)
    legend_lines = list({(n.name, n.color, n.dash): n for n in chart_lines if not n.thin}.values())
    return _svg_figure(
        title, body, frame, x_name, y_name, draw_legend(legend_lines) if len(legend_lines) > 1 else Markup("")
    )


def reliability_chart(title: str, bins: Mapping[str, Sequence[float]], x_name: str, y_name: str) -> Markup:
    """Return a reliability diagram of B bins with ``accuracy``, ``confidence`` and ``share`` (B,)."""
    frame, num_bins = Axes((0.0, 1.0), (0.0, 1.0)), len(bins["share"])
    body = Markup("")
    rows = zip(bins["confidence"], bins["accuracy"], bins["share"], strict=True)
    bar = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="f0" opacity="{:.2f}">{}</rect>')
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="f1"/>')
    for i, (confidence, accuracy, share) in enumerate(rows):
        if not share:
            continue
        (x0, top), (x1, bottom) = frame.at(i / num_bins, accuracy), frame.at((i + 1) / num_bins, 0.0)
        template = Markup("<title>{:.1%} of the examples: mean probability {:.3f}, accuracy {:.1%}</title>")
        tooltip = template.format(share, confidence, accuracy)
        body += bar.format(x0 + 1, top, x1 - x0 - 2, bottom - top, 0.35 + 0.65 * math.sqrt(share), tooltip)
        body += dot.format(*frame.at(confidence, accuracy))
    body += _svg_path([(0, 0), (1, 1)], frame, "chance")
    return _svg_figure(title, body, frame, x_name, y_name, Markup(""))


def dot_chart(title: str, arms: Mapping[str, Mapping[str, Any]], scale: float, x_name: str) -> Markup:
    """Return a chart with a row per arm: ``values`` as dots, ``mean`` and ``interval95`` (its half-width).

    An ``interval95_both`` is drawn pale behind it.
    """
    ends = [v for row in arms.values() for v in row["values"]]
    outer_halves = {name: row.get("interval95_both") or row["interval95"] or 0.0 for name, row in arms.items()}
    ends += [row["mean"] + sign * outer_halves[name] for name, row in arms.items() for sign in (-1, 1)]
    low, high = _value_range([scale * end for end in ends], 0.06)
    if scale == 100:  # intervals of few seeds go beyond what is possible
        low, high = max(low, min(-2.0, scale * min(ends[: -2 * len(arms)]) - 2)), min(high, 102.0)
    height = 62 * len(arms) + BOTTOM
    to_x = lambda value: 12 + (min(max(scale * value, low), high) - low) / (high - low) * (WIDTH - 24)  # noqa: E731
    body = Markup("")
    for tick in round_ticks(low, high):
        x = to_x(tick / scale)
        body += Markup(
            '<path class="grid" d="M{0:.1f} 4V{1}"/><text class="soft" x="{0:.1f}" y="{2}" '
            'text-anchor="middle">{3}</text>'
        ).format(x, height - 38, height - 22, format_number(tick))
    for i, (name, row) in enumerate(arms.items()):
        y, half = 62 * i + 32, row["interval95"]
        body += Markup('<text x="12" y="{}" font-weight="600">{}</text>').format(y - 14, name)
        dot = Markup('<circle cx="{:.1f}" cy="{}" r="4" class="f{}" opacity=".6"/>')
        body += Markup("").join(dot.format(to_x(value), y + 15, i % NUM_COLORS) for value in row["values"])
        outer_bar = Markup('<path class="line s{0}" opacity=".35" stroke-width="6" d="M{1:.1f} {3}H{2:.1f}"/>')
        if row.get("interval95_both") is not None:
            body += outer_bar.format(
                i % NUM_COLORS, *(to_x(row["mean"] + sign * outer_halves[name]) for sign in (-1, 1)), y
            )
        if half is not None:
            error_bar = Markup('<path class="line s{0}" d="M{1:.1f} {3}H{2:.1f}M{1:.1f} {4}v12M{2:.1f} {4}v12"/>')
            body += error_bar.format(i % NUM_COLORS, to_x(row["mean"] - half), to_x(row["mean"] + half), y, y - 6)
        diamond = Markup('<path class="f{}" d="M{:.1f} {}l6 6l-6 6l-6 -6z"/>')
        body += diamond.format(i % NUM_COLORS, to_x(row["mean"]), y - 6)
    body += Markup('<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        WIDTH / 2, height - 4, x_name
    )
    return _svg_image(title, body, WIDTH, height)


def draw_legend(lines: Sequence[Line]) -> Markup:
    """Return a legend: samples of the lines with their names."""
    entry = Markup(
        '<span><svg width="26" height="8" aria-hidden="true"><path class="line s{}" stroke-dasharray="{}" '
        'd="M0 4H26"/></svg>{}</span>'
    )
    rows = Markup("").join(entry.format(line.color % NUM_COLORS, DASHES[line.dash], line.name) for line in lines)
    return Markup('<div class="legend">{}</div>').format(rows)


def side_by_side(charts: Sequence[Markup]) -> Markup:
    """Return charts side by side, as far as there is space."""
    return Markup('<div class="charts">{}</div>').format(Markup("").join(charts))


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers in [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.75)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def format_number(value: float) -> str:
    """Return a number as an axis label."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 10):.4g}"


def _value_range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    padding = (high - low) * margin
    return (
        (low - padding, high + padding) if high > low else (low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1)
    )


def _svg_path(points: Sequence[tuple[float, float]], frame: Axes, css_class: str, dash: str = "none") -> Markup:
    coordinates = "L".join("{:.1f} {:.1f}".format(*frame.at(*point)) for point in points)
    return Markup('<path class="{}" stroke-dasharray="{}" d="M{}"/>').format(css_class, dash, coordinates)


def _svg_figure(title: str, body: Markup, frame: Axes, x_name: str, y_name: str, below: Markup) -> Markup:
    axes = Markup("")
    for value in round_ticks(*frame.y):
        x, y = frame.at(frame.x[0], value)
        axes += Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(x, y, WIDTH - RIGHT)
        axes += Markup('<text class="soft" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            x - 6, y + 4, format_number(value)
        )
    for value in round_ticks(*frame.x, count=4):
        x, y = frame.at(value, frame.y[0])
        axes += Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x, y + 17, format_number(value)
        )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    axes += Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT)
    axes += Markup('<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name
    )
    axes += Markup('<text class="soft" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
        middle, y_name
    )
    heading = Markup("<figcaption>{}</figcaption>").format(title)
    return Markup("<figure>{}{}{}</figure>").format(heading, _svg_image(title, axes + body, WIDTH, HEIGHT), below)


def _svg_image(title: str, body: Markup, width: float, height: float) -> Markup:
    return Markup('<svg viewBox="0 0 {0} {1}" width="{0}" role="img" aria-label="{2}">{3}</svg>').format(
        width, height, title, body
    )
