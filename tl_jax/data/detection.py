"""Build data sets of images with boxes from the annotations of readers, as arrays of one shape."""

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
NO_CLASS = -1.0  # class of a padding row
SIDE_MULTIPLE = 32  # the sides of stored images are multiples of it, for five halvings
GREY = 127  # padding of stored images
TOLERANCE = 1.0  # pixels that a box may exceed the edge silently: some tools count from 1, some round
# Pixels, or share of the side, by which a box may exceed the edge and be clipped; more is an error.
MAX_OVERHANG = 3.0, 0.05


class Object(NamedTuple):
    """One object of an image.

    Attributes:
        name: name of its class.
        box: x0, y0, x1, y1 in pixels of the file, edges rather than centres of pixels.
        crowd: whether training and evaluation ignore it: a crowd of COCO, a difficult object of VOC.
    """

    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False


class AnnotatedImage(NamedTuple):
    """An image file, its objects, the annotation file, and (height, width) as annotated, or None.

    Boxes and size refer to the stored pixels, or to the image rotated by its EXIF orientation. The size tells which,
    see ``_find_frame``.
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
    """Return the data set, its images resized to a longest side of ``size``.

    All images are stored in one shape, the smallest with sides divisible by 32 that fits each of them at its top left;
    the padding is grey. Labels are float32 (N, M, 6), rows (x0, y0, x1, y1, class, crowd) with boxes in pixels of the
    stored image; M is the largest number of objects, and padding rows have the class -1. Boxes that exceed the edge a
    little (``MAX_OVERHANG``) are clipped, and boxes without area dropped; a warning gives their numbers. Images
    and boxes are rotated by the EXIF orientation. A log line reports an identical image file in two splits.

    Args:
        name: name of the data set.
        splits: "train" and optionally "test" and "validation". Without a test split, a fixed fifth of the images is
            held out, such that each class stays in "train".
        classes: K class names; empty uses those of "train", sorted.
        size: longest side in pixels.
        max_bytes: size limit of decoded images on disk.
        decoding: options of decoding.

    Raises:
        UserError: an unknown class, a box outside its image, a size that differs from the image, a split without
            images, or a training split without objects other than crowds.
    """
    test_origin = "test" if "test" in splits else "a fifth held out"
    splits = splits if "test" in splits else _hold_out(name, splits)
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"{name}: the {split} split has no images; check config.data.dir")
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
    """Refuse a split without objects to train or evaluate on; ``crowds`` tells which objects are crowds."""
    if not len(crowds):
        raise UserError(f"{name}: no image of the {split} split has an object; check its annotations")
    if all(crowds):
        raise UserError(
            f"{name}: all {len(crowds):,} objects of the {split} split are crowds (iscrowd=1 of COCO, difficult=1 of "
            "VOC), which are ignored; set that to 0 for single objects"
        )


def canvas_shape(sizes: Sequence[tuple[int, int]], longest: int) -> tuple[int, int]:
    """Return the smallest (H, W) of multiples of 32 for images (h, w) resized to the longest side ``longest``."""
    scaled = [[max(1, round(side * longest / max(size))) for side in size] for size in sizes]
    high, wide = (-(-max(sides) // SIDE_MULTIPLE) * SIDE_MULTIPLE for sides in zip(*scaled, strict=True))
    return high, wide


def fit_scale(size: tuple[int, int], shape: tuple[int, int]) -> float:
    """Return the largest factor by which an image (h, w) can be resized within (H, W)."""
    return min(side / original for side, original in zip(shape, size, strict=True))


def letterbox(image: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return an image (h, w, 3) resized into the top left of a grey one (H, W, 3), and the resize factor."""
    scale = fit_scale(image.shape[:2], shape)
    high, wide = (max(1, round(side * scale)) for side in image.shape[:2])
    out = np.full((*shape, 3), GREY, np.uint8)
    # Boxes are scaled by the exact factor; rounding moves the far edge by less than half a pixel.
    out[:high, :wide] = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    return out, scale


def _hold_out(name: str, splits: Mapping[str, list[AnnotatedImage]]) -> dict[str, list[AnnotatedImage]]:
    """Hold out a fixed fifth of "train"; images that a class needs stay."""
    rows = splits["train"]
    if len(rows) < 5:
        raise UserError(f"{name}: no test split, and {len(rows)} images are too few to hold out a fifth; add some")
    image_classes = [{obj.name for obj in row.objects} for row in rows]
    # Number of images in train per class.
    remaining = Counter(class_name for classes in image_classes for class_name in classes)
    test: set[int] = set()
    for i in np.random.default_rng(SPLIT_SEED).permutation(len(rows)).tolist():
        if len(test) < len(rows) // 5 and all(remaining[class_name] > 1 for class_name in image_classes[i]):
            test.add(i)
            remaining.subtract(image_classes[i])
    if not test:
        raise UserError(
            f"{name}: no test split, and none can be held out, since each image has a class of its own; add images"
        )
    new_splits = {
        "train": [r for i, r in enumerate(rows) if i not in test],
        "test": [r for i, r in enumerate(rows) if i in test],
    }
    return {**splits, **new_splits}


