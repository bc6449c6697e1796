"""The ROC of a verification: TAR over FAR, the axis of FAR logarithmic, where thresholds are chosen."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tl_jax import disk


def draw(far: np.ndarray, tar: np.ndarray, marks: Mapping[str, tuple[float, float]], title: str, path: Path) -> Path:
    """Draw the curve with points on it and save it as a PNG.

    Args:
        far, tar: (T,) rising from 0 to 1.
        marks: name -> (FAR, TAR) of a point.
        title: above the picture.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    lowest = far[far > 0].min()  # one pair of different people, which FAR 0 cannot be told from
    axis.step(np.maximum(far, lowest), tar, where="post", color="C0")
    shade = np.geomspace(lowest, 1.0, 200)
    axis.plot(shade, shade, color="grey", linestyle=":", label="by chance")
    for i, (name, (x, y)) in enumerate(marks.items()):
        axis.plot(max(x, lowest), y, "o", color=f"C{i + 1}", label=f"{name}: TAR {y:.3f}")
    axis.set_xscale("log")
    axis.set_xlim(lowest, 1.0)
    axis.set_ylim(0.0, 1.02)
    axis.set_xlabel("FAR: share of pairs of different people that are accepted")
    axis.set_ylabel("TAR: share of pairs of one person that are accepted")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    return disk.save_figure(figure, path)
