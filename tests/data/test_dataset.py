"""Kinds of pictures in a folder: formats, depths, palettes, transparency and EXIF, all read as RGB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_image_folder import COLOURS, draw
from tl_jax.data import image_folder

pytestmark = pytest.mark.fast


def put(top: Path, image: Image.Image, name: str = "00.png", **how: object) -> np.ndarray:
    """Return what is read of ``image`` written beside plain pictures of another class and its own."""
    draw(top, {"a": 5, "b": 5}, image.size)
    image.save(top / "a" / name, **how)
    source = image_folder.read_folder(top, 8)
    everything = np.concatenate([source.train.inputs, source.test.inputs])
    assert everything.dtype == np.uint8 and everything.shape[-1] == 3
    return everything[~(everything == 128).all(axis=(1, 2, 3))][0]


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".Png", ".bmp", ".webp"])
def test_endings(tmp_path: Path, ending: str) -> None:
    source = image_folder.read_folder(draw(tmp_path, {"green": 5, "red": 5}, ending=ending))
    assert source.train.inputs.shape == (8, 8, 8, 3)
    assert abs(source.train.inputs[0].astype(int) - COLOURS["green"]).max() <= 2


GREY = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)


def test_grey_is_repeated(tmp_path: Path) -> None:
    np.testing.assert_array_equal(put(tmp_path, Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, -1))


def test_black_and_white(tmp_path: Path) -> None:
    read = put(tmp_path, Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(read, np.where(GREY > 100, 255, 0)[..., None].repeat(3, -1))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray((GREY > 100).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    expected = np.array([[10, 20, 30], [200, 100, 50]])[(GREY > 100).astype(int)]
    np.testing.assert_array_equal(put(tmp_path / "opaque", image), expected)
    read = put(tmp_path / "clear", image, transparency=1)
    np.testing.assert_array_equal(read, np.where((GREY > 100)[..., None], 255, expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (10, 6), (0,) * (len(mode) - 1) + (255,))
    image.paste((0,) * (len(mode) - 1) + (0,), (0, 0, 5, 6))
    image.paste((0,) * (len(mode) - 1) + (51,), (9, 0, 10, 6))  # a fifth opaque
    read = put(tmp_path, image)
    assert (read[:, :5] == 255).all() and (read[:, 5:9] == 0).all() and (read[:, 9] == 204).all()


def test_cmyk(tmp_path: Path) -> None:
    read = put(tmp_path, Image.new("CMYK", (10, 6), (0, 255, 255, 0)), "00.jpg")
    assert abs(read.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["00.jpg", "00.png"])
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, name: str, orientation: int) -> None:
    upright = Image.fromarray(np.kron([[0, 90], [180, 250]], np.ones((16, 24))).astype(np.uint8)).convert("RGB")
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw(tmp_path, {"a": 5, "b": 5}, upright.size)
    (tmp_path / "a" / "00.png").unlink()
    stored.save(tmp_path / "a" / name, exif=exif)
    source = image_folder.read_folder(tmp_path, 8)
    everything = np.concatenate([source.train.inputs, source.test.inputs])
    assert everything.shape == (10, 32, 48, 3)  # the same size once turned: kept as they are
    read = next(image for image in everything if image.std() > 5)
    assert abs(read.astype(int) - np.asarray(upright)).max() <= 12
