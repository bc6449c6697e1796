"""Table and picture of the four looks at what is transferred, from their record alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import record
from tl_jax import disk
from tl_jax.report import page
from tl_jax.report.comparison import interval, percent
from tl_jax.train.workdir import read_json

TITLES = {
    "depth": "first d parts from the source",
    "rewind": "one part of the fine-tuned network reset",
    "line": "on the line between two networks",
    "drift": "how far each part moved",
}


def write(prefix: Path) -> str:
    """Write ``PREFIX.md`` and ``PREFIX.png``; return what to say about them."""
    rows, how = record.read(prefix), read_json(Path(f"{prefix}.json"))
    seeds = len({row["seed"] for row in rows})
    text = [
        f"# What is transferred from {how['source']} to {how['target']}\n",
        f"resnet8, {how['per_class']} training examples of each class, {how['steps']} steps, the best on "
        f"validation of the rates {', '.join(how['rates'])}, "
        f"at most {how['tested']} test examples, {seeds} seed{'s' * (seeds != 1)} (mean and 95 % interval); commit "
        f"{', '.join(how['commits'])}.\n",
    ]
    for kind, title in TITLES.items():
        text += [f"## {title.capitalize()}\n", page.markdown(table(rows, kind))]
    disk.write_text(Path(f"{prefix}.md"), "\n".join(text))
    picture = draw(rows, Path(f"{prefix}.png"), f"{how['source']} to {how['target']}, seeds: {seeds}")
    return f"{prefix}.csv, {prefix}.md, {picture}"


def table(rows: Sequence[Any], kind: str) -> page.Table:
    """Return the means and intervals of one look, places down and variants across."""
    places, variants = names(rows, kind)
    lines = []
    for place in places:
        cells = []
        for variant in variants:
            mean, half = interval(values) if (values := of(rows, kind, place, variant)) else (np.nan, None)
            cells.append(percent({"mean": mean, "interval95": half}) if np.isfinite(mean) else "")
        lines.append([place, *cells])
    return page.Table(["at", *variants], lines)


def names(rows: Sequence[Any], kind: str) -> tuple[list[str], list[str]]:
    """Return the places and the variants of a look, in the order of the record."""
    mine = [row for row in rows if row["kind"] == kind]
    places, variants = (list(dict.fromkeys(row[key] for row in mine)) for key in ("at", "variant"))
    return places, variants


def of(rows: Sequence[Any], kind: str, place: str, variant: str) -> list[float]:
    """Return the values of all seeds."""
    wanted = (kind, place, variant)
    return [float(row["value"]) for row in rows if (row["kind"], row["at"], row["variant"]) == wanted]


def draw(rows: Sequence[Any], path: Path, title: str) -> Path:
    """Draw the four looks."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(13, 8.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 2)
    for axis, (kind, words) in zip(axes.ravel(), TITLES.items(), strict=True):
        places, variants = names(rows, kind)
        for i, variant in enumerate(variants):
            there = [(k, of(rows, kind, place, variant)) for k, place in enumerate(places)]
            there = [(k, *interval(values)) for k, values in there if values]
            x, mean, half = (np.asarray([t[j] or 0.0 for t in there]) for j in range(3))
            shift = 0.04 * (i - (len(variants) - 1) / 2)
            style = "o" if kind == "rewind" else "o-"
            axis.errorbar(x + shift, 100 * mean, yerr=100 * half, fmt=style, ms=4, capsize=3, label=variant)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -2), min(high, 102))  # an interval may reach where no percentage can
        axis.set_xticks(range(len(places)), places)
        axis.set_title(words, fontsize=11)
        axis.set_ylabel("percent" if kind == "drift" else "test accuracy, percent")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"{title}: mean and 95 % interval", fontsize=12)
    return disk.save_figure(figure, path)
