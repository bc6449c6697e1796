"""Synthetic images for classification, faces and detection: gratings, shapes, cartoon faces and scenes.

They need no files, and labels and boxes are exact.
"""

from collections.abc import Callable, Mapping

import numpy as np

from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.detection import CLASS, COLUMNS, NO_CLASS
from tl_jax.data.registry import DatasetOptions, register_dataset


def draw_gratings(classes: int = 10, train: int = 512, test: int = 128, size: int = 32) -> Dataset:
    """Draw gratings whose class is the direction of the stripes; phase, colour and noise are random."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size

    def draw_split(n: int) -> Split:
        labels = np.arange(n) % classes
        angle = np.pi * labels / classes
        along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
        wave = np.sin(2 * np.pi * (4 * along + rng.random((n, 1, 1))))
        images = (
            128 + 60 * wave[..., None] * rng.uniform(0.3, 1.0, (n, 1, 1, 3)) + rng.normal(0, 15, (n, size, size, 3))
        )
        return Split(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Dataset(
        "gratings", draw_split(train), draw_split(test), tuple(f"{180 * k // classes} degrees" for k in range(classes))
    )


# Whether points (u, v) around the centre are inside a shape, whose radius is about 1.
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


def draw_shapes(train: int = 4000, test: int = 1000, size: int = 32) -> Dataset:
    """Draw a shape of random position, size, rotation and colour on a noisy gradient of two colours."""
    rng = np.random.default_rng(1)
    oversampling = 2  # points per pixel and axis, averaged for smooth edges
    y, x = (np.mgrid[: oversampling * size, : oversampling * size].astype(np.float32) + 0.5) / (oversampling * size)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    def draw_images(n: int, inside: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Return n images of one shape."""
        radius, turn = uniform(0.16, 0.3, n, 1, 1), uniform(0, 2 * np.pi, n, 1, 1)
        dx, dy = ((axis - uniform(0.35, 0.65, n, 1, 1)) / radius for axis in (x, y))
        shape = inside(np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx)
        blend = uniform(-1, 1, n, 1, 1) * (x - 0.5) + uniform(-1, 1, n, 1, 1) * (y - 0.5) + 0.5
        covered, blend = (
            points.astype(np.float32).reshape(n, size, oversampling, size, oversampling).mean((2, 4))[..., None]
            for points in (shape, np.clip(blend, 0, 1))
        )
        first, second = uniform(0, 255, n, 1, 1, 3), uniform(0, 255, n, 1, 1, 3)
        front = 255 * ((first + second) / 2 < 127.5) + uniform(-60, 60, n, 1, 1, 3)  # contrasts with both
        images = covered * front + (1 - covered) * (first * blend + second * (1 - blend))
        return images + 12 * rng.standard_normal(images.shape, np.float32)

    def draw_split(n: int) -> Split:
        per_class = n // len(SHAPES)
        images = np.stack([draw_images(per_class, inside) for inside in SHAPES.values()], axis=1)
        labels = np.tile(np.arange(len(SHAPES), dtype=np.int32), per_class)
        return Split(np.clip(images, 0, 255).astype(np.uint8).reshape(-1, size, size, 3), labels)

    return Dataset("shapes", draw_split(train), draw_split(test), tuple(SHAPES))


