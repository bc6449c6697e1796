"""Image files of a run: augmentation grids, heat maps, tokenized texts, and images with boxes."""

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tl_jax.utils import disk

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


COLUMNS = 4  # pictures in a row, each beside its overlay
LONGEST = 44  # letters of a caption
STRENGTH = 0.6  # of the colours over the picture, where the map is highest


def draw_overlays(seen: np.ndarray, maps: np.ndarray, captions: Sequence[str], title: str, path: Path) -> Path:
    """Draw each picture beside itself under its map, and save all as a PNG.

    Args:
        seen: uint8 (N, S, S, 3).
        maps: (N, h, w), 0 and more; each is shown up to its own largest value.
        captions: (N,), below each.
        title: above all.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    columns = min(COLUMNS, len(seen))
    rows = -(-len(seen) // columns)
    figure = Figure(figsize=(4 * columns, 2.35 * rows + 0.5), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axis in axes:
        axis.axis("off")
    for axis, picture, heat, caption in zip(axes, seen, maps, captions, strict=False):
        axis.imshow(np.concatenate([picture, blend(picture, heat)], axis=1), interpolation="nearest")
        shown = caption if len(caption) <= LONGEST else f"...{caption[-LONGEST:]}"
        axis.set_title(shown, fontsize=8, y=-0.12)
    return disk.save_figure(figure, path)


def blend(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a picture uint8 (S, S, 3) in grey under the colours of a map (h, w), resized to it."""
    from matplotlib import colormaps

    share = heat / max(float(heat.max()), 1e-12)
    size = picture.shape[1], picture.shape[0]
    share = np.asarray(Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))[..., None]
    colours = 255 * colormaps["turbo"](share[..., 0])[..., :3]
    grey = np.repeat(np.asarray(Image.fromarray(picture).convert("L"), np.float64)[..., None], 3, axis=-1)
    return np.rint(grey * (1 - STRENGTH * share) + colours * STRENGTH * share).astype(np.uint8)


