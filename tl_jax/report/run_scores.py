"""The figures of a run: its result with intervals, and its curves."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from tl_jax.report import charts, intervals, page
from tl_jax.report.comparison import SHARES, SMOKE, interval, margins, percent
from tl_jax.report.results import Results, values

STYLE = """
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .75rem 1.1rem; flex: 0 1 auto; min-width: 9rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; }
"""


def headline(found: Results) -> page.Section | None:
    """Return the test metric with its interval, what transfer gained, and all metrics."""
    if not found.summary:
        return page.Section("", ["Not finished: there is no summary.json yet."])
    section = _compared(found) if "arms" in found.summary else _single(found)
    return section._replace(text=[SMOKE.capitalize() + ".", *section.text]) if found.summary.get("smoke") else section


def _single(found: Results) -> page.Section:
    run = found.runs[0]
    measured, between = found.summary["metrics"], intervals.of_run(found.summary, run.details)
    score = found.summary.get("score", next(iter(measured), ""))
    said = _shown(score, measured.get(score), between.get(score))
    tiles = [(said, f"test {score}" + (" and 95 % interval" if score in between else ""))]
    text = [] if score in between else ["One run: nothing in its files gives an interval; run several seeds for one."]
    rows = [
        [name, "not measured" if value is None else f"{value:.4f}", "{:.4f} to {:.4f}".format(*between[name][:2])]
        if name in between
        else [name, "not measured" if value is None else f"{value:.4f}", ""]
        for name, value in measured.items()
    ]
    text += [f"{name} is not measured: it {why}." for name, why in found.summary.get("missing", {}).items()]
    how = sorted({each[2] for each in between.values()})
    text += ["95 % intervals: " + "; ".join(how) + "."] if how else []
    return page.Section("", text, [_tiles(tiles), page.Table(["test", "value", "95 % interval"], rows)])


def curves(found: Results) -> page.Section | None:
    """Return loss and metric over steps, of training and validation, the mean over seeds where there are several."""
    score = found.summary.get("metric") or found.first[0].summary.get("score", "")
    drawn = [_curve(found, name) for name in dict.fromkeys(["loss", score, "episode_return"])]
    drawn = [chart for chart in drawn if chart]
    if not drawn:
        return None
    many = any(len(runs) > 1 for runs in found.arms.values())
    return page.Section(
        "", ["Thin: single seeds; thick: their mean."] if many else (), [page.Raw(charts.side_by_side(drawn))]
    )


def _compared(found: Results) -> page.Section:
    summary, metric = found.summary, found.summary["metric"]
    scale, unit, points = (100, " %", " points") if metric in SHARES else (1, "", "")
    seeds, first = summary["seeds"], next(iter(summary["arms"]))
    over = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    tiles = [
        (f"{percent(row, scale=scale)}{unit}", f"test {metric}, {arm};{margins(row, scale)}".rstrip(";"))
        for arm, row in summary["arms"].items()
    ] + [
        (f"{percent(row, '+', scale)}{points}", f"{first} over {arm};{margins(row, scale)}".rstrip(";"))
        for arm, row in summary["gain"].items()
    ]
    many, rows = len(seeds) > 1, []
    whole = any(row.get("interval95_test") is not None for row in summary["arms"].values())
    for arm, row in [*summary["arms"].items(), *((f"{first} over {a}", r) for a, r in summary["gain"].items())]:
        half, mean = row["interval95"], scale * row["mean"]
        ends = "" if half is None else f"{mean - scale * half:.1f} to {mean + scale * half:.1f}"
        each = [f"{scale * value:.1f}" for value in row.get("values", ())] or [""] * len(seeds)
        sign = "" if "values" in row else "+"
        wide = row.get("interval95_both" if many else "interval95_test")
        shown = [] if not whole else ["" if wide is None else f"{scale * wide:.1f}"]
        rows.append(
            [arm, f"{mean:{sign}.1f}", *([f"{scale * (half or 0):.1f}", ends, *shown, *each] if many else shown)]
        )
    wider = ["± with the test set's sampling" if many else "± by the test set's sampling"] * whole
    between = ["± over seeds", "95 % interval", *wider, *(f"seed {seed}" for seed in seeds)] if many else wider
    columns = [metric + (" in %" if unit else ""), "mean" if many else f"seed {seeds[0]}", *between]
    text = [
        f"Mean and 95 % interval over {over} (Student's t); a gain is paired by seed."
        if many
        else "One seed of each arm gives no interval over seeds; run several for one.",
        "All seeds share one test set. With its own sampling the interval is wider: how far the result might lie on "
        "other test examples; a gain is paired by example."
        if whole
        else "The sampling of the test set, which all seeds share, is not in it.",
    ]
    name = f"test {metric}{' in percent' if unit else ''}: diamonds are means, dots single seeds"
    chart = charts.dots(f"test {metric} by arm", summary["arms"], scale, name)
    parts = [_tiles(tiles), page.Raw(chart), page.Table(columns, rows), *_others(found, metric)]
    return page.Section("", text, parts)


def _others(found: Results, metric: str) -> list[page.Table]:
    """Return the metrics other than the one that arms are compared by, mean and interval of each arm."""
    names = [name for name in found.first[0].summary.get("metrics", {}) if name != metric]
    rows = []
    for name in names:
        row = [name]
        for runs in found.arms.values():
            each = [run.summary.get("metrics", {}).get(name) for run in runs]
            mean, half = interval(each) if None not in each else (None, None)
            row.append(
                "not measured" if mean is None else f"{mean:.4f}" + (f" ± {half:.4f}" if half is not None else "")
            )
        rows.append(row)
    return [page.Table(["other metrics", *found.arms], rows)] if rows else []


def _curve(found: Results, name: str) -> Markup | None:
    drawn: list[charts.Line] = []
    many = len(found.arms) > 1
    for colour, (arm, runs) in enumerate(found.arms.items()):
        for dash, split in enumerate(("train", "validation")):
            each = [points for run in runs if (points := values(run.rows, split, name))]
            hue = colour if many else dash
            drawn += [charts.Line("", points, hue, dash, thin=True) for points in each if len(each) > 1]
            drawn.append(charts.Line(f"{arm}, {split}" if many else split, _mean(each), hue, dash))
    unit = "loss in nats" if name == "loss" else name
    return charts.lines(name, drawn, "step", unit) if name and any(line.points for line in drawn) else None


def _mean(each: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean over seeds at the steps that all of them have."""
    found = [dict(points) for points in each]
    steps = [step for step, _ in each[0] if all(step in one for one in found)] if each else []
    return [(step, float(np.mean([one[step] for one in found]))) for step in steps]


def _shown(name: str, value: float | None, between: tuple[float, float, str] | None) -> str:
    if value is None:
        return "not measured"
    scale, unit, digits = (100, " %", 1) if name in SHARES else (1, "", 4 if abs(value) < 10 else 1)
    ends = f" ({scale * between[0]:.{digits}f} to {scale * between[1]:.{digits}f})" if between else ""
    return f"{scale * value:.{digits}f}{unit}{ends}"


def _tiles(tiles: Sequence[tuple[str, str]]) -> page.Raw:
    one = Markup('<div class="tile"><b>{}</b><span>{}</span></div>')
    return page.Raw(Markup('<div class="tiles">{}</div>').format(Markup("").join(one.format(*tile) for tile in tiles)))