def draw_faces(identities: int = 24, per_identity: int = 8, size: int = 32) -> tuple[Split, tuple[str, ...]]:
    """Draw cartoon faces: each person has a fixed head shape, colours, hair, eyes and mouth; the rest is random.

    The pose, light, gaze and noise vary between images.

    Returns:
        identities * per_identity images, person by person, labels in [0, identities), and the names of the people.
    """
    rng = np.random.default_rng(2)
    y, x = 2 * (np.mgrid[: 2 * size, : 2 * size] + 0.5) / (2 * size) - 1  # twice the resolution, averaged at the end

    def draw_face(identity: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return an image (size, size, 3) of a person."""
        dx, dy, look, mood = rng.normal(0, (0.08, 0.08, 0.15, 0.03))
        u, v = (x - dx) / rng.uniform(0.8, 1.0), (y - dy) / rng.uniform(0.8, 1.0)
        wide, apart, eye, mouth, hair = identity["sizes"]
        head = (u / wide) ** 2 + (v / 0.85) ** 2 < 1
        white = ((abs(u) - apart) / eye) ** 2 + ((v + 0.1) / (0.7 * eye)) ** 2 < 1
        iris = (abs(u - look * eye) - apart) ** 2 + (v + 0.1) ** 2 < (0.5 * eye) ** 2
        lips = (abs(u) < mouth) & (abs(v - 0.45 + (identity["smile"] + mood) * (u / mouth) ** 2) < 0.06)
        image = np.broadcast_to(rng.uniform(0, 255, 3), (*x.shape, 3)).copy()
        for where, colour in (
            (head, identity["skin"]), (head & (v < hair), identity["hair"]), (white, np.full(3, 240.0)),
            (iris, identity["iris"]), (lips, identity["lips"]),
        ):  # fmt: skip
            image[where] = colour
        image = image.reshape(size, 2, size, 2, 3).mean((1, 3)) * rng.uniform(0.7, 1.1)
        return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)

    images = []
    for _ in range(identities):
        low, high = np.array([[0.55, 0.2, 0.1, 0.15, -0.7], [0.85, 0.35, 0.2, 0.4, -0.2]])
        identity = {"sizes": rng.uniform(low, high), "smile": rng.uniform(-0.15, 0.15)}
        identity |= {"skin": np.array([230, 190, 160]) * rng.uniform(0.4, 1.05) + rng.normal(0, 12, 3)}
        identity |= {part: rng.uniform(0, 220, 3) for part in ("hair", "iris", "lips")}
        images += [draw_face(identity) for _ in range(per_identity)]
    labels = np.repeat(np.arange(identities, dtype=np.int32), per_identity)
    return Split(np.stack(images), labels), tuple(f"person{i:02d}" for i in range(identities))


SCENE_CLASSES = ("disc", "square", "triangle")
MAX_SHAPES = 4  # shapes per image


def draw_scenes(train: int = 256, test: int = 64, size: int = 64) -> Dataset:
    """Draw one to four shapes of random position, size and colour, without overlap, on a gradient."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5

    def draw_scene() -> tuple[np.ndarray, np.ndarray]:
        """Return an image uint8 (size, size, 3) and its labels (MAX_SHAPES, 6)."""
        blend = (x + y)[..., None] / (2 * size)
        image = rng.uniform(60, 120, 3) * blend + rng.uniform(60, 120, 3) * (1 - blend)
        taken, labels = np.zeros((size, size), bool), np.zeros((MAX_SHAPES, COLUMNS), np.float32)
        labels[:, CLASS] = NO_CLASS
        for row in range(rng.integers(1, MAX_SHAPES + 1)):
            class_index, radius = int(rng.integers(len(SCENE_CLASSES))), rng.uniform(0.1, 0.22) * size
            middle = rng.uniform(radius, size - radius, 2)
            inside = SHAPES[SCENE_CLASSES[class_index]]((x - middle[0]) / radius, (y - middle[1]) / radius)
            if (inside & taken).any():
                continue
            taken |= inside
            image = np.where(inside[..., None], 255 * rng.dirichlet(np.full(3, 0.5)), image)
            rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
            labels[row] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, class_index, 0
        return np.clip(image + 8 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8), labels

    def draw_split(n: int) -> Split:
        images, labels = zip(*(draw_scene() for _ in range(n)), strict=True)
        return Split(np.stack(images), np.stack(labels))

    return Dataset("scenes", draw_split(train), draw_split(test), SCENE_CLASSES)


@register_dataset("gratings")
def load_gratings(options: DatasetOptions) -> Dataset:
    """Synthetic stripes, whose class is their direction."""
    return draw_gratings()


@register_dataset("shapes")
def load_shapes(options: DatasetOptions) -> Dataset:
    """Synthetic shapes, whose class is their outline."""
    return draw_shapes()


@register_dataset("scenes", inputs="boxes")
def load_scenes(options: DatasetOptions) -> Dataset:
    """Synthetic shapes, several in an image of ``input.size`` pixels, with boxes around them."""
    return draw_scenes(size=options.size)
