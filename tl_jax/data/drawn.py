"""Pictures that are drawn instead of read: they need no files, and their classes are known to be there."""

from collections.abc import Callable, Mapping

import numpy as np

from tl_jax.data.pictures import Source, Split


def gratings(classes: int = 10, train: int = 512, test: int = 128, size: int = 32) -> Source:
    """Draw striped pictures whose class is the direction of the stripes; phase, colour and noise are random."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size

    def draw(n: int) -> Split:
        labels = np.arange(n) % classes
        angle = np.pi * labels / classes
        along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
        wave = np.sin(2 * np.pi * (4 * along + rng.random((n, 1, 1))))
        images = (
            128 + 60 * wave[..., None] * rng.uniform(0.3, 1.0, (n, 1, 1, 3)) + rng.normal(0, 15, (n, size, size, 3))
        )
        return Split(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Source("gratings", draw(train), draw(test), tuple(f"{180 * k // classes} degrees" for k in range(classes)))


# Inside or not, for points (u, v) around the middle of a shape whose radius is about 1.
SHAPES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "ring": lambda u, v: abs(u**2 + v**2 - 0.7) < 0.3,
    "half": lambda u, v: (u**2 + v**2 < 1) & (v > 0),
    "ellipse": lambda u, v: u**2 + 5 * v**2 < 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.65) < 0.2,
    "triangle": lambda u, v: (v > -0.5) & (np.sqrt(3) * abs(u) + v < 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.27) & (np.maximum(abs(u), abs(v)) < 1),
    "bar": lambda u, v: (abs(u) < 0.25) & (abs(v) < 1),
    "star": lambda u, v: np.hypot(u, v) < 0.6 + 0.4 * np.cos(5 * np.arctan2(v, u)),
}


def shapes(train: int = 4000, test: int = 1000, size: int = 32) -> Source:
    """Draw a shape of random place, size, turn and colour on a background of two colours that blend, with noise."""
    rng = np.random.default_rng(1)
    finer = 2  # points a pixel and axis, averaged: edges are smooth
    y, x = (np.mgrid[: finer * size, : finer * size].astype(np.float32) + 0.5) / (finer * size)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    def pictures(n: int, inside: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Return n pictures of one shape."""
        radius, turn = uniform(0.16, 0.3, n, 1, 1), uniform(0, 2 * np.pi, n, 1, 1)
        dx, dy = ((axis - uniform(0.35, 0.65, n, 1, 1)) / radius for axis in (x, y))
        shape = inside(np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx)
        blend = uniform(-1, 1, n, 1, 1) * (x - 0.5) + uniform(-1, 1, n, 1, 1) * (y - 0.5) + 0.5
        covered, blend = (
            points.astype(np.float32).reshape(n, size, finer, size, finer).mean((2, 4))[..., None]
            for points in (shape, np.clip(blend, 0, 1))
        )
        one, other = uniform(0, 255, n, 1, 1, 3), uniform(0, 255, n, 1, 1, 3)
        front = 255 * ((one + other) / 2 < 127.5) + uniform(-60, 60, n, 1, 1, 3)  # stands out from both
        found = covered * front + (1 - covered) * (one * blend + other * (1 - blend))
        return found + 12 * rng.standard_normal(found.shape, np.float32)

    def draw(n: int) -> Split:
        each = n // len(SHAPES)
        images = np.stack([pictures(each, inside) for inside in SHAPES.values()], axis=1)
        labels = np.tile(np.arange(len(SHAPES), dtype=np.int32), each)
        return Split(np.clip(images, 0, 255).astype(np.uint8).reshape(-1, size, size, 3), labels)

    return Source("shapes", draw(train), draw(test), tuple(SHAPES))
