"""Pictures beside what augmentation makes of them, pixel by pixel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax import disk

DPI = 100
SHOWN = 96  # pixels: smaller pictures are enlarged by a whole factor, to about this side
GAP = 4  # pixels between pictures
LETTER = 7  # pixels for each letter of the longest name of a class, at the left
HEAD, FOOT = 52, 64  # pixels for the title with the names of columns, and for the numbers
WIDTH = 720  # pixels at least, which the numbers take


def draw_grid(
    originals: np.ndarray,
    augmented: np.ndarray,
    names: Sequence[str],
    title: str,
    path: Path,
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Draw a row for each picture, the original at left and its augmented versions beside it, and save it as a PNG.

    Every pixel is shown as a square of whole screen pixels of its own colour, nothing is blended or stretched. Below
    stand the extremes of all values and the shares of them at the ends of the range, which clipping would raise.

    Args:
        originals: (N, H, W, C), C 1 or 3, uint8 or float.
        augmented: (V, N, H, W, C).
        names: (N,), of the pictures' classes.
        title: above the grid.
        path: of the PNG.
        value_range: values shown as black and white; None for (0, 255).

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    low, high = value_range or (0, 255)
    originals, augmented = np.asarray(originals), np.asarray(augmented)
    cells = np.concatenate([originals[None], augmented]).swapaxes(0, 1)  # (N, 1 + V, H, W, C)
    zoom = max(1, SHOWN // max(originals.shape[1:3]))
    grid = _mosaic(_shades(cells, low, high), zoom)
    margin = LETTER * max(map(len, names)) + 4 * GAP
    width, height = max(margin + grid.shape[1], WIDTH), HEAD + grid.shape[0] + FOOT
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(grid, margin, FOOT, origin="upper")  # not resampled, unlike what an axis shows

    _write(figure, GAP, 16, title, 10)
    step_y, step_x = (side * zoom + GAP for side in originals.shape[1:3])
    for column in range(cells.shape[1]):
        _write(figure, margin + (column + 0.5) * step_x, HEAD - 10, str(column or "original"), 7, ha="center")
    for row, name in enumerate(names):
        _write(figure, margin - 2 * GAP, HEAD + (row + 0.5) * step_y, name, 8, ha="right")
    numbers = describe(originals, augmented, low, high)
    _write(figure, GAP, height - FOOT / 2, numbers, 8, color="red" if "OUT OF RANGE" in numbers else "black")
    return disk.save_figure(figure, path, dpi=DPI)


def describe(originals: np.ndarray, augmented: np.ndarray, low: float, high: float) -> str:
    """Return the extremes of all values, and the shares in percent of those at exactly ``low`` and ``high``."""
    lines = []
    for name, values in (("originals", originals), ("augmented", augmented)):
        ends = ", ".join(f"{100 * np.mean(values == end):.2f} % at {end:g}" for end in (low, high))
        lines.append(f"{name}: smallest {values.min():.6g}, largest {values.max():.6g}; {ends}")
    if not (low <= augmented.min() and augmented.max() <= high):  # NaN is outside
        lines.append(f"OUT OF RANGE: augmented values are not all in [{low:g}, {high:g}]")
    return "\n".join(lines)


def _write(figure: Any, x: float, y: float, text: str, size: int, **how: str) -> None:
    """Write at (x, y) in pixels from the top left, centred in height."""
    width, height = figure.bbox.size
    figure.text(x / width, 1 - y / height, text, fontsize=size, va="center", **how)


def _shades(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return what is shown, uint8 (..., 3): ``low`` is 0 and ``high`` 255."""
    shades = np.nan_to_num((values.astype(np.float64) - low) * (255 / (high - low)))
    shades = np.clip(np.round(shades), 0, 255).astype(np.uint8)
    return np.broadcast_to(shades, (*shades.shape[:-1], 3))


def _mosaic(cells: np.ndarray, zoom: int) -> np.ndarray:
    """Put pictures (rows, columns, H, W, 3), each enlarged by ``zoom``, into one with white gaps after each."""
    cells = cells.repeat(zoom, axis=2).repeat(zoom, axis=3)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    rows, columns, h, w, _ = cells.shape
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
