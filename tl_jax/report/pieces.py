"""Texts in the pieces that a network reads, a box for each, with what is said of it below, as a PNG."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax import disk

DPI = 100
SIZE, LETTER = 9, 8  # points, and pixels that a letter of that size is wide in a font of equal letters
COLUMNS = 104  # letters in a line of boxes
LINE, GAP, EDGE = 32, 12, 14  # pixels: a line of boxes with what stands below them, between texts, around all
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


def draw(texts: Sequence[Text], legend: Mapping[str, str], title: str, path: Path) -> Path:
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
        y += GAP
    rows = flow([Piece(words, kind) for kind, words in legend.items()])
    for row in rows:
        placed += [(x, y, piece) for x, piece in row]
        y += LINE - 8
    width, height = COLUMNS * LETTER + 2 * EDGE, y + EDGE
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    font = {"family": _fonts(), "va": "center", "parse_math": False}
    axis.text(EDGE, EDGE + 6, title, fontsize=SIZE + 2, **font)
    for x, y, what in placed:
        if isinstance(what, Piece):
            _box(axis, EDGE + x * LETTER, y, what, colors[what.kind], font)
        else:
            axis.text(EDGE, y + 4, what, fontsize=SIZE, weight="bold", **font)
    return disk.save_figure(figure, path, dpi=DPI)


def flow(pieces: Sequence[Piece]) -> list[list[tuple[int, Piece]]]:
    """Return lines of pieces, each with the letter at which it begins; none is cut, a line ends before ``COLUMNS``."""
    lines: list[list[tuple[int, Piece]]] = [[]]
    x = 0
    for piece in pieces:
        if lines[-1] and x + wide(piece) > COLUMNS:
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

    width, off = wide(piece) * LETTER, piece.kind == PADDING
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
