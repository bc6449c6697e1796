"""``report.html`` of a run or a comparison, from its result files: metrics, curves, setup and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tl_jax.metrics import intervals
from tl_jax.report import ensemble, html, plots, run_examples
from tl_jax.report.plots import PERCENT_METRICS, SMOKE_NOTE, format_margins, format_percent, t_interval
from tl_jax.report.results import ENSEMBLE, Results, metric_values
from tl_jax.utils.errors import join_names

SCORES_STYLE = """
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .75rem 1.1rem; flex: 0 1 auto; min-width: 9rem;
  max-width: 19rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; }
"""


def result_section(results: Results) -> html.Section | None:
    """Return the test score with its interval, the gain by transfer, and all metrics."""
    if not results.summary:
        return html.Section("", ["Not finished: there is no summary.json yet."])
    section = _comparison_section(results) if "arms" in results.summary else _run_section(results)
    return (
        section._replace(text=[SMOKE_NOTE.capitalize() + ".", *section.text])
        if results.summary.get("smoke")
        else section
    )


def _run_section(results: Results) -> html.Section:
    run = results.runs[0]
    metrics, run_intervals = results.summary["metrics"], intervals.run_intervals(results.summary, run.details)
    score = results.summary.get("score", next(iter(metrics), ""))
    headline = _format_metric(score, metrics.get(score), run_intervals.get(score))
    tiles = [(headline, f"test {score}" + (" and 95 % interval" if score in run_intervals else ""))]
    text = (
        [] if score in run_intervals else ["No interval: this run has none for the score. Run several seeds for one."]
    )
    ends = {name: "{:.4f} to {:.4f}".format(*interval[:2]) for name, interval in run_intervals.items()}
    rows = [[name, _four_digits(value), ends.get(name, "")] for name, value in metrics.items()]
    text += [f"{name} is missing: it {reason}." for name, reason in results.summary.get("missing", {}).items()]
    methods = sorted({interval[2] for interval in run_intervals.values()})
    text += ["95 % intervals: " + "; ".join(methods) + "."] if methods else []
    return html.Section("", text, [_tiles(tiles), html.Table(["test", "value", "95 % interval"], rows)])


def elsewhere_section(results: Results) -> html.Section | None:
    """Return the metrics on other labelled data sets, next to those on the run's test split."""
    own, blocks = results.summary.get("metrics", {}), []
    for name, found in results.elsewhere.items():
        ends = {metric: "{:.4f} to {:.4f}".format(*pair) for metric, pair in found.get("intervals95", {}).items()}
        rows = [
            [metric, _four_digits(value), ends.get(metric, ""), _four_digits(own.get(metric))]
            for metric, value in found["metrics"].items()
        ]
        columns = [f"{name}: {found['examples_evaluated']:,} examples", "value", "95 % interval", "own test split"]
        blocks.append(html.Table(columns, rows))
    text = ["All examples of each data set, at the threshold and temperature of the run."]
    return html.Section("", text, blocks) if blocks else None


def choice_section(results: Results) -> html.Section | None:
    """Return the methods that ``method="auto"`` tried, and the reason for its choice."""
    choice = results.summary.get("choice")
    if not choice:
        return None
    rows = [
        [
            row["name"],
            str(row.get("fold", "all")),
            f"{-row['loss_gain']:+.3f}" if row.get("loss_gain") is not None else "",
            row.get("error") or _four_digits(row["accuracy"]),
            _four_digits(row["probe"]) if "probe" in row else "",
            f"{row['seconds']:.0f}" if "seconds" in row else "",
        ]
        for row in choice["tried"]
    ]
    reason = choice["reason"]
    columns = ["method", "fold", "log loss minus that of the probe", "accuracy", "accuracy of the probe", "seconds"]
    return html.Section(
        "", [f"{reason[0].upper()}{reason[1:]}. All on held-out examples."], [html.Table(columns, rows)]
    )


