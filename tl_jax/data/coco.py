"""Images with boxes in COCO's layout (Lin et al. 2014, arXiv:1405.0312): one JSON file per split."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax.data.dataset import DECODED_BYTES, Dataset, parse_split, with_test_split
from tl_jax.data.decode import DEFAULT_DECODING, Decoding
from tl_jax.data.detection import AnnotatedImage, Object, build_dataset
from tl_jax.data.registry import IMAGE_FILES, DatasetOptions, register_dataset
from tl_jax.data.walker import PathGuard, find_file, has_ignored_part, normalize_unicode
from tl_jax.utils.errors import UserError, combine_errors
from tl_jax.utils.json_files import read_json
from tl_jax.utils.log import warn

ROBOFLOW_NAME = "_annotations.coco.json"  # next to the images of a split, as Roboflow exports them
LAYOUT = (
    "FOLDER/annotations/instances_SPLIT.json with images in FOLDER/SPLIT, FOLDER/images/SPLIT or FOLDER/images, or "
    "FOLDER/SPLIT/_annotations.coco.json next to the images; SPLIT is train, val or test, optionally with a year"
)

# Spellings of iscrowd; some tools omit it.
CROWDS = {"none": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def read_coco(
    folder: Path,
    size: int,
    max_bytes: float = DECODED_BYTES,
    classes: Sequence[str] = (),
    decoding: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a folder in COCO's layout; see ``detection.build_dataset`` for the result and the arguments.

    Splits have a name in ``SPLIT_NAMES``. If there is no test split, or one without annotations like COCO's own, the
    validation split is tested; if there is none either, a fifth of train is held out.

    Raises:
        UserError: missing, damaged or invalid files.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check config.data.dir")
    files = _find_annotation_files(folder)
    if "train" not in files:
        raise UserError(f"{folder}: no annotations of a train split; arrange the files as {LAYOUT}")
    guard = PathGuard(folder, decoding.outside)
    splits = {split: _read_split(guard, path) for split, path in files.items()}
    if "test" in splits and splits["test"] and not any(row.objects for row in splits["test"]):
        warn(f"{files['test']}: no annotations, so this split is not tested")
        del splits["test"]
    splits = with_test_split(splits)
    _check_disjoint(splits)
    return build_dataset(folder.resolve().name, splits, classes, size, max_bytes, decoding)


@register_dataset("coco", inputs="boxes", fields=(*IMAGE_FILES, "outside"), layout=LAYOUT)
def load_coco(options: DatasetOptions) -> Dataset:
    """Images with boxes in COCO's layout: one JSON file per split."""
    return read_coco(Path(options.folder), options.size, options.max_bytes, options.classes, options.decoding)


def _check_disjoint(splits: Mapping[str, Sequence[AnnotatedImage]]) -> None:
    """Refuse an image file that is listed twice, in two splits or in one."""
    owner: dict[str, Path] = {}
    for row in itertools.chain(*splits.values()):
        if other := owner.get(file := os.path.normpath(row.image)):
            message = f"{row.where}: {row.image} is also listed in {other}"
            raise UserError(f"{message}; list each image once, in one split")
        owner[file] = row.where


def _find_annotation_files(folder: Path) -> dict[str, Path]:
    """Return the annotation file of each split: from the first location with any, the one with the plainest name.

    Raises:
        UserError: two files of one split have equally plain names.
    """
    by_split: dict[str, Path] = {}
    for pattern in ("annotations/instances_*.json", "annotations/*.json", "*.json", f"*/{ROBOFLOW_NAME}"):
        ranked: dict[str, list[tuple[int, Path]]] = {}
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not has_ignored_part(path.relative_to(folder)):
                split, rank = _parse_split_name(
                    path.parent.name if path.name == ROBOFLOW_NAME else path.stem.removeprefix("instances_")
                )
                ranked.setdefault(split, []).append((rank, path))
        for split, files in ranked.items():
            first, *others = sorted(files)
            if not split or split in by_split:
                continue
            if others and others[0][0] == first[0]:
                first_path, second_path = (path.relative_to(folder) for _, path in (first, others[0]))
                raise UserError(
                    f"{folder}: {first_path} and {second_path} are both of the {split} split; remove or merge one"
                )
            by_split[split] = first[1]
    return by_split


