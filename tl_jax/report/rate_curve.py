"""The curve of a learning-rate range test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


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
    figure.savefig(path)
    return path