def _four_digits(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def curve_section(results: Results) -> html.Section | None:
    """Return loss and metric over steps, on training and validation, with means over seeds."""
    score = results.summary.get("metric") or results.first[0].summary.get("score", "")
    charts = [_curve_chart(results, name) for name in dict.fromkeys(["loss", score, "episode_return"])]
    charts = [chart for chart in charts if chart]
    if not charts:
        return None
    many = any(len(runs) > 1 for runs in results.arms.values())
    text = ["Thin: single seeds; thick: their mean."] if many else []
    text += [f"{advice[0].upper()}{advice[1:]}." for advice in results.summary.get("advice", ())]
    return html.Section("", text, [html.Raw(plots.side_by_side(charts))])


def _comparison_section(results: Results) -> html.Section:
    summary, metric = results.summary, results.summary["metric"]
    scale, unit, points = (100, " %", " points") if metric in PERCENT_METRICS else (1, "", "")
    seeds, first = summary["seeds"], next(iter(summary["arms"]))
    seed_count = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    tiles = [
        (f"{format_percent(row, scale=scale)}{unit}", f"test {metric}, {arm};{format_margins(row, scale)}".rstrip(";"))
        for arm, row in summary["arms"].items()
    ] + [
        (f"{format_percent(row, '+', scale)}{points}", f"{first} over {arm};{format_margins(row, scale)}".rstrip(";"))
        for arm, row in summary["gain"].items()
    ]
    many, rows = len(seeds) > 1, []
    with_sampling = any(row.get("interval95_test") is not None for row in summary["arms"].values())
    for arm, row in [*summary["arms"].items(), *((f"{first} over {a}", r) for a, r in summary["gain"].items())]:
        half, mean = row["interval95"], scale * row["mean"]
        ends = "" if half is None else f"{mean - scale * half:.1f} to {mean + scale * half:.1f}"
        seed_values = [f"{scale * value:.1f}" for value in row.get("values", ())] or [""] * len(seeds)
        sign = "" if "values" in row else "+"
        outer_half = row.get("interval95_both" if many else "interval95_test")
        outer_cells = [] if not with_sampling else ["" if outer_half is None else f"{scale * outer_half:.1f}"]
        rows.append(
            [
                arm,
                f"{mean:{sign}.1f}",
                *([f"{scale * (half or 0):.1f}", ends, *outer_cells, *seed_values] if many else outer_cells),
            ]
        )
    outer_columns = ["± with test-set sampling" if many else "± by test-set sampling"] * with_sampling
    interval_columns = (
        ["± over seeds", "95 % interval", *outer_columns, *(f"seed {seed}" for seed in seeds)]
        if many
        else outer_columns
    )
    columns = [metric + (" in %" if unit else ""), "mean" if many else f"seed {seeds[0]}", *interval_columns]
    text = [
        f"Mean and 95 % interval over {seed_count} (Student's t); gains are paired by seed."
        if many
        else "A single seed per arm gives no interval over seeds; run several for one.",
        "All seeds share one test set. The wider interval also covers the sampling of its examples; gains are paired "
        "by example."
        if with_sampling
        else "It does not cover the sampling of the test set, which all seeds share.",
        *intervals.seed_notes(summary),
    ]
    x_label = f"test {metric}{' in percent' if unit else ''}: diamonds are means, dots single seeds"
    chart = plots.dot_chart(f"test {metric} by arm", summary["arms"], scale, x_label)
    blocks = [_tiles(tiles), html.Raw(chart), html.Table(columns, rows), *_other_metrics(results, metric)]
    return html.Section("", text, blocks)


def _other_metrics(results: Results, metric: str) -> list[html.Table]:
    """Return the metrics besides the compared one, with mean and interval of each arm."""
    names = [name for name in results.first[0].summary.get("metrics", {}) if name != metric]
    rows = []
    for name in names:
        row = [name]
        for runs in results.arms.values():
            seed_values = [run.summary.get("metrics", {}).get(name) for run in runs]
            mean, half = t_interval(seed_values) if None not in seed_values else (None, None)
            row.append(
                "not measured" if mean is None else f"{mean:.4f}" + (f" ± {half:.4f}" if half is not None else "")
            )
        rows.append(row)
    return [html.Table(["other metrics", *results.arms], rows)] if rows else []


def _curve_chart(results: Results, name: str) -> Markup | None:
    lines: list[plots.Line] = []
    many = len(results.arms) > 1
    for arm_color, (arm, runs) in enumerate(results.arms.items()):
        for dash, split in enumerate(("train", "validation")):
            curves = [points for run in runs if (points := metric_values(run.rows, split, name))]
            color = arm_color if many else dash
            lines += [plots.Line("", points, color, dash, thin=True) for points in curves if len(curves) > 1]
            lines.append(plots.Line(f"{arm}, {split}" if many else split, _mean_over_seeds(curves), color, dash))
    return plots.line_chart(name, lines, "step", name) if name and any(line.points for line in lines) else None


def _mean_over_seeds(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean over seeds at their common steps."""
    values_by_step = [dict(points) for points in curves]
    steps = [step for step, _ in curves[0] if all(step in values for values in values_by_step)] if curves else []
    return [(step, float(np.mean([values[step] for values in values_by_step]))) for step in steps]


def _format_metric(name: str, value: float | None, interval: tuple[float, float, str] | None) -> str:
    if value is None:
        return "not measured"
    scale, unit, digits = (100, " %", 1) if name in PERCENT_METRICS else (1, "", 4 if abs(value) < 10 else 1)
    ends = f" ({scale * interval[0]:.{digits}f} to {scale * interval[1]:.{digits}f})" if interval else ""
    return f"{scale * value:.{digits}f}{unit}{ends}"


def _tiles(tiles: Sequence[tuple[str, str]]) -> html.Raw:
    template = Markup('<div class="tile"><b>{}</b><span>{}</span></div>')
    return html.Raw(
        Markup('<div class="tiles">{}</div>').format(Markup("").join(template.format(*tile) for tile in tiles))
    )


FACTS_STYLE = """
dl.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .35rem 1.25rem; margin: .75rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .5rem; } }
.network { max-width: 44rem; } .network .box { stroke: var(--c0); fill: none; } .network .trained { fill: var(--c0); }
.network .frozen { fill: url(#hatch); }
"""
ROW_HEIGHT, BAR_WIDTH, LABEL_WIDTH = 32, 150, 92  # drawing units: a row, the longest bar, space for names


def setup_section(results: Results) -> html.Section | None:
    """Return the data, weights, machine and versions, and the fields that differ from ``tl_jax/config/recipe.py``."""
    run = results.first[0]
    summary = {**run.summary, **results.summary}
    facts = run.facts or run.summary.get("facts", {})
    sizes = summary.get("examples", {})
    split_sizes = ", ".join(f"{size:,} {split}" for split, size in sizes.items() if size)
    classes = run.details.get("classes") or list(run.summary.get("per_class", {}))
    versions = summary.get("versions", {})
    parameter_counts = summary.get("parameters", {})
    origins = {
        arm: _weights_origin(runs[0].facts or runs[0].summary.get("facts", {}))
        for arm, runs in results.arms.items()
        if arm != ENSEMBLE
    }
    rows = {
        "task": results.description.get("task", ""),
        "network": results.description.get("model", ""),
        "parameters": ", ".join(f"{count:,} {kind}" for kind, count in parameter_counts.items()),
        "data": facts.get("data") or facts.get("world", ""),
        "examples": split_sizes,
        "tested on": f"{summary['examples_evaluated']:,} examples; {facts.get('tested', '')}".strip("; ")
        if "examples_evaluated" in summary
        else "",
        "classes": _count_and_list(classes),
        "starting point": "; ".join(f"{arm}: {origin}" if arm else origin for arm, origin in origins.items() if origin),
        "licence of the weights": results.description.get("licence", ""),
        "seeds": ", ".join(map(str, summary.get("seeds") or [run.seed for run in results.first])),
        "steps": f"{summary['steps']:,}" if "steps" in summary else "",
        "hardware": _hardware(summary),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": summary.get("commit", ""),
        "to repeat it": results.description.get("command", ""),
    }
    fields = [[field, *values] for field, values in results.changed_fields.items()]
    text = [] if fields else ["All fields have the defaults of tl_jax/config/recipe.py."]
    title = f"{len(fields)} field{'s differ' if len(fields) > 1 else ' differs'} from tl_jax/config/recipe.py"
    table = html.Table(["field", "here", "tl_jax/config/recipe.py"], fields, is_text=True, title=title)
    return html.Section("", text, [_facts_list(rows), *([table] if fields else [])])


def network_section(results: Results) -> html.Section | None:
    """Return a drawing of the network for each layout among the arms."""
    layouts: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for arm, runs in results.arms.items():
        if runs and runs[0].network:
            layouts.setdefault(str(runs[0].network), (runs[0].network, []))[1].append(arm)
    blocks: list[Any] = []
    for layout, arms in layouts.values():
        blocks += [html.Raw(Markup("<h3>{}</h3>").format(", ".join(arms)))] if len(layouts) > 1 else []
        blocks += [html.Raw(_draw_network(layout))]
    if not blocks:
        return None
    text = "From the input (top) to the output. The length of a bar is the square root of the number of parameters; "
    text += "the solid part is trained in the last phase, the hatched part is frozen."
    no_training = all(not layout["phases"] for layout, _ in layouts.values())
    return html.Section(
        "",
        [
            text,
            *(["No training step: only the head was fitted, to the features of the network."] if no_training else []),
        ],
        blocks,
    )


def cost_section(results: Results) -> html.Section | None:
    """Return duration in seconds, and memory."""
    seconds, peak = results.summary.get("seconds", {}), results.summary.get("peak_memory_bytes")
    if not seconds:
        return None
    names = {
        "data": "load weights and data", "features": "compute frozen layers", "compile": "compile", "train": "train",
        "eval": "test", "total": "total",
    }  # fmt: skip
    rows = [[names.get(timing, timing), f"{value:.1f}"] for timing, value in seconds.items() if value is not None]
    blocks: list[Any] = [html.Table(["", "seconds"], rows)]
    count = sum(run.arm != ENSEMBLE for run in results.runs)
    text = [f"Over {count} runs in one process."] if count > 1 else []
    if peak:
        text.append(f"Peak memory: {peak / 2**20:,.0f} MiB (resident set, without an accelerator's).")
    return html.Section("", text, blocks)


def _weights_origin(facts: Mapping[str, Any]) -> str:
    weights, sha = str(facts.get("weights", "")), facts.get("weights_sha256") or ""
    if not weights or weights == "random":
        return "random weights" if weights else ""
    return weights.rpartition("/")[2] + (f", SHA-256 {sha[:16]}…" if sha else "")


def _hardware(summary: Mapping[str, Any]) -> str:
    devices, machine = summary.get("devices", []), summary.get("machine", {})
    device_counts = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
    host = f"{machine['cores']} cores, {machine['processor']}, {machine['system']}" if machine else ""
    return "; ".join(filter(None, [", ".join(device_counts), host]))


def _count_and_list(names: Sequence[str], max_items: int = 20) -> str:
    return f"{len(names)}: {join_names(names, max_items)}" if names else ""


def _facts_list(rows: Mapping[str, str]) -> html.Raw:
    row = Markup("<dt>{}</dt><dd>{}</dd>\n")
    return html.Raw(Markup('<dl class="facts">{}</dl>').format(
        Markup("").join(row.format(name, value) for name, value in rows.items() if value)
    ))  # fmt: skip


def _draw_network(layout: Mapping[str, Any]) -> Markup:
    phases, stages = layout["phases"], layout["parts"]
    scale = BAR_WIDTH / max(stage["parameters"] for stage in stages) ** 0.5
    body = Markup(
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0V6" stroke="var(--c0)" stroke-width="2"/></pattern></defs>'
    )
    for i, stage in enumerate(stages):
        body += _draw_stage(stage, phases, i * ROW_HEIGHT, scale)
    label = ", ".join(f"{stage['name']} {_training_state(stage, phases)}" for stage in stages)
    return Markup('<div class="network"><svg viewBox="0 0 480 {0}" width="576" role="img" aria-label="{1}">{2}</svg>'
                  "</div>").format(ROW_HEIGHT * len(stages), label, body)  # fmt: skip


def _draw_stage(stage: Mapping[str, Any], phases: Sequence[str], top: float, scale: float) -> Markup:
    size, trained = stage["parameters"], stage["trained"][-1] if stage["trained"] else 0
    width = max(4.0, scale * size**0.5)
    share = width * trained / size if size else 0.0
    box = Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="20"/>')
    bars = box.format("trained", LABEL_WIDTH, top + 4, share) if share else Markup("")
    bars += box.format("frozen", LABEL_WIDTH + share, top + 4, width - share) if share < width else Markup("")
    bars += box.format("box", LABEL_WIDTH, top + 4, width)
    text = Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>')
    name = text.format(LABEL_WIDTH - 10, top + 19, "end", "", stage["name"])
    label = f"{size:,}  {_training_state(stage, phases)}"
    return (
        name + bars + text.format(round(LABEL_WIDTH + width + 10, 1), top + 19, "start", Markup(' class="soft"'), label)
    )


def _training_state(stage: Mapping[str, Any], phases: Sequence[str]) -> str:
    """Return "trained", "frozen" or the trained share; if it changes, with the phases."""
    states = [_trained_share(trained, stage["parameters"]) for trained in stage["trained"]]
    states = states or ["fitted" if stage["name"] == "head" else "frozen"]  # no phase: only a head was fitted
    if len(set(states)) == 1:
        return states[0]
    first_trained = states.index("trained") if "trained" in states else 0
    if first_trained and set(states[:first_trained]) == {"frozen"} and set(states[first_trained:]) == {"trained"}:
        return f"trained from phase {phases[first_trained]}"
    return ", ".join(f"{state} in {phase}" for state, phase in zip(states, phases, strict=True))


def _trained_share(trained: int, size: int) -> str:
    return "trained" if trained == size else "frozen" if not trained else f"{100 * trained / size:.2g} % trained"


# Title -> function that returns the section of results, or None, from top to bottom.
SECTIONS = {
    "Result": result_section,
    "Ensemble": ensemble.section,
    "Choice of the method": choice_section,
    "Other data sets": elsewhere_section,
    "Setup": setup_section,
    "Curves": curve_section,
    "By class": run_examples.class_scores,
    "Confusions": run_examples.confusions,
    "Most confident mistakes": run_examples.mistakes,
    "Boxes": run_examples.detections,
    "Calibration": run_examples.calibration,
    "ROC": run_examples.roc,
    "Grad-CAM": run_examples.grad_cam,
    "Episode": run_examples.episode,
    "Network": network_section,
    "Augmentation": run_examples.augmentation,
    "Learning rate": run_examples.learning_rate,
    "Time and memory": cost_section,
}
PAGE_STYLE = plots.STYLE + SCORES_STYLE + run_examples.CLASSES_STYLE + run_examples.EXAMPLES_STYLE + FACTS_STYLE


def write_report(path: Path, results: Results) -> Path:
    """Write the report, with a section per kind of result; damaged results are listed at the end."""
    sections, problems = [], list(results.problems)
    for title, build in SECTIONS.items():
        try:
            section = build(results)
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
        ) as e:  # a damaged file
            problems.append(f"{title}: unexpected data ({type(e).__name__}: {e})")
            continue
        if section:
            sections.append(section._replace(title=title))
    if problems:
        sections.append(html.Section("Not shown", problems))
    name = results.summary.get("config_name") or results.description.get("name") or results.folder.name
    return html.write_page(path, name, sections, PAGE_STYLE)
