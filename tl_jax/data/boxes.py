"""Pictures with boxes around the objects in them: what readers find, put into arrays of one shape."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from tl_jax.data.decoding import decode_into, measure_each
from tl_jax.data.pictures import SPLIT_SEED, Source, Split, as_names, between
from tl_jax.errors import UserError, nearest

COLUMNS = 6  # of a label: x0, y0, x1, y1, class, crowd
CLASS, CROWD = 4, 5
NONE = -1.0  # class of a row that pads
MULTIPLE = 32  # of which the sides of stored pictures are: five halvings
GREY = 127  # beside a picture that does not fill the stored one
TOLERANCE = 1.0  # pixels that a box may reach over the edge: some count from 1, some round


class Object(NamedTuple):
    """One object of a picture.

    Attributes:
        name: of its class.
        box: x0, y0, x1, y1 in pixels of the file, edges rather than centres of pixels.
        crowd: neither to be learned nor to be found: a crowd of COCO, what is difficult in VOC.
    """

    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False


class Annotated(NamedTuple):
    """A picture file, its objects, where these are written, and (height, width) as written there, or None."""

    picture: Path
    objects: list[Object]
    where: Path
    size: tuple[float, float] | None = None


def assemble(
    name: str,
    parts: Mapping[str, list[Annotated]],
    classes: Sequence[str],
    size: int,
    most_bytes: float,
) -> Source:
    """Return the set, its pictures shrunk or enlarged so that the longest side is ``size``.

    All are stored in one shape, the smallest with sides that are multiples of 32 which holds each of them at its top
    left; the rest is grey. Labels are float32 (N, M, 6), rows (x0, y0, x1, y1, class, crowd) with boxes in pixels of
    the stored picture; M is the largest number of objects, and rows that pad have the class -1. Boxes without area are
    left out, and one line on stderr says so.

    Args:
        name: of the set.
        parts: "train" and, as far as there are such, "test" and "validation". Without a test part a fifth of the
            pictures is held out, the same at every call.
        classes: K names; empty takes those of "train", in the order of their letters.
        size: in pixels.
        most_bytes: of decoded pictures that may be kept on disk.

    Raises:
        UserError: a class that is none of ``classes``, a box outside its picture, a size that is not the picture's, a
            part without pictures, a training part without objects.
    """
    tested = "test" if "test" in parts else "a fifth held out"
    parts = parts if "test" in parts else _hold_out(name, parts)
    for part, rows in parts.items():
        if not rows:
            raise UserError(f"the {part} part of {name} has no pictures; check --config.data.dir")
    found = sorted({each.name for row in parts["train"] for each in row.objects})
    if not found:
        raise UserError(f"no picture of the train part of {name} has an object; check its annotations")
    classes = tuple(classes) or tuple(found)
    everything = [row for rows in parts.values() for row in rows]
    files = [row.picture for row in everything]
    sizes = list(measure_each(files))
    boxes = _checked(name, everything, sizes, classes)
    shape = canvas(sizes, size)
    images = decode_into(name, files, shape, lambda image: letterbox(image, shape)[0], most_bytes, ("letterbox",))
    labels = np.zeros((len(boxes), max(map(len, boxes)), COLUMNS), np.float32)
    labels[..., CLASS] = NONE
    for row, (own, measured) in enumerate(zip(boxes, sizes, strict=True)):
        labels[row, : len(own)] = own
        labels[row, : len(own), :4] *= scale_into(measured, shape)
    ends = np.cumsum([len(rows) for rows in parts.values()])
    each = {}
    for (part, rows), end in zip(parts.items(), ends, strict=True):
        first = end - len(rows)
        names = as_names([row.picture for row in rows])
        each[part] = Split(between(images, first, end), labels[first:end], files=names)
    return Source(name, each["train"], each["test"], classes, tested, each.get("validation"))


def canvas(sizes: Sequence[tuple[int, int]], longest: int) -> tuple[int, int]:
    """Return the smallest (H, W) of multiples of 32 that holds pictures (h, w) whose longest side is ``longest``."""
    scaled = [[max(1, round(side * longest / max(size))) for side in size] for size in sizes]
    high, wide = (-(-max(sides) // MULTIPLE) * MULTIPLE for sides in zip(*scaled, strict=True))
    return high, wide


def scale_into(size: tuple[int, int], shape: tuple[int, int]) -> float:
    """Return the factor by which a picture (h, w) fills (H, W) as far as its sides allow."""
    return min(side / own for side, own in zip(shape, size, strict=True))


def letterbox(image: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return a picture (h, w, 3) at the top left of a grey one (H, W, 3), and the factor on its sides."""
    scale = scale_into(image.shape[:2], shape)
    high, wide = (max(1, round(side * scale)) for side in image.shape[:2])
    out = np.full((*shape, 3), GREY, np.uint8)
    # Boxes move by the exact factor: what is rounded here is less than half a pixel at the far end.
    out[:high, :wide] = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    return out, scale


def _hold_out(name: str, parts: Mapping[str, list[Annotated]]) -> dict[str, list[Annotated]]:
    rows = parts["train"]
    if len(rows) < 5:
        raise UserError(f"{name} has no test part, and {len(rows)} pictures are too few to hold out a fifth; add some")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    test = set(order[: len(rows) // 5].tolist())
    cut = {
        "train": [r for i, r in enumerate(rows) if i not in test],
        "test": [r for i, r in enumerate(rows) if i in test],
    }
    return {**parts, **cut}


def _checked(
    name: str, rows: Sequence[Annotated], sizes: Sequence[tuple[int, int]], classes: tuple[str, ...]
) -> list[np.ndarray]:
    """Return the labels float32 (M, 6) of each picture in pixels of its file, those without area left out."""
    index = {known: k for k, known in enumerate(classes)}
    flat: dict[Path, int] = {}
    out = []
    for row, (height, width) in zip(rows, sizes, strict=True):
        if row.size not in (None, (height, width)):
            written = f"{row.size[1]:g}x{row.size[0]:g}" if row.size else ""
            raise UserError(
                f"{row.where} says that {row.picture.name} has {written} pixels, but it has {width}x{height}; "
                "its boxes would not fit, bring the picture that was annotated"
            )
        own = []
        for each in row.objects:
            if each.name not in index:
                advice = nearest(each.name, classes)
                raise UserError(f"{row.where}: {each.name!r} is none of the classes; {advice}")
            x0, y0, x1, y1 = box = np.asarray(each.box, np.float64)
            low, high = -TOLERANCE, np.array([width, height, width, height]) + TOLERANCE
            if not np.isfinite(box).all() or (box < low).any() or (box > high).any() or x1 < x0 or y1 < y0:
                raise UserError(
                    f"{row.where}: the box {_shown(box)} of {each.name!r} (left, top, right, bottom) is not within "
                    f"{row.picture.name}, which has {width}x{height} pixels; mend or remove it"
                )
            box = np.clip(box, 0.0, high - TOLERANCE)
            if box[2] > box[0] and box[3] > box[1]:
                own.append([*box, index[each.name], each.crowd])
            else:
                flat[row.where] = flat.get(row.where, 0) + 1
        out.append(np.asarray(own, np.float32).reshape(-1, COLUMNS))
    if flat:
        _say(name, flat)
    return out


def _shown(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def _say(name: str, flat: Mapping[Path, int]) -> None:
    """Say in one line which boxes are left out."""
    count, files = sum(flat.values()), sorted(path.name for path in flat)
    names = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
    what = "1 box" if count == 1 else f"{count} boxes"
    tqdm.write(f"{name}: {what} without area left out, in {names}", file=sys.stderr)