SIZE, TOKEN_LETTER = 9, 8  # points, and pixels that a letter of that size is wide in a font of equal letters
TOKEN_COLUMNS = 104  # letters in a line of boxes
LINE, TOKEN_GAP, EDGE = 32, 12, 14  # pixels: a line of boxes with what stands below them, between texts, around all
FONTS = ("DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "Noto Sans", "Arial Unicode MS")
PLAIN, SPECIAL, PADDING, SECOND = "plain", "special", "padding", "second"
COLORS = {PLAIN: "#eef1f5", SPECIAL: "#c9ccd1", PADDING: "white", SECOND: "#cfe3f7"}
# Of what else has a colour, in the order of the legend: light enough for black letters.
OTHERS = ("#ffc48a", "#a8dba8", "#f3a6a6", "#c9b3e6", "#f5e08a", "#a5dede", "#f0b6d9", "#d7c3a5")


class Piece(NamedTuple):
    """A piece of a text, the colour's name (a key of the legend, or one of ``COLORS``), and what stands below it."""

    text: str
    kind: str = PLAIN
    note: str = ""


class Text(NamedTuple):
    """A text: what stands above it, and its pieces."""

    caption: str
    pieces: Sequence[Piece]


def draw_tokens(texts: Sequence[Text], legend: Mapping[str, str], title: str, path: Path) -> Path:
    """Draw texts below each other, their pieces as boxes that flow over lines, and save them as a PNG.

    Args:
        texts: N.
        legend: name of each colour -> what it means.
        title: above all.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    colors = COLORS | dict(zip((kind for kind in legend if kind not in COLORS), 9 * OTHERS, strict=False))
    placed, y = [], EDGE + 30
    for text in texts:
        placed.append((0, y, text.caption))
        y += 22
        for row in flow(text.pieces):
            placed += [(x, y, piece) for x, piece in row]
            y += LINE
        y += TOKEN_GAP
    rows = flow([Piece(words, kind) for kind, words in legend.items()])
    for row in rows:
        placed += [(x, y, piece) for x, piece in row]
        y += LINE - 8
    width, height = TOKEN_COLUMNS * TOKEN_LETTER + 2 * EDGE, y + EDGE
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    font = {"family": _fonts(), "va": "center", "parse_math": False}
    axis.text(EDGE, EDGE + 6, title, fontsize=SIZE + 2, **font)
    for x, y, what in placed:
        if isinstance(what, Piece):
            _box(axis, EDGE + x * TOKEN_LETTER, y, what, colors[what.kind], font)
        else:
            axis.text(EDGE, y + 4, what, fontsize=SIZE, weight="bold", **font)
    return disk.save_figure(figure, path, dpi=DPI)


def flow(pieces: Sequence[Piece]) -> list[list[tuple[int, Piece]]]:
    """Return lines of pieces, each with the letter at which it begins; none is cut, a line ends before ``COLUMNS``."""
    lines: list[list[tuple[int, Piece]]] = [[]]
    x = 0
    for piece in pieces:
        if lines[-1] and x + wide(piece) > TOKEN_COLUMNS:
            lines.append([])
            x = 0
        lines[-1].append((x, piece))
        x += wide(piece) + 1
    return lines


def wide(piece: Piece) -> int:
    """Return how many letters a piece takes, with what stands below it and some room."""
    return max(_letters(piece.text), _letters(piece.note)) + 1


def _letters(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _box(axis: Any, x: float, y: float, piece: Piece, color: str, font: Mapping[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    width, off = wide(piece) * TOKEN_LETTER, piece.kind == PADDING
    edge = {"edgecolor": "#9aa0a8", "linewidth": 0.7, "linestyle": "--" if off else "-"}
    axis.add_patch(Rectangle((x, y - 8), width, 16, facecolor=color, **edge))
    axis.text(x + width / 2, y, piece.text, fontsize=SIZE, ha="center", color="#80868f" if off else "black", **font)
    if piece.note:
        axis.text(x + width / 2, y + 15, piece.note, fontsize=SIZE - 1.5, ha="center", color="#303540", **font)


def _fonts() -> list[str]:
    """Return the fonts that are there; a letter is taken from the first that has it."""
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    return [name for name in FONTS if name in there]


BOXES_SHOWN = 640  # pixels: smaller pictures are enlarged by a whole factor, to about this side
GOLDEN = 0.618  # of the circle of hues between one class and the next: neighbours differ


def draw_boxes(image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], texts: Sequence[str], path: Path) -> Path:
    """Draw boxes with a text each on a picture, a colour for each class, the first on top, and save it as a PNG.

    Args:
        image: uint8 (H, W, 3).
        boxes: (B, 4) in pixels.
        classes: (B,) int.
        texts: (B,).
        path: of the PNG.

    Returns:
        ``path``.
    """
    zoom = max(1, BOXES_SHOWN // max(image.shape[:2]))
    picture = Image.fromarray(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
    pen = ImageDraw.Draw(picture)
    rows = list(zip(zoom * np.asarray(boxes, float), classes, texts, strict=True))
    for box, k, text in reversed(rows):
        pen.rectangle(box.tolist(), outline=colour(k), width=2)
        corner = box[0] + 2, max(0.0, box[1] - 11)
        pen.rectangle(pen.textbbox(corner, text), fill=colour(k))
        pen.text(corner, text, fill="black")
    with disk.atomic_write(path) as temporary:
        picture.save(temporary, "PNG")
    return path


def outlined(images: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return pictures uint8 (N, H, W, 3) with boxes (N, M, 4) drawn one pixel wide; none where ``classes`` < 0."""
    out = []
    for image, own, kinds in zip(np.clip(images, 0, 255).astype(np.uint8), boxes, classes, strict=True):
        picture = Image.fromarray(image)
        pen = ImageDraw.Draw(picture)
        for box, k in zip(own[kinds >= 0], kinds[kinds >= 0], strict=True):
            x0, y0, x1, y1 = box.tolist()
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour(int(k)))
        out.append(np.asarray(picture))
    return np.stack(out)


def colour(k: int) -> tuple[int, int, int]:
    """Return a bright colour for class ``k``, RGB."""
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(GOLDEN * k % 1, 0.75, 1.0))
    return red, green, blue
