"""Tables, plots and the page of the study of distances, from its record alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import record, transfer_distance_plots
from experiments.agreement import Agreement, agreements
from experiments.transfer_gains import WAYS, Pair, groups, pairs
from experiments.transfer_pairs import RANDOM
from experiments.transfer_scores import DISTANCES, SCORES
from tl_jax import disk
from tl_jax.report import page
from tl_jax.report.comparison import interval, percent
from tl_jax.train.workdir import read_json


def write(prefix: Path) -> str:
    """Write ``PREFIX.md``, plots and ``report.html`` beside them; return what to say about it."""
    rows = record.read(prefix)
    found, how = pairs(rows), read_json(Path(f"{prefix}.json"))
    told = {way: agreements(some) for way in WAYS if (some := groups(found, way))}
    sections = [page.Section("What was measured", about(rows, found, how))]
    for way, words in WAYS.items():
        picture = transfer_distance_plots.heat_map(found, way, Path(f"{prefix}_gain_{way}.png"))
        caption = f"gain of {words} over scratch, points, mean over budgets and seeds; crossed out: its own data"
        sections.append(
            page.Section(f"Gain of {words}", parts=(gain_table(found, way), page.Picture(picture, caption)))
        )
    for way, each in told.items():
        sections.append(ranking(prefix, found, way, each))
    sections.append(page.Section("What these numbers cannot say", limits(found, told)))
    title = "How far is the source from the target: what scores and distances say about gain"
    html = page.write(prefix.with_name("report.html"), title, sections)
    disk.write_text(Path(f"{prefix}.md"), as_markdown(title, sections))
    return f"{prefix}.csv, {prefix}.md, {html}"


def about(rows: Sequence[Any], found: Sequence[Pair], how: Mapping[str, Any]) -> list[str]:
    """Return what the numbers are."""
    seeds, commits = {row["seed"] for row in rows}, sorted({row["commit"] for row in rows} - {""})
    sources, targets = ({getattr(pair, name) for pair in found} for name in ("source", "target"))
    budgets = sorted({pair.per_class for pair in found})
    negative = [p for p in found if not p.own and p.source != RANDOM and _below(p.gains["fine_tune"])]
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in seen.items()) for seen in how.get("versions", []))
    return [
        f"{len(sources)} sources, {len(targets)} targets, {' and '.join(map(str, budgets))} training examples of each "
        f"class, {len(seeds)} seeds. Runs from scratch and from a source have {how['steps']} steps of {how['batch']} "
        f"examples and the rates {', '.join(how['rates'])}, of which the first seed's validation part chooses; "
        f"accuracies are of at most {how['tested']} test examples.",
        f"Fine-tuning was worse than scratch, its 95 % interval below zero, for {len(negative)} of "
        f"{sum(not p.own and p.source != RANDOM for p in found)} pairs: "
        + (", ".join(f"{p.source} to {p.target} ({p.per_class})" for p in negative) or "none")
        + ".",
        f"Commit {', '.join(commits) or 'unknown'}; {versions}.",
    ]


def gain_table(found: Sequence[Pair], way: str) -> page.Table:
    """Return gains in points, mean and 95 % interval over seeds; a triangle marks what is surely negative."""
    columns = list(dict.fromkeys((pair.target, pair.per_class) for pair in found))
    rows = []
    for source in dict.fromkeys(pair.source for pair in found):
        row = [source]
        for target, per_class in columns:
            mine = [p for p in found if (p.source, p.target, p.per_class) == (source, target, per_class)]
            mean, half = interval(mine[0].gains[way]) if mine else (float("nan"), None)
            mark = (" (own)" if source == target else "") + (" ▼" if mine and _below(mine[0].gains[way]) else "")
            row.append(percent({"mean": mean, "interval95": half}, "+") + mark if mine else "")
        rows.append(row)
    return page.Table(["source", *(f"{target}, {n}" for target, n in columns)], rows)


def ranking(prefix: Path, found: Sequence[Pair], way: str, each: Sequence[Agreement]) -> page.Section:
    """Return which scores go with the gain."""
    columns = ["score", "weighted tau", "95 % interval", "Spearman", "behind the best", "p", "pairs to tell apart"]
    rows = [
        [
            one.score, f"{one.tau:.2f}", f"{one.low:.2f} to {one.high:.2f}", f"{one.spearman:.2f}",
            f"{one.behind:.2f}" if i else "", f"{one.p:.3f}" if i else "",
            f"{one.needed:,.0f}" if i and np.isfinite(one.needed) else "",
        ]
        if np.isfinite(one.tau) else [one.score, "the same for all sources", *[""] * 5]
        for i, one in enumerate(each)
    ]  # fmt: skip
    some = groups(found, way)
    count = sum(len(group.gains) for group in some)
    best, sure = each[0], [one.score for one in each if one.low > 0]
    text = [
        f"Rank correlation of each score, distances with a minus sign, with the gain of {WAYS[way]}, among the sources "
        f"of one target and budget; mean over {len(some)} such groups, {count} pairs for which all are defined; "
        "where a score is the same for all sources of a group, it counts as 0.",
        f"Best: {best.score} ({best.tau:.2f}, {best.low:.2f} to {best.high:.2f}). "
        f"Surely better than chance: {', '.join(sure) or 'none'}. Not told apart from the best at p < 0.05: "
        f"{', '.join(one.score for one in each[1:] if one.p >= 0.05) or 'none'}.",
    ]
    if left := [name for name in (*SCORES, *DISTANCES) if name not in some[0].scores]:
        text.append(f"Defined for at most half of the pairs, and so left out: {', '.join(left)}.")
    taus = transfer_distance_plots.tau_bars(each, WAYS[way], Path(f"{prefix}_tau_{way}.png"))
    clouds = transfer_distance_plots.scatter(found, way, [one.score for one in each[:6]], Path(f"{prefix}_{way}.png"))
    parts = (
        page.Table(columns, rows),
        page.Picture(taus, "weighted Kendall tau with the gain, 95 % intervals over pairs"),
        page.Picture(
            clouds, f"each score against the gain, centred within its target and budget: the {count} pairs of the table"
        ),
    )
    return page.Section(f"What goes with the gain of {WAYS[way]}", text, parts)


def limits(found: Sequence[Pair], told: Mapping[str, Sequence[Agreement]]) -> list[str]:
    """Return what the sample is too small for."""
    out = []
    for way, each in told.items():
        close = [one for one in each[1:] if one.p >= 0.05 and np.isfinite(one.needed)]
        if close:
            least, *_, most = sorted((close[0], *close), key=lambda one: one.needed)
            out.append(
                f"For {WAYS[way]}, {len(close)} scores are not told apart from {each[0].score}. Telling {least.score} "
                f"from it would take about {least.needed:,.0f} pairs, {most.score} about {most.needed:,.0f}."
            )
    out.append(
        "Sources are few and alike: one small architecture. Pairs of one source, or of one target, are not "
        "independent, so the intervals are if anything too narrow. Nothing is said about large networks."
    )
    return out


def as_markdown(title: str, sections: Sequence[page.Section]) -> str:
    """Return the page's text and tables, with links to its pictures."""
    text = [f"# {title}\n"]
    for section in sections:
        text += [f"## {section.title}\n", *(f"{paragraph}\n" for paragraph in section.text)]
        for part in section.parts:
            table = isinstance(part, page.Table)
            text.append(page.markdown(part) if table else f"![{part.caption}]({part.path.name})\n")
    return "\n".join(text)


def _below(gains: np.ndarray) -> bool:
    mean, half = interval(gains)
    return half is not None and mean + half < 0
