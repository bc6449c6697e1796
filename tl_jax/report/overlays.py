"""Heat maps laid over the pictures they belong to, in one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tl_jax import disk

COLUMNS = 4  # pictures in a row, each beside its overlay
LONGEST = 44  # letters of a caption
STRENGTH = 0.6  # of the colours over the picture, where the map is highest


def draw(seen: np.ndarray, maps: np.ndarray, captions: Sequence[str], title: str, path: Path) -> Path:
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
