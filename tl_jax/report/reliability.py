"""Reliability diagram: how often a network is right, against how sure it is; before and after calibration."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Bins(Protocol):
    """Of B bins the mean confidence, the share that is right and the share of all examples, each (B,)."""

    confidence: Any
    accuracy: Any
    share: Any

    @property
    def error(self) -> float:
        """The expected calibration error."""
        ...


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
    figure.savefig(path)
    return path
