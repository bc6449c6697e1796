"""Pictures with several drawn shapes and a box around each: they need no files, and the boxes are exact."""

import numpy as np

from tl_jax.data.boxes import CLASS, COLUMNS, NONE
from tl_jax.data.drawn import SHAPES
from tl_jax.data.pictures import Source, Split

KINDS = ("disc", "square", "triangle")
MOST = 4  # shapes of a picture


def scenes(train: int = 256, test: int = 64, size: int = 64) -> Source:
    """Draw one to four shapes of random place, size and colour, none on another, on a background that blends."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5

    def picture() -> tuple[np.ndarray, np.ndarray]:
        """Return a picture uint8 (size, size, 3) and its labels (MOST, 6)."""
        blend = (x + y)[..., None] / (2 * size)
        image = rng.uniform(60, 120, 3) * blend + rng.uniform(60, 120, 3) * (1 - blend)
        taken, labels = np.zeros((size, size), bool), np.zeros((MOST, COLUMNS), np.float32)
        labels[:, CLASS] = NONE
        for row in range(rng.integers(1, MOST + 1)):
            kind, radius = int(rng.integers(len(KINDS))), rng.uniform(0.1, 0.22) * size
            middle = rng.uniform(radius, size - radius, 2)
            inside = SHAPES[KINDS[kind]]((x - middle[0]) / radius, (y - middle[1]) / radius)
            if (inside & taken).any():
                continue
            taken |= inside
            image = np.where(inside[..., None], 255 * rng.dirichlet(np.full(3, 0.5)), image)
            rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
            labels[row] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, kind, 0
        return np.clip(image + 8 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8), labels

    def draw(n: int) -> Split:
        images, labels = zip(*(picture() for _ in range(n)), strict=True)
        return Split(np.stack(images), np.stack(labels))

    return Source("scenes", draw(train), draw(test), KINDS)
