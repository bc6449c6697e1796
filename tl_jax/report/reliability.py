"""Reliability diagram: how often a network is right, against how sure it is; before and after calibration."""

from pathlib import Path

import numpy as np

from tl_jax import disk
from tl_jax.tasks.scores import HIGHEST, Bins


def at_bound(temperature: float) -> str:
    """Return in words that a fitted temperature is as far as it may go, so that no best one was found; else ""."""
    if temperature < 1.001 / HIGHEST:
        return "the lowest that is tried: all validation examples are predicted right, and none is best"
    if temperature > 0.999 * HIGHEST:
        return "the highest that is tried: probabilities say little of the validation labels, and become nearly equal"
    return ""


def draw(before: Bins, after: Bins, temperature: float, path: Path) -> Path:
    """Draw both sets of bins beside each other, with the share of examples in each below, and save them as a PNG."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(8, 5.2), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (bins, title) in enumerate(((before, "as trained"), (after, f"temperature {temperature:.2f}"))):
        top, bottom = axes[0, column], axes[1, column]
        count = len(bins.share)
        middles, there = (np.arange(count) + 0.5) / count, np.asarray(bins.share) > 0
        top.bar(middles[there], bins.accuracy[there], 1 / count, color="tab:blue", edgecolor="white", label="right")
        top.plot(bins.confidence[there], bins.accuracy[there], "o", color="black", markersize=3)
        top.plot((0, 1), (0, 1), "--", color="grey", linewidth=1, label="calibrated")
        top.set(title=f"{title}: calibration error {bins.error:.3f}", xlim=(0, 1), ylim=(0, 1))
        bottom.bar(middles, bins.share, 1 / count, color="tab:grey", edgecolor="white")
        bottom.set_xlabel("probability of the class it is taken for")
    axes[0, 0].set_ylabel("share that is right")
    axes[1, 0].set_ylabel("share of examples")
    axes[0, 0].legend(loc="upper left", frameon=False)
    return disk.save_figure(figure, path)
