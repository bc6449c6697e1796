"""The curve of a learning-rate range test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tl_jax import disk
from tl_jax.report.comparison import interval


def draw(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, marks: Mapping[str, float], title: str, path: Path
) -> Path:
    """Draw losses (S,) over learning rates (S,) with named rates marked; save it as a PNG."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, ".", color="C0", alpha=0.35, label="single steps")
    axis.plot(rates, smoothed, color="C0", label="running mean")
    for i, (what, rate) in enumerate(marks.items(), start=1):
        axis.axvline(rate, color=f"C{i}", linestyle="--", label=f"{rate:.1e}: {what}")
    axis.set_xscale("log")
    inside = smoothed[np.isfinite(smoothed)]
    room = 0.1 * (inside.max() - inside.min()) + 1e-9
    axis.set_ylim(min(inside.min(), losses.min()) - room, inside[0] + 3 * room + (inside.max() - inside[0]) / 3)
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss in nats")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return disk.save_figure(figure, path)


def draw_scores(rates: np.ndarray, lines: Mapping[str, np.ndarray], title: str, path: Path) -> Path:
    """Draw test accuracies (S seeds, R rates) of each line over rates (R,), with 95 % intervals; save a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    for i, (name, scores) in enumerate(lines.items()):
        means, halves = zip(*(interval(column) for column in scores.T), strict=True)
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
