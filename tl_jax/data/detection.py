"""Pictures with boxes around the objects in them: what readers find, put into arrays of one shape."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tl_jax.data import duplicates
from tl_jax.data.dataset import CLASS, SPLIT_SEED, Dataset, Split, path_array, slice_images
from tl_jax.data.decode import DEFAULT_DECODING, Decoding, Headers, decode_into, read_headers, with_value_range
from tl_jax.data.labels import check_class_names
from tl_jax.data.walker import normalize_unicode
from tl_jax.utils.errors import UserError, combine_errors, nearest
from tl_jax.utils.log import warn

COLUMNS = 6  # of a label: x0, y0, x1, y1, class, crowd
CROWD = 5
NO_CLASS = -1.0  # class of a row that pads
SIDE_MULTIPLE = 32  # of which the sides of stored pictures are: five halvings
GREY = 127  # beside a picture that does not fill the stored one
TOLERANCE = 1.0  # pixels that a box may reach over the edge without a word: some count from 1, some round
# Pixels, or share of the side, that a box may reach over the edge to be clipped; more is an error.
MAX_OVERHANG = 3.0, 0.05


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


class AnnotatedImage(NamedTuple):
    """A picture file, its objects, where these are written, and (height, width) as written there, or None.

    Boxes and size are those of the file's pixels as stored, or of the picture turned as its EXIF orientation says; the
    size shows which, see ``_find_frame``.
    """

    image: Path
    objects: list[Object]
    where: Path
    size: tuple[float, float] | None = None


def build_dataset(
    name: str,
    splits: Mapping[str, list[AnnotatedImage]],
    classes: Sequence[str],
    size: int,
    max_bytes: float,
    decoding: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Return the set, its pictures shrunk or enlarged so that the longest side is ``size``.

    All are stored in one shape, the smallest with sides that are multiples of 32 which holds each of them at its top
    left; the rest is grey. Labels are float32 (N, M, 6), rows (x0, y0, x1, y1, class, crowd) with boxes in pixels of
    the stored picture; M is the largest number of objects, and rows that pad have the class -1. Boxes that reach a
    little over the edge (``MAX_OVERHANG``) are clipped, boxes without area are left out, and a line on stderr says how
    many. Pictures are turned as their EXIF orientation says, and the boxes with them.
    A line says if two parts share a picture, byte for byte.

    Args:
        name: of the set.
        splits: "train" and, as far as there are such, "test" and "validation". Without a test part a fifth of the
            pictures is held out, the same at every call, such that each class stays in "train".
        classes: K names; empty takes those of "train", in the order of their letters.
        size: in pixels.
        max_bytes: of decoded pictures that may be kept on disk.
        decoding: how files become pixels.

    Raises:
        UserError: a class that is none of ``classes``, a box outside its picture, a size that is not the picture's, a
            part without pictures, a training part without objects other than crowds.
    """
    test_origin = "test" if "test" in splits else "a fifth held out"
    splits = splits if "test" in splits else _hold_out(name, splits)
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"the {split} part of {name} has no pictures; check config.data.dir")
    check_objects(name, "train", [obj.crowd for row in splits["train"] for obj in row.objects])
    present = sorted({obj.name for row in splits["train"] for obj in row.objects})
    check_class_names(present, name)
    classes = tuple(map(normalize_unicode, classes)) or tuple(present)
    duplicates.report_duplicate_files(name, {split: [row.image for row in rows] for split, rows in splits.items()}, {})
    all_rows = [row for rows in splits.values() for row in rows]
    files = [row.image for row in all_rows]
    headers = read_headers(name, files, decoding)
    sizes = [(int(height), int(width)) for height, width in headers.sizes]
    boxes = _box_labels(name, all_rows, headers, classes)
    shape = canvas_shape(sizes, size)
    decoding = with_value_range(name, files, decoding)
    fit = lambda image: letterbox(image, shape)[0]  # noqa: E731
    images = decode_into(name, files, shape, fit, max_bytes, ("letterbox",), decoding)
    labels = np.zeros((len(boxes), max(map(len, boxes)), COLUMNS), np.float32)
    labels[..., CLASS] = NO_CLASS
    for row, (own_boxes, image_size) in enumerate(zip(boxes, sizes, strict=True)):
        labels[row, : len(own_boxes)] = own_boxes
        labels[row, : len(own_boxes), :4] *= fit_scale(image_size, shape)
    ends = np.cumsum([len(rows) for rows in splits.values()])
    data: dict[str, Split] = {}
    for (split, rows), end in zip(splits.items(), ends, strict=True):
        first = end - len(rows)
        names = path_array([row.image for row in rows])
        data[split] = Split(slice_images(images, first, end), labels[first:end], files=names)
    return Dataset(
        name, data["train"], data["test"], classes, test_origin, data.get("validation"), decoding.value_range
    )


