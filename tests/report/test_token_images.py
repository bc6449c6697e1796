"""Texts drawn in pieces, read back from the PNG."""

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from tl_jax.report import images
from tl_jax.report.images import (
    COLORS,
    PADDING,
    PLAIN,
    SPECIAL,
    TOKEN_COLUMNS,
    Piece,
    Text,
    draw_tokens,
    piece_width,
    wrap_pieces,
)

pytestmark = pytest.mark.fast


def painted(path, color: str) -> int:
    """Return how many pixels have a colour."""
    with Image.open(path) as image:
        page = np.asarray(image.convert("RGB")).astype(int)
    return int((np.abs(page - np.round(255 * np.asarray(colors.to_rgb(color)))).max(-1) < 2).sum())


def test_lines_hold_all_pieces_in_order_and_none_reaches_over_the_next():
    rng = np.random.default_rng(0)
    row = [Piece("x" * n, note="y" * m) for n, m in rng.integers(1, 30, (60, 2))] + [Piece("z" * 2 * TOKEN_COLUMNS)]
    lines = wrap_pieces(row)
    assert [piece for line in lines for _, piece in line] == row and len(lines) > 2
    for line in lines[:-1]:
        ends = [x + piece_width(piece) for x, piece in line]
        assert ends[-1] <= TOKEN_COLUMNS and all(end < x for end, (x, _) in zip(ends, line[1:], strict=False))
    assert [len(line) for line in lines][-1] == 1  # the one that is too long has a line of its own
    assert piece_width(Piece("你好")) == piece_width(Piece("abcd"))


@pytest.mark.filterwarnings("error")
def test_colours_are_those_of_the_kinds_and_nothing_is_read_as_a_formula(tmp_path):
    row = [Piece("[CLS]", SPECIAL), Piece("$x^2$"), Piece("\\frac", "tag ORG", "B-ORG"), Piece("[PAD] x 3", PADDING)]
    legend = {PLAIN: "a piece", SPECIAL: "special", "tag ORG": "ORG"}
    path = draw_tokens([Text("a caption with $", row)], legend, "title", tmp_path / "a.png")
    assert (
        min(painted(path, COLORS[PLAIN]), painted(path, COLORS[SPECIAL]), painted(path, images.OTHER_COLORS[0])) > 300
    )
    assert painted(path, images.OTHER_COLORS[1]) == 0
    longer = draw_tokens(3 * [Text("", 40 * row)], legend, "title", tmp_path / "b.png")
    with Image.open(path) as one, Image.open(longer) as many:
        assert one.width == many.width and many.height > 5 * one.height


def test_more_kinds_than_colours_take_turns(tmp_path):
    kinds = {f"tag {i}": f"{i}" for i in range(20)}
    path = draw_tokens([Text("", [Piece("x", kind) for kind in kinds])], kinds, "", tmp_path / "a.png")
    assert all(painted(path, colour) for colour in images.OTHER_COLORS)
