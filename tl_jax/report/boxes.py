"""Boxes drawn on pictures."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tl_jax import disk

SHOWN = 640  # pixels: smaller pictures are enlarged by a whole factor, to about this side
GOLDEN = 0.618  # of the circle of hues between one class and the next: neighbours differ


def draw(image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], texts: Sequence[str], path: Path) -> Path:
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
    zoom = max(1, SHOWN // max(image.shape[:2]))
    picture = Image.fromarray(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
    pen = ImageDraw.Draw(picture)
    rows = list(zip(zoom * np.asarray(boxes, float), classes, texts, strict=True))
    for box, k, text in reversed(rows):
        pen.rectangle(box.tolist(), outline=colour(k), width=2)
        corner = box[0] + 2, max(0.0, box[1] - 11)
        pen.rectangle(pen.textbbox(corner, text), fill=colour(k))
        pen.text(corner, text, fill="black")
    with disk.replacing(path) as temporary:
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
