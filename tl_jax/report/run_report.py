"""``report.html`` of a run, or of a comparison of runs, from its result files: metrics, curves, setup and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tl_jax.metrics import intervals
from tl_jax.report import html, plots, run_examples
from tl_jax.report.plots import SHARES, SMOKE, interval, margins, percent
from tl_jax.report.results import Results, values
from tl_jax.utils.errors import listed

SCORES_STYLE = """
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .75rem 1.1rem; flex: 0 1 auto; min-width: 9rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; }
"""


def headline(found: Results) -> html.Section | None:
    """Return the test metric with its interval, what transfer gained, and all metrics."""
    if not found.summary:
        return html.Section("", ["Not finished: there is no summary.json yet."])
    section = _compared(found) if "arms" in found.summary else _single(found)
    return section._replace(text=[SMOKE.capitalize() + ".", *section.text]) if found.summary.get("smoke") else section


def _single(found: Results) -> html.Section:
    run = found.runs[0]
    measured, between = found.summary["metrics"], intervals.run_intervals(found.summary, run.details)
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
    return html.Section("", text, [_tiles(tiles), html.Table(["test", "value", "95 % interval"], rows)])


def curves(found: Results) -> html.Section | None:
    """Return loss and metric over steps, of training and validation, the mean over seeds where there are several."""
    score = found.summary.get("metric") or found.first[0].summary.get("score", "")
    drawn = [_curve(found, name) for name in dict.fromkeys(["loss", score, "episode_return"])]
    drawn = [chart for chart in drawn if chart]
    if not drawn:
        return None
    many = any(len(runs) > 1 for runs in found.arms.values())
    return html.Section(
        "", ["Thin: single seeds; thick: their mean."] if many else (), [html.Raw(plots.side_by_side(drawn))]
    )


def _compared(found: Results) -> html.Section:
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
    chart = plots.dots(f"test {metric} by arm", summary["arms"], scale, name)
    parts = [_tiles(tiles), html.Raw(chart), html.Table(columns, rows), *_others(found, metric)]
    return html.Section("", text, parts)


def _others(found: Results, metric: str) -> list[html.Table]:
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
    return [html.Table(["other metrics", *found.arms], rows)] if rows else []


def _curve(found: Results, name: str) -> Markup | None:
    drawn: list[plots.Line] = []
    many = len(found.arms) > 1
    for colour, (arm, runs) in enumerate(found.arms.items()):
        for dash, split in enumerate(("train", "validation")):
            each = [points for run in runs if (points := values(run.rows, split, name))]
            hue = colour if many else dash
            drawn += [plots.Line("", points, hue, dash, thin=True) for points in each if len(each) > 1]
            drawn.append(plots.Line(f"{arm}, {split}" if many else split, _mean(each), hue, dash))
    unit = "loss in nats" if name == "loss" else name
    return plots.lines(name, drawn, "step", unit) if name and any(line.points for line in drawn) else None


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


def _tiles(tiles: Sequence[tuple[str, str]]) -> html.Raw:
    one = Markup('<div class="tile"><b>{}</b><span>{}</span></div>')
    return html.Raw(Markup('<div class="tiles">{}</div>').format(Markup("").join(one.format(*tile) for tile in tiles)))


FACTS_STYLE = """
dl.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .35rem 1.25rem; margin: .75rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .5rem; } }
.network { max-width: 44rem; } .network .box { stroke: var(--c0); fill: none; } .network .trained { fill: var(--c0); }
.network .frozen { fill: url(#hatch); }
"""
ROW, BAR, LABEL = 32, 150, 92  # units of the drawing: a row, the longest bar, room for names


def done(found: Results) -> html.Section | None:
    """Return the data, weights, machine and versions, and the fields that differ from ``tl_jax/config/recipe.py``."""
    run = found.first[0]
    summary = {**run.summary, **found.summary}
    facts = run.facts or run.summary.get("facts", {})
    sizes = summary.get("examples", {})
    parts = ", ".join(f"{size:,} {part}" for part, size in sizes.items() if size)
    classes = run.details.get("classes") or list(run.summary.get("per_class", {}))
    versions = summary.get("versions", {})
    counted = summary.get("parameters", {})
    starts = {arm: _start(runs[0].facts or runs[0].summary.get("facts", {})) for arm, runs in found.arms.items()}
    rows = {
        "task": found.about.get("task", ""),
        "network": found.about.get("model", ""),
        "parameters": ", ".join(f"{count:,} {how}" for how, count in counted.items()),
        "data": facts.get("data") or facts.get("world", ""),
        "examples": parts,
        "tested on": f"{summary['examples_evaluated']:,} examples; {facts.get('tested', '')}".strip("; ")
        if "examples_evaluated" in summary
        else "",
        "classes": _listed(classes),
        "started from": "; ".join(f"{arm}: {start}" if arm else start for arm, start in starts.items() if start),
        "licence of these weights": found.about.get("licence", ""),
        "seeds": ", ".join(str(each.seed) for each in found.first),
        "steps": f"{summary['steps']:,}" if "steps" in summary else "",
        "hardware": _hardware(summary),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": summary.get("commit", ""),
        "to run it again": found.about.get("command", ""),
    }
    fields = [[field, *each] for field, each in found.changed.items()]
    text = [] if fields else ["Every field is as in tl_jax/config/recipe.py."]
    title = f"{len(fields)} field{'s differ' if len(fields) > 1 else ' differs'} from tl_jax/config/recipe.py"
    table = html.Table(["field", "here", "tl_jax/config/recipe.py"], fields, words=True, title=title)
    return html.Section("", text, [_facts(rows), *([table] if fields else [])])


def network(found: Results) -> html.Section | None:
    """Return a drawing of the network for each layout that the arms have."""
    drawn: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for arm, runs in found.arms.items():
        if runs and runs[0].network:
            drawn.setdefault(str(runs[0].network), (runs[0].network, []))[1].append(arm)
    parts: list[Any] = []
    for layout, arms in drawn.values():
        parts += [html.Raw(Markup("<h3>{}</h3>").format(", ".join(arms)))] if len(drawn) > 1 else []
        parts += [html.Raw(_drawing(layout))]
    if not parts:
        return None
    text = "From the input (top) to the output. A bar is as long as the square root of the number of parameters; "
    text += "the solid part is trained in the last phase, the hatched part stays frozen."
    still = all(not layout["phases"] for layout, _ in drawn.values())
    return html.Section("", [text, *(["No step was taken: what is new was computed at once."] if still else [])], parts)


def costs(found: Results) -> html.Section | None:
    """Return seconds and memory."""
    seconds, peak = found.summary.get("seconds", {}), found.summary.get("peak_memory_bytes")
    if not seconds:
        return None
    names = {
        "data": "read weights and data", "features": "compute frozen layers", "compile": "compile", "train": "train",
        "eval": "test", "total": "all in all",
    }  # fmt: skip
    rows = [[names.get(part, part), f"{value:.1f}"] for part, value in seconds.items() if value is not None]
    parts: list[Any] = [html.Table(["", "seconds"], rows)]
    text = [f"Over {len(found.runs)} runs in one process."] if len(found.runs) > 1 else []
    if peak:
        text.append(
            f"At most {peak / 2**20:,.0f} MiB of memory were held (peak resident set, without an accelerator's)."
        )
    return html.Section("", text, parts)


def _start(facts: Mapping[str, Any]) -> str:
    weights, sha = str(facts.get("weights", "")), facts.get("weights_sha256") or ""
    if not weights or weights == "random":
        return "random weights" if weights else ""
    return weights.rpartition("/")[2] + (f", SHA-256 {sha[:16]}…" if sha else "")


def _hardware(summary: Mapping[str, Any]) -> str:
    devices, machine = summary.get("devices", []), summary.get("machine", {})
    counted = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
    host = f"{machine['cores']} cores, {machine['processor']}, {machine['system']}" if machine else ""
    return "; ".join(filter(None, [", ".join(counted), host]))


def _listed(names: Sequence[str], most: int = 20) -> str:
    return f"{len(names)}: {listed(names, most)}" if names else ""


def _facts(rows: Mapping[str, str]) -> html.Raw:
    row = Markup("<dt>{}</dt><dd>{}</dd>\n")
    return html.Raw(Markup('<dl class="facts">{}</dl>').format(
        Markup("").join(row.format(name, value) for name, value in rows.items() if value)
    ))  # fmt: skip


def _drawing(layout: Mapping[str, Any]) -> Markup:
    phases, parts = layout["phases"], layout["parts"]
    scale = BAR / max(part["parameters"] for part in parts) ** 0.5
    body = Markup(
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0V6" stroke="var(--c0)" stroke-width="2"/></pattern></defs>'
    )
    for i, part in enumerate(parts):
        body += _part(part, phases, i * ROW, scale)
    said = ", ".join(f"{part['name']} {_state(part, phases)}" for part in parts)
    return Markup('<div class="network"><svg viewBox="0 0 480 {0}" width="576" role="img" aria-label="{1}">{2}</svg>'
                  "</div>").format(ROW * len(parts), said, body)  # fmt: skip


def _part(part: Mapping[str, Any], phases: Sequence[str], top: float, scale: float) -> Markup:
    size, trained = part["parameters"], part["trained"][-1] if part["trained"] else 0
    width = max(4.0, scale * size**0.5)
    share = width * trained / size if size else 0.0
    box = Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="20"/>')
    bars = box.format("trained", LABEL, top + 4, share) if share else Markup("")
    bars += box.format("frozen", LABEL + share, top + 4, width - share) if share < width else Markup("")
    bars += box.format("box", LABEL, top + 4, width)
    text = Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>')
    name = text.format(LABEL - 10, top + 19, "end", "", part["name"])
    said = f"{size:,}  {_state(part, phases)}"
    return name + bars + text.format(round(LABEL + width + 10, 1), top + 19, "start", Markup(' class="soft"'), said)


def _state(part: Mapping[str, Any], phases: Sequence[str]) -> str:
    """Return "trained", "frozen" or the share that is trained; where that changes, from which phase on or in which."""
    each = [_share(trained, part["parameters"]) for trained in part["trained"]] or ["frozen"]
    if len(set(each)) == 1:
        return each[0]
    first = each.index("trained") if "trained" in each else 0
    if first and set(each[:first]) == {"frozen"} and set(each[first:]) == {"trained"}:
        return f"trained from phase {phases[first]} on"
    return ", ".join(f"{state} in {phase}" for state, phase in zip(each, phases, strict=True))


def _share(trained: int, size: int) -> str:
    return "trained" if trained == size else "frozen" if not trained else f"{100 * trained / size:.2g} % trained"


# Titles and what makes them, from top to bottom; each takes the results and gives a section, or None.
SECTIONS = {
    "Result": headline,
    "What was done": done,
    "Curves": curves,
    "By class": run_examples.by_class,
    "Confusions": run_examples.confusions,
    "Surest mistakes": run_examples.mistakes,
    "Boxes": run_examples.detections,
    "Calibration": run_examples.calibration,
    "ROC": run_examples.roc,
    "Where it looks": run_examples.looks,
    "An episode": run_examples.episode,
    "Network": network,
    "Augmentation": run_examples.augmentation,
    "Learning rate": run_examples.rate,
    "Time and memory": costs,
}
PAGE_STYLE = plots.STYLE + SCORES_STYLE + run_examples.CLASSES_STYLE + run_examples.EXAMPLES_STYLE + FACTS_STYLE


def write(path: Path, found: Results) -> Path:
    """Write the page, a section for each kind of data that is there; what is damaged is said at the end."""
    sections, left_out = [], list(found.problems)
    for title, make in SECTIONS.items():
        try:
            parts = make(found)
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
        ) as e:  # a file that is not as it was written
            left_out.append(f"{title}: its data are not as expected ({type(e).__name__}: {e})")
            continue
        if parts:
            sections.append(parts._replace(title=title))
    if left_out:
        sections.append(html.Section("Not shown", left_out))
    name = found.summary.get("config_name") or found.about.get("name") or found.folder.name
    return html.write(path, name, sections, PAGE_STYLE)
