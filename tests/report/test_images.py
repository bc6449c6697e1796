"""The preview of augmented pictures, read back from its PNG."""

import numpy as np
import pytest
from PIL import Image

from tl_jax.report.images import describe_range, draw_grid

pytestmark = pytest.mark.fast


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(page: np.ndarray, picture: np.ndarray, zoom: int) -> tuple[int, int]:
    """Return the row and column at which ``picture`` stands in the page, each pixel a square of ``zoom``."""
    cell = np.broadcast_to(picture, (*picture.shape[:2], 3)).repeat(zoom, 0).repeat(zoom, 1)
    h, w, _ = cell.shape
    corners = np.argwhere((page[: 1 - h or None, : 1 - w or None] == cell[0, 0]).all(-1))
    places = [(y, x) for y, x in corners.tolist() if np.array_equal(page[y : y + h, x : x + w], cell)]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize("shape, zoom", [((5, 7, 3), 13), ((5, 7, 1), 13), ((120, 40, 3), 1)])
def test_every_pixel_is_shown_as_it_is_and_where_it_belongs(tmp_path, shape, zoom):
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (2, *shape)).astype(np.uint8)
    augmented = rng.integers(0, 256, (3, 2, *shape)).astype(np.float32)
    path = draw_grid(originals, augmented, ["a", "b"], "title", tmp_path / "grid.png")
    assert path == tmp_path / "grid.png"
    page = read(path)
    places = np.array([[find(page, cell, zoom) for cell in row] for row in np.stack([originals, *augmented], 1)])
    rows, columns = places[..., 0], places[..., 1]
    assert (rows == rows[:, :1]).all() and rows[1, 0] >= rows[0, 0] + shape[0] * zoom
    assert (columns == columns[:1]).all() and (np.diff(columns[0]) >= shape[1] * zoom).all()


def test_dull_pictures_are_not_stretched(tmp_path):
    dull = np.arange(100, 112, dtype=np.uint8).reshape(1, 3, 4, 1)
    page = read(draw_grid(dull, dull[None] + np.float32(30.4), ["a"], "", tmp_path / "grid.png"))
    find(page, dull[0], 24)
    find(page, dull[0] + 30, 24)


def test_another_range_is_mapped_to_black_and_white(tmp_path):
    low = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 4, 1)
    page = read(draw_grid(low, low[None] / 2, ["a"], "", tmp_path / "grid.png", value_range=(-1, 1)))
    find(page, np.round((low[0] + 1) * 127.5).astype(np.uint8), 24)


def test_names_stand_beside_their_pictures(tmp_path):
    colour = np.array([200, 10, 120], np.uint8)
    images = np.broadcast_to(colour, (2, 8, 8, 3))
    pages = [
        read(draw_grid(images, images[None], ["same length", name], "title", tmp_path / "grid.png"))
        for name in ("some flower", "same flower")
    ]
    changed = np.argwhere((pages[0] != pages[1]).any(-1))
    rows, columns = np.argwhere((pages[0] == colour).all(-1)).T
    assert len(changed) and changed[:, 1].max() < columns.min()
    assert (rows.min() + rows.max()) / 2 < changed[:, 0].min() and changed[:, 0].max() < rows.max()


def test_the_numbers_are_those_of_all_values():
    originals = np.array([0, 0, 10, 255], np.uint8).reshape(1, 2, 2, 1)
    augmented = np.array([0, 1.5, 200, 254.25] * 2, np.float32).reshape(2, 1, 2, 2, 1)
    assert describe_range(originals, augmented, 0, 255).splitlines() == [
        "originals: minimum 0, maximum 255; 50.00 % at 0, 25.00 % at 255",
        "augmented: minimum 0, maximum 254.25; 25.00 % at 0, 0.00 % at 255",
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [255.001, -0.001, np.nan, np.inf])
def test_a_value_out_of_range_is_said_in_red(tmp_path, bad):
    images = np.full((1, 4, 4, 3), 90, np.float32)
    wrong = images[None].copy()

    def red() -> int:
        page = read(draw_grid(images, wrong, ["a"], "", tmp_path / "grid.png")).astype(int)
        return int(((page[..., 0] - page[..., 1]) > 100).sum())

    assert red() == 0
    wrong[0, 0, 1, 1, 1] = bad
    assert "OUT OF RANGE" in describe_range(images, wrong, 0, 255)
    wrong[0, 0, 1, 1] = bad  # grey, so that only the text is red
    assert red() > 50