def _box_labels(
    name: str, rows: Sequence[AnnotatedImage], headers: Headers, classes: tuple[str, ...]
) -> list[np.ndarray]:
    """Return the labels float32 (M, 6) of each image in pixels of its upright file, without empty boxes.

    Raises:
        UserError: the errors of all images.
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
                    raise UserError(f"{row.where}: {obj.name!r} is an unknown class; {_advice(obj.name, classes)}")
                if box[2] > box[0] and box[3] > box[1]:
                    own_boxes.append([*_upright_box(box, frame), index[obj.name], obj.crowd])
                else:
                    empty[row.where] += 1
            labels.append(np.asarray(own_boxes, np.float32).reshape(-1, COLUMNS))
        except UserError as error:
            errors.append(error)
    if errors:
        raise combine_errors(name, errors, f"the annotations of {len(errors)} of {len(rows)} images cannot be used")
    _print_counts(name, "boxes without area dropped", empty)
    _print_counts(name, "boxes clipped at the edge of their image", clipped)
    _print_counts(
        name, "images with an EXIF orientation whose annotations do not show whether they are for the stored or "
        "the rotated pixels; the stored pixels are assumed", ambiguous
    )  # fmt: skip
    return labels


class _Frame(NamedTuple):
    """Height and width of the frame of an image's boxes, and the orientation to apply to them."""

    height: int
    width: int
    orientation: int


def _find_frame(row: AnnotatedImage, upright: tuple[int, int], orientation: int, ambiguous: Counter[Path]) -> _Frame:
    """Return the frame of an image's boxes.

    It is the one whose size the annotations state. If the size fits both the stored and the rotated image, or is
    missing, the stored one is assumed, as written by tools that ignore EXIF, and counted in ``ambiguous``.
    """
    height, width = upright
    stored = (width, height) if orientation >= 5 else upright
    if row.size not in (None, stored, upright):
        raise UserError(
            f"{row.where}: {row.image.name} has {width}x{height} pixels, not {row.size[1]:g}x{row.size[0]:g} as "
            "annotated, so its boxes would not fit; use the annotated image"
        )
    if row.size == upright and stored != upright:
        return _Frame(*upright, 1)
    if orientation > 1 and row.objects and (row.size is None or stored == upright):
        ambiguous[row.where if row.where.suffix == ".xml" else row.image] += 1
    return _Frame(*stored, orientation)


def _clip_box(obj: Object, row: AnnotatedImage, frame: _Frame, clipped: Counter[Path]) -> np.ndarray:
    """Clip a box to its frame; refuse one that exceeds it too far."""
    x0, y0, x1, y1 = box = np.asarray(obj.box, np.float64)
    ends = np.array([frame.width, frame.height] * 2)
    overhang = np.maximum(np.maximum(-box, box - ends), 0.0)
    pixels, share = MAX_OVERHANG
    if not np.isfinite(box).all() or (overhang > np.maximum(pixels, share * ends)).any() or x1 < x0 or y1 < y0:
        raise UserError(
            f"{row.where}: the box {_format_box(box)} of {obj.name!r} (left, top, right, bottom) is not within "
            f"{row.image.name} of {frame.width}x{frame.height} pixels; correct or remove it"
        )
    clipped[row.where if row.where.suffix == ".xml" else row.image] += int((overhang > TOLERANCE).any())
    return np.clip(box, 0.0, ends)


def _upright_box(box: np.ndarray, frame: _Frame) -> list[float]:
    """Return a box of the stored image after rotation by its EXIF orientation."""
    x0, y0, x1, y1 = box.tolist()
    orientation = frame.orientation
    if orientation in (2, 3, 7, 8):  # right to left, or for 7 and 8 to the top or bottom
        x0, x1 = frame.width - x1, frame.width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = frame.height - y1, frame.height - y0
    return [y0, x0, y1, x1] if orientation >= 5 else [x0, y0, x1, y1]


def _advice(name: str, classes: tuple[str, ...]) -> str:
    return f"{nearest(name, classes)}; add images of it to train, or add it to config.detect.classes"


def _format_box(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def _print_counts(name: str, message: str, counts: Counter[Path]) -> None:
    """Warn about the number of affected objects and their files, if there are any."""
    files, count = sorted(path.name for path, number in counts.items() if number), counts.total()
    if count:
        names = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        message = re.sub(r"^(box|image)(es|s)\b", r"\1", message) if count == 1 else message
        warn(f"{name}: {count} {message}, in {names}")
