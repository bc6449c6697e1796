"""Figures of a run: augmentation grids, heat maps, tokenized texts, and images with boxes."""

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tl_jax.utils import disk

DPI = 100
MIN_SIDE = 96  # pixels: smaller images are enlarged by an integer factor to about this side
GAP = 4  # pixels between images
LETTER_WIDTH = 7  # pixels per letter of the longest class name, on the left
HEAD_HEIGHT, FOOT_HEIGHT = 52, 64  # pixels of the title with column names, and of the statistics
MIN_WIDTH = 720  # pixels, for the statistics


def draw_grid(
    originals: np.ndarray,
    augmented: np.ndarray,
    names: Sequence[str],
    title: str,
    path: Path,
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Draw a row per image, the original on the left and its augmented versions next to it, and save it as a PNG.

    Each pixel is shown as a square of its own colour, without blending. The extremes of all values and the shares at
    the ends of the range, which clipping would raise, are printed below.

    Args:
        originals: (N, H, W, C), C 1 or 3, uint8 or float.
        augmented: (V, N, H, W, C).
        names: (N,) class names of the images.
        title: title of the grid.
        path: path of the PNG.
        value_range: values shown as black and white; None for (0, 255).

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    low, high = value_range or (0, 255)
    originals, augmented = np.asarray(originals), np.asarray(augmented)
    cells = np.concatenate([originals[None], augmented]).swapaxes(0, 1)  # (N, 1 + V, H, W, C)
    zoom = max(1, MIN_SIDE // max(originals.shape[1:3]))
    grid = _mosaic(_to_uint8(cells, low, high), zoom)
    margin = LETTER_WIDTH * max(map(len, names)) + 4 * GAP
    width, height = max(margin + grid.shape[1], MIN_WIDTH), HEAD_HEIGHT + grid.shape[0] + FOOT_HEIGHT
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(grid, margin, FOOT_HEIGHT, origin="upper")  # not resampled, unlike in an axis

    _write_text(figure, GAP, 16, title, 10)
    step_y, step_x = (side * zoom + GAP for side in originals.shape[1:3])
    for column in range(cells.shape[1]):
        _write_text(
            figure, margin + (column + 0.5) * step_x, HEAD_HEIGHT - 10, str(column or "original"), 7, ha="center"
        )
    for row, name in enumerate(names):
        _write_text(figure, margin - 2 * GAP, HEAD_HEIGHT + (row + 0.5) * step_y, name, 8, ha="right")
    numbers = describe_range(originals, augmented, low, high)
    _write_text(
        figure, GAP, height - FOOT_HEIGHT / 2, numbers, 8, color="red" if "OUT OF RANGE" in numbers else "black"
    )
    return disk.save_figure(figure, path, dpi=DPI)


def describe_range(originals: np.ndarray, augmented: np.ndarray, low: float, high: float) -> str:
    """Return the extremes of all values, and the percentages at exactly ``low`` and ``high``."""
    lines = []
    for name, values in (("originals", originals), ("augmented", augmented)):
        ends = ", ".join(f"{100 * np.mean(values == end):.2f} % at {end:g}" for end in (low, high))
        lines.append(f"{name}: minimum {values.min():.6g}, maximum {values.max():.6g}; {ends}")
    if not (low <= augmented.min() and augmented.max() <= high):  # NaN is outside
        lines.append(f"OUT OF RANGE: augmented values are not all in [{low:g}, {high:g}]")
    return "\n".join(lines)


def _write_text(figure: Any, x: float, y: float, text: str, size: int, **options: str) -> None:
    """Write text at (x, y) in pixels from the top left, centred vertically."""
    width, height = figure.bbox.size
    figure.text(x / width, 1 - y / height, text, fontsize=size, va="center", **options)


def _to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values to uint8 (..., 3): ``low`` to 0 and ``high`` to 255."""
    shades = np.nan_to_num((values.astype(np.float64) - low) * (255 / (high - low)))
    shades = np.clip(np.round(shades), 0, 255).astype(np.uint8)
    return np.broadcast_to(shades, (*shades.shape[:-1], 3))


def _mosaic(cells: np.ndarray, zoom: int) -> np.ndarray:
    """Tile images (rows, columns, H, W, 3), each enlarged by ``zoom``, with white gaps."""
    cells = cells.repeat(zoom, axis=2).repeat(zoom, axis=3)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    rows, columns, h, w, _ = cells.shape
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)


OVERLAY_COLUMNS = 4  # images per row, each next to its overlay
MAX_CAPTION = 44  # characters of a caption
OVERLAY_ALPHA = 0.6  # opacity of the heat map at its maximum


def draw_overlays(inputs: np.ndarray, heatmaps: np.ndarray, captions: Sequence[str], title: str, path: Path) -> Path:
    """Draw each image next to its overlay with a heat map, and save all as a PNG.

    Args:
        inputs: uint8 (N, S, S, 3).
        heatmaps: (N, h, w), nonnegative; each is scaled by its maximum.
        captions: (N,), below each image.
        title: title of the figure.
        path: path of the PNG.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    columns = min(OVERLAY_COLUMNS, len(inputs))
    rows = -(-len(inputs) // columns)
    figure = Figure(figsize=(4 * columns, 2.35 * rows + 0.5), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axis in axes:
        axis.axis("off")
    for axis, image, heatmap, caption in zip(axes, inputs, heatmaps, captions, strict=False):
        axis.imshow(np.concatenate([image, blend_heatmap(image, heatmap)], axis=1), interpolation="nearest")
        label = caption if len(caption) <= MAX_CAPTION else f"...{caption[-MAX_CAPTION:]}"
        axis.set_title(label, fontsize=8, y=-0.12)
    return disk.save_figure(figure, path)


def blend_heatmap(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Return an image uint8 (S, S, 3) in grey, blended with the colours of a heat map (h, w) resized to it."""
    from matplotlib import colormaps

    weight = heatmap / max(float(heatmap.max()), 1e-12)
    size = image.shape[1], image.shape[0]
    weight = np.asarray(Image.fromarray(weight.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))[..., None]
    colours = 255 * colormaps["turbo"](weight[..., 0])[..., :3]
    grey = np.repeat(np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None], 3, axis=-1)
    return np.rint(grey * (1 - OVERLAY_ALPHA * weight) + colours * OVERLAY_ALPHA * weight).astype(np.uint8)


FONT_SIZE, TOKEN_LETTER = 9, 8  # points, and pixels of a character in a monospaced font of that size
TOKEN_COLUMNS = 104  # characters per line of boxes
# Pixels: a line of boxes with the labels below, between texts, margin.
LINE_HEIGHT, TOKEN_GAP, MARGIN = 32, 12, 14
FONTS = ("DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "Noto Sans", "Arial Unicode MS")
PLAIN, SPECIAL, PADDING, SECOND = "plain", "special", "padding", "second"
COLORS = {PLAIN: "#eef1f5", SPECIAL: "#c9ccd1", PADDING: "white", SECOND: "#cfe3f7"}
# Colours of other entries in the order of the legend, light enough for black text.
OTHER_COLORS = ("#ffc48a", "#a8dba8", "#f3a6a6", "#c9b3e6", "#f5e08a", "#a5dede", "#f0b6d9", "#d7c3a5")


class Piece(NamedTuple):
    """A token, its colour (a key of the legend, or one of ``COLORS``), and the label below it."""

    text: str
    kind: str = PLAIN
    note: str = ""


class Text(NamedTuple):
    """A text: its caption, and its tokens."""

    caption: str
    pieces: Sequence[Piece]


def draw_tokens(texts: Sequence[Text], legend: Mapping[str, str], title: str, path: Path) -> Path:
    """Draw texts below each other, with tokens as boxes that wrap, and save them as a PNG.

    Args:
        texts: N texts.
        legend: colour -> its meaning.
        title: title of the figure.
        path: path of the PNG.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    colors = COLORS | dict(zip((kind for kind in legend if kind not in COLORS), 9 * OTHER_COLORS, strict=False))
    placed, y = [], MARGIN + 30
    for text in texts:
        placed.append((0, y, text.caption))
        y += 22
        for row in wrap_pieces(text.pieces):
            placed += [(x, y, piece) for x, piece in row]
            y += LINE_HEIGHT
        y += TOKEN_GAP
    rows = wrap_pieces([Piece(words, kind) for kind, words in legend.items()])
    for row in rows:
        placed += [(x, y, piece) for x, piece in row]
        y += LINE_HEIGHT - 8
    width, height = TOKEN_COLUMNS * TOKEN_LETTER + 2 * MARGIN, y + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    font = {"family": _available_fonts(), "va": "center", "parse_math": False}
    axis.text(MARGIN, MARGIN + 6, title, fontsize=FONT_SIZE + 2, **font)
    for x, y, item in placed:
        if isinstance(item, Piece):
            _draw_piece(axis, MARGIN + x * TOKEN_LETTER, y, item, colors[item.kind], font)
        else:
            axis.text(MARGIN, y + 4, item, fontsize=FONT_SIZE, weight="bold", **font)
    return disk.save_figure(figure, path, dpi=DPI)


def wrap_pieces(pieces: Sequence[Piece]) -> list[list[tuple[int, Piece]]]:
    """Wrap tokens into lines of at most ``TOKEN_COLUMNS`` characters; return each with its first column."""
    lines: list[list[tuple[int, Piece]]] = [[]]
    x = 0
    for piece in pieces:
        if lines[-1] and x + piece_width(piece) > TOKEN_COLUMNS:
            lines.append([])
            x = 0
        lines[-1].append((x, piece))
        x += piece_width(piece) + 1
    return lines


def piece_width(piece: Piece) -> int:
    """Return the width of a token and its label in characters, with margins."""
    return max(_text_width(piece.text), _text_width(piece.note)) + 1


def _text_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _draw_piece(axis: Any, x: float, y: float, piece: Piece, color: str, font: Mapping[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    width, is_padding = piece_width(piece) * TOKEN_LETTER, piece.kind == PADDING
    edge = {"edgecolor": "#9aa0a8", "linewidth": 0.7, "linestyle": "--" if is_padding else "-"}
    axis.add_patch(Rectangle((x, y - 8), width, 16, facecolor=color, **edge))
    axis.text(
        x + width / 2,
        y,
        piece.text,
        fontsize=FONT_SIZE,
        ha="center",
        color="#80868f" if is_padding else "black",
        **font,
    )
    if piece.note:
        axis.text(x + width / 2, y + 15, piece.note, fontsize=FONT_SIZE - 1.5, ha="center", color="#303540", **font)


def _available_fonts() -> list[str]:
    """Return the installed fonts; each character uses the first one that has it."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


MIN_BOXES_SIDE = 640  # pixels: smaller images are enlarged by an integer factor to about this side
BOX_FONT_SIZE = 18  # pixels: readable if the picture is shown at half its size
HUE_STEP = 0.618  # turns of hue between consecutive classes, so that they differ


def draw_boxes(image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], texts: Sequence[str], path: Path) -> Path:
    """Draw labelled boxes on an image, one colour per class, the first box on top, and save it as a PNG.

    Args:
        image: uint8 (H, W, 3).
        boxes: (B, 4) in pixels.
        classes: (B,) int.
        texts: (B,) labels.
        path: path of the PNG.

    Returns:
        ``path``.
    """
    zoom = max(1, MIN_BOXES_SIDE // max(image.shape[:2]))
    canvas = Image.fromarray(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(BOX_FONT_SIZE)
    rows = list(zip(zoom * np.asarray(boxes, float), classes, texts, strict=True))
    for box, class_id, text in reversed(rows):
        pen.rectangle(box.tolist(), outline=class_color(class_id), width=2)
        corner = box[0] + 2, max(0.0, box[1] - BOX_FONT_SIZE - 4)
        pen.rectangle(pen.textbbox(corner, text, font), fill=class_color(class_id))
        pen.text(corner, text, "black", font)
    with disk.atomic_write(path) as temporary:
        canvas.save(temporary, "PNG")
    return path


def outline_boxes(images: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return images uint8 (N, H, W, 3) with outlines of boxes (N, M, 4), one pixel wide, where ``classes`` >= 0."""
    outlined = []
    for image, image_boxes, image_classes in zip(np.clip(images, 0, 255).astype(np.uint8), boxes, classes, strict=True):
        canvas = Image.fromarray(image)
        pen = ImageDraw.Draw(canvas)
        for box, class_id in zip(image_boxes[image_classes >= 0], image_classes[image_classes >= 0], strict=True):
            x0, y0, x1, y1 = box.tolist()
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=class_color(int(class_id)))
        outlined.append(np.asarray(canvas))
    return np.stack(outlined)


def class_color(class_id: int) -> tuple[int, int, int]:
    """Return a bright RGB colour for a class."""
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(HUE_STEP * class_id % 1, 0.75, 1.0))
    return red, green, blue