def check_objects(name: str, split: str, crowds: Sequence[bool] | np.ndarray) -> None:
    """Refuse a part in which nothing could be learned or measured; ``crowds`` says of its objects which are crowds."""
    if not len(crowds):
        raise UserError(f"no picture of the {split} part of {name} has an object; check its annotations")
    if all(crowds):
        raise UserError(
            f"all {len(crowds):,} objects of the {split} part of {name} are crowds (iscrowd=1 of COCO, difficult=1 of "
            "VOC), which are neither learned nor counted; set that to 0 for objects that stand alone"
        )


def canvas_shape(sizes: Sequence[tuple[int, int]], longest: int) -> tuple[int, int]:
    """Return the smallest (H, W) of multiples of 32 that holds pictures (h, w) whose longest side is ``longest``."""
    scaled = [[max(1, round(side * longest / max(size))) for side in size] for size in sizes]
    high, wide = (-(-max(sides) // SIDE_MULTIPLE) * SIDE_MULTIPLE for sides in zip(*scaled, strict=True))
    return high, wide


def fit_scale(size: tuple[int, int], shape: tuple[int, int]) -> float:
    """Return the factor by which a picture (h, w) fills (H, W) as far as its sides allow."""
    return min(side / original for side, original in zip(shape, size, strict=True))


def letterbox(image: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return a picture (h, w, 3) at the top left of a grey one (H, W, 3), and the factor on its sides."""
    scale = fit_scale(image.shape[:2], shape)
    high, wide = (max(1, round(side * scale)) for side in image.shape[:2])
    out = np.full((*shape, 3), GREY, np.uint8)
    # Boxes move by the exact factor: what is rounded here is less than half a pixel at the far end.
    out[:high, :wide] = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    return out, scale


def _hold_out(name: str, splits: Mapping[str, list[AnnotatedImage]]) -> dict[str, list[AnnotatedImage]]:
    """Hold out a fifth of "train", the same at every call; a picture without which a class would be lost stays."""
    rows = splits["train"]
    if len(rows) < 5:
        raise UserError(f"{name} has no test part, and {len(rows)} pictures are too few to hold out a fifth; add some")
    image_classes = [{obj.name for obj in row.objects} for row in rows]
    # Images in train that show each class.
    remaining = Counter(class_name for classes in image_classes for class_name in classes)
    test: set[int] = set()
    for i in np.random.default_rng(SPLIT_SEED).permutation(len(rows)).tolist():
        if len(test) < len(rows) // 5 and all(remaining[class_name] > 1 for class_name in image_classes[i]):
            test.add(i)
            remaining.subtract(image_classes[i])
    if not test:
        raise UserError(
            f"{name} has no test part, and each picture has a class that no other has, so none can be held out; "
            "add pictures"
        )
    new_splits = {
        "train": [r for i, r in enumerate(rows) if i not in test],
        "test": [r for i, r in enumerate(rows) if i in test],
    }
    return {**splits, **new_splits}


def _box_labels(
    name: str, rows: Sequence[AnnotatedImage], headers: Headers, classes: tuple[str, ...]
) -> list[np.ndarray]:
    """Return the labels float32 (M, 6) of each picture in pixels of its upright file, those without area left out.

    Raises:
        UserError: what is wrong, of all pictures together.
    """
    index = {class_name: k for k, class_name in enumerate(classes)}
    empty, clipped, ambiguous = Counter(), Counter(), Counter()
    labels, errors = [], []
    for row, size, orientation in zip(rows, headers.sizes.tolist(), headers.orientations.tolist(), strict=True):
        try:
            frame = _find_frame(row, (size[0], size[1]), orientation, ambiguous)
            own_boxes = []
            for obj in row.objects:
                box = _clip_box(obj, row, frame, clipped)
                if obj.name not in index:
                    raise UserError(f"{row.where}: {obj.name!r} is none of the classes; {_advice(obj.name, classes)}")
                if box[2] > box[0] and box[3] > box[1]:
                    own_boxes.append([*_upright_box(box, frame), index[obj.name], obj.crowd])
                else:
                    empty[row.where] += 1
            labels.append(np.asarray(own_boxes, np.float32).reshape(-1, COLUMNS))
        except UserError as error:
            errors.append(error)
    if errors:
        raise combine_errors(name, errors, f"the annotations of {len(errors)} of {len(rows)} pictures cannot be used")
    _print_counts(name, "boxes without area left out", empty)
    _print_counts(name, "boxes clipped that reached over the edge of their picture", clipped)
    _print_counts(
        name, "pictures with an EXIF orientation whose annotations do not show whether they mean the stored pixels or "
        "the turned picture; the stored pixels are taken", ambiguous
    )  # fmt: skip
    return labels


class _Frame(NamedTuple):
    """Height and width of the frame of a picture's boxes, and the orientation that is still to be applied to them."""

    height: int
    width: int
    orientation: int


def _find_frame(row: AnnotatedImage, upright: tuple[int, int], orientation: int, ambiguous: Counter[Path]) -> _Frame:
    """Return the frame of a picture's boxes.

    It is the one whose size the annotations state. If that fits both the stored and the turned picture, or is not
    stated, it is the stored one, as tools have it that leave EXIF alone, and counted in ``ambiguous``.
    """
    height, width = upright
    stored = (width, height) if orientation >= 5 else upright
    if row.size not in (None, stored, upright):
        raise UserError(
            f"{row.where} says that {row.image.name} has {row.size[1]:g}x{row.size[0]:g} pixels, but it has "
            f"{width}x{height}; its boxes would not fit, bring the picture that was annotated"
        )
    if row.size == upright and stored != upright:
        return _Frame(*upright, 1)
    if orientation > 1 and row.objects and (row.size is None or stored == upright):
        ambiguous[row.where if row.where.suffix == ".xml" else row.image] += 1
    return _Frame(*stored, orientation)


def _clip_box(obj: Object, row: AnnotatedImage, frame: _Frame, clipped: Counter[Path]) -> np.ndarray:
    """Return a box that ends at the edges of its frame; one that reaches too far over them is refused."""
    x0, y0, x1, y1 = box = np.asarray(obj.box, np.float64)
    ends = np.array([frame.width, frame.height] * 2)
    overhang = np.maximum(np.maximum(-box, box - ends), 0.0)
    pixels, share = MAX_OVERHANG
    if not np.isfinite(box).all() or (overhang > np.maximum(pixels, share * ends)).any() or x1 < x0 or y1 < y0:
        raise UserError(
            f"{row.where}: the box {_format_box(box)} of {obj.name!r} (left, top, right, bottom) is not within "
            f"{row.image.name}, which has {frame.width}x{frame.height} pixels; mend or remove it"
        )
    clipped[row.where if row.where.suffix == ".xml" else row.image] += int((overhang > TOLERANCE).any())
    return np.clip(box, 0.0, ends)


def _upright_box(box: np.ndarray, frame: _Frame) -> list[float]:
    """Return a box of the stored picture as it lies in the picture turned by its EXIF orientation."""
    x0, y0, x1, y1 = box.tolist()
    orientation = frame.orientation
    if orientation in (2, 3, 7, 8):  # what is on the right comes to the left, or for 7 and 8 to the top or bottom
        x0, x1 = frame.width - x1, frame.width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = frame.height - y1, frame.height - y0
    return [y0, x0, y1, x1] if orientation >= 5 else [x0, y0, x1, y1]


def _advice(name: str, classes: tuple[str, ...]) -> str:
    return f"{nearest(name, classes)}; or add pictures of it to train, or name it in config.detect.classes"


def _format_box(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def _print_counts(name: str, message: str, counts: Counter[Path]) -> None:
    """Say in one line how often something was met, and in which files; nothing where it was not."""
    files, count = sorted(path.name for path, number in counts.items() if number), counts.total()
    if count:
        names = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        message = re.sub(r"^(box|picture)(es|s)\b", r"\1", message) if count == 1 else message
        warn(f"{name}: {count} {message}, in {names}")
