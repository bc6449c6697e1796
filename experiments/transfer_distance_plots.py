"""Plots of the study of distances."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

from experiments.agreement import Agreement
from experiments.transfer_gains import Pair, compared
from tl_jax import disk


def heat_map(found: Sequence[Pair], way: str, path: Path) -> Path:
    """Draw the mean gain of each source on each target."""
    sources = list(dict.fromkeys(pair.source for pair in found))
    targets = list(dict.fromkeys(pair.target for pair in found))
    values = np.full((len(sources), len(targets)), np.nan)
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            mine = [pair.gains[way].mean() for pair in found if (pair.source, pair.target) == (source, target)]
            values[i, j] = 100 * np.mean(mine) if mine else np.nan
    figure = Figure(figsize=(2 + 1.1 * len(targets), 1.5 + 0.6 * len(sources)), dpi=110, layout="constrained")
    axis: Any = figure.subplots()
    most = max(1.0, float(np.nanmax(abs(values))))
    image = axis.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            if np.isfinite(values[i, j]):
                light = abs(values[i, j]) > 0.6 * most
                axis.text(j, i, f"{values[i, j]:+.1f}", ha="center", va="center", color="white" if light else "black")
            if source == target:
                axis.plot([j - 0.5, j + 0.5], [i - 0.5, i + 0.5], color="grey", lw=1)
    axis.set_xticks(range(len(targets)), targets, rotation=30, ha="right")
    axis.set_yticks(range(len(sources)), sources)
    axis.set_xlabel("target")
    axis.set_ylabel("source")
    figure.colorbar(image, label="gain over scratch, points")
    return disk.save_figure(figure, path)


def tau_bars(each: Sequence[Agreement], words: str, path: Path) -> Path:
    """Draw tau with its interval for each score, the best on top."""
    figure = Figure(figsize=(8, 1 + 0.32 * len(each)), dpi=110, layout="constrained")
    axis: Any = figure.subplots()
    for i, one in enumerate(reversed(each)):
        sure = one.low > 0 or one.high < 0
        axis.plot([one.low, one.high], [i, i], color="tab:blue" if sure else "grey", lw=2)
        axis.plot([one.tau], [i], "o", color="tab:blue" if sure else "grey")
    axis.set_yticks(range(len(each)), [one.score for one in reversed(each)])
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel(f"weighted Kendall tau with the gain of {words}, 95 % interval (grey: includes zero)")
    axis.grid(alpha=0.3, axis="x")
    return disk.save_figure(figure, path)


def scatter(found: Sequence[Pair], way: str, names: Sequence[str], path: Path) -> Path:
    """Draw scores against gains; both without the mean of their target and budget, scores in standard deviations.

    Only pairs that the rank correlations are taken over are drawn.
    """
    some, _ = compared(found)
    figure = Figure(figsize=(13, 7.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 3, sharey=True)
    targets = list(dict.fromkeys(pair.target for pair in found))
    for axis, name in zip(axes.ravel(), names, strict=False):
        for k, target in enumerate(targets):
            for per_class, mark in zip(sorted({pair.per_class for pair in found}), "os^v", strict=False):
                mine = some.get((target, per_class))
                if not mine:
                    continue
                x = np.asarray([pair.scores[name] for pair in mine])
                y = np.asarray([100 * pair.gains[way].mean() for pair in mine])
                x = (x - x.mean()) / (x.std() or 1.0)
                axis.plot(x, y - y.mean(), mark, color=f"C{k}", ms=5, label=f"{target}, {per_class}")
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("gain less the group's mean, points")
    for axis in axes[1]:
        axis.set_xlabel("score, standardised within the group")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return disk.save_figure(figure, path)