def _parse_split_name(name: str) -> tuple[str, int]:
    """Return the split of a name, "" for none, and its suffix: 0 for none, 1 for a number, 2 for other text."""
    for rank, text in enumerate((name, name.rstrip("-_.0123456789"), re.split("[^a-zA-Z]", name)[0])):
        if split := parse_split(text):
            return split, rank
    return "", 2


def _read_split(guard: PathGuard, path: Path) -> list[AnnotatedImage]:
    """Return the images of an annotation file, in order."""
    content = read_json(path, "restore it")
    images, annotations, categories = (
        _list_field(content, path, name) for name in ("images", "annotations", "categories")
    )
    names = _category_names(categories, path)
    images_by_id: dict[Any, AnnotatedImage] = {}
    errors: list[UserError] = []
    for row in images:
        number, file = (_field(row, name, path, "images") for name in ("id", "file_name"))
        if number in images_by_id:
            raise UserError(f"{path}: two images have the id {number!r}; correct it")
        height, width = (_image_side(row, name, path) for name in ("height", "width"))
        try:
            image_file = _find_image(guard, path, str(file))
        except UserError as error:
            errors.append(error)
            image_file = path  # not read, as the errors are raised below
        images_by_id[number] = AnnotatedImage(image_file, [], path, (height, width) if height and width else None)
    if errors:
        raise combine_errors(path, errors, f"{len(errors)} of {len(images)} images cannot be used")
    for row in annotations:
        number, category, box = (_field(row, name, path, "annotations") for name in ("image_id", "category_id", "bbox"))
        where = f"{path}: annotation {row.get('id', '')}"
        if number not in images_by_id:
            raise UserError(f"{where} has the unknown image_id {number!r}; correct it")
        if category not in names:
            raise UserError(f"{where} has the unknown category_id {category!r}; correct it")
        if len(box) != 4 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in box):
            raise UserError(f"{where} has the bbox {box!r}, not four numbers (x, y, width, height); correct it")
        try:
            x, y, width, height = map(float, box)
        except OverflowError:
            raise UserError(f"{where} has a bbox with too large a number; correct it") from None
        crowd = CROWDS.get(str(row.get("iscrowd")).lower())
        if crowd is None:
            raise UserError(f"{where} has iscrowd={row['iscrowd']!r}, not 0 or 1; correct it")
        images_by_id[number].objects.append(Object(names[category], (x, y, x + width, y + height), crowd))
    return list(images_by_id.values())


def _category_names(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, str]:
    """Return id -> name of the categories."""
    names: dict[Any, str] = {}
    for row in rows:
        number, name = (_field(row, field, path, "categories") for field in ("id", "name"))
        name = normalize_unicode(str(name))
        if names.setdefault(number, name) != name:
            raise UserError(f"{path}: two categories have the id {number!r}: {names[number]}, {name}; correct it")
    return names


def _image_side(row: Mapping[str, Any], name: str, path: Path) -> float:
    """Return the height or width of an image, given as a number or text; 0 if unknown."""
    value = row.get(name)
    if value in (None, ""):
        return 0.0
    try:
        side = float(value)
    except (TypeError, ValueError, OverflowError):
        side = -1.0
    if not 0 <= side < float("inf"):
        raise UserError(f"{path}: {name!r} of image {row.get('id')!r} is {str(value)[:40]!r}, not a size; correct it")
    return side


def _list_field(content: Mapping[str, Any], path: Path, name: str) -> list[Mapping[str, Any]]:
    """Return one of the lists in a file."""
    rows = content.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: no list {name!r} of objects, so it is no COCO file; export it as COCO")
    return rows


def _field(row: Mapping[str, Any], name: str, path: Path, table: str) -> Any:
    value = row.get(name)
    if isinstance(value, list if name == "bbox" else int | str) and not isinstance(value, bool):
        return value
    raise UserError(f"{path}: {name!r} of an entry of {table} is missing or wrong: {json.dumps(row)[:80]}; correct it")


def _find_image(guard: PathGuard, path: Path, name: str) -> Path:
    """Return the file of an image, next to its annotations or in a folder of ``LAYOUT``."""
    split, folder = path.stem.removeprefix("instances_"), guard.top
    folders = [path.parent, folder / split, folder / "images" / split, folder / "images", folder]
    for candidate in folders:
        if file := find_file(candidate, name) or find_file(candidate, name.replace("\\", "/")):
            return guard.check(file, path, candidate)
    where = ", ".join(str(candidate) for candidate in folders[1:4])
    raise UserError(f"{path}: the image {name} is in none of {where}; add it, or remove its entry")
