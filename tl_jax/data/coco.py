"""Pictures with boxes in the layout of COCO (Lin et al. 2014, arXiv:1405.0312): a JSON file for each part."""

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

ROBOFLOW_NAME = "_annotations.coco.json"  # with the pictures of a part, as Roboflow exports them
LAYOUT = (
    "FOLDER/annotations/instances_PART.json with pictures in FOLDER/PART, FOLDER/images/PART or FOLDER/images, or "
    "FOLDER/PART/_annotations.coco.json with pictures beside it; PART is train, val or test, a year may follow"
)

# Spellings of iscrowd, which some tools leave out.
CROWDS = {"none": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def read_coco(
    folder: Path,
    size: int,
    max_bytes: float = DECODED_BYTES,
    classes: Sequence[str] = (),
    decoding: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a folder of COCO; see ``detection.build_dataset`` for what comes out and for the arguments.

    Parts have one of the names of ``SPLIT_NAMES``. Without a test part, or if it comes without annotations as COCO's
    own does, the validation part is tested; without that too, a fifth of train is held out.

    Raises:
        UserError: files that are missing, damaged, or say something that cannot be.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check config.data.dir")
    files = _find_annotation_files(folder)
    if "train" not in files:
        raise UserError(f"{folder} has no annotations of a train part; the layout is {LAYOUT}")
    guard = PathGuard(folder, decoding.outside)
    splits = {split: _read_split(guard, path) for split, path in files.items()}
    if "test" in splits and splits["test"] and not any(row.objects for row in splits["test"]):
        warn(f"{files['test']} has no annotations, so that nothing could be tested on it")
        del splits["test"]
    splits = with_test_split(splits)
    _check_disjoint(splits)
    return build_dataset(folder.resolve().name, splits, classes, size, max_bytes, decoding)


@register_dataset("coco", inputs="boxes", fields=(*IMAGE_FILES, "outside"), layout=LAYOUT)
def load_coco(options: DatasetOptions) -> Dataset:
    """Images with boxes in COCO's layout: a JSON file for each split."""
    return read_coco(Path(options.folder), options.size, options.max_bytes, options.classes, options.decoding)


def _check_disjoint(splits: Mapping[str, Sequence[AnnotatedImage]]) -> None:
    """Refuse a picture file that is listed twice, in two parts or in one."""
    owner: dict[str, Path] = {}
    for row in itertools.chain(*splits.values()):
        if other := owner.get(file := os.path.normpath(row.image)):
            message = f"{row.where} names {row.image}, which {other} has already"
            raise UserError(f"{message}; a picture is in one part, once")
        owner[file] = row.where


def _find_annotation_files(folder: Path) -> dict[str, Path]:
    """Return the annotation file of each split: from the first place that has one, the one with the plainest name.

    Raises:
        UserError: two files are for one split, and neither has the plainer name.
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
                    f"{folder}: both {first_path} and {second_path} name the {split} split; remove or merge one of them"
                )
            by_split[split] = first[1]
    return by_split


def _parse_split_name(name: str) -> tuple[str, int]:
    """Return the split that a name stands for, "" for none, and what follows: 0 nothing, 1 a number, 2 anything."""
    for rank, text in enumerate((name, name.rstrip("-_.0123456789"), re.split("[^a-zA-Z]", name)[0])):
        if split := parse_split(text):
            return split, rank
    return "", 2


def _read_split(guard: PathGuard, path: Path) -> list[AnnotatedImage]:
    """Return the pictures of an annotation file, in its order."""
    content = read_json(path, "bring it anew")
    images, annotations, categories = (
        _list_field(content, path, name) for name in ("images", "annotations", "categories")
    )
    names = _category_names(categories, path)
    images_by_id: dict[Any, AnnotatedImage] = {}
    errors: list[UserError] = []
    for row in images:
        number, file = (_field(row, name, path, "images") for name in ("id", "file_name"))
        if number in images_by_id:
            raise UserError(f"{path} has two images with the id {number!r}; mend it")
        height, width = (_image_side(row, name, path) for name in ("height", "width"))
        try:
            image_file = _find_image(guard, path, str(file))
        except UserError as error:
            errors.append(error)
            image_file = path  # never read: the errors are raised below
        images_by_id[number] = AnnotatedImage(image_file, [], path, (height, width) if height and width else None)
    if errors:
        raise combine_errors(path, errors, f"{len(errors)} of {len(images)} pictures cannot be used")
    for row in annotations:
        number, category, box = (_field(row, name, path, "annotations") for name in ("image_id", "category_id", "bbox"))
        where = f"{path}: the annotation {row.get('id', '')}"
        if number not in images_by_id:
            raise UserError(f"{where} is of the image {number!r}, which is not among the images; mend it")
        if category not in names:
            raise UserError(f"{where} has the category {category!r}, which is not among the categories; mend it")
        if len(box) != 4 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in box):
            raise UserError(f"{where} has the bbox {box!r} instead of four numbers (x, y, width, height); mend it")
        try:
            x, y, width, height = map(float, box)
        except OverflowError:
            raise UserError(f"{where} has a number beyond all pictures in its bbox; mend it") from None
        crowd = CROWDS.get(str(row.get("iscrowd")).lower())
        if crowd is None:
            raise UserError(f"{where} has {row['iscrowd']!r} for iscrowd, which is neither 0 nor 1; mend it")
        images_by_id[number].objects.append(Object(names[category], (x, y, x + width, y + height), crowd))
    return list(images_by_id.values())


def _category_names(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, str]:
    """Return the names of the categories by their ids."""
    names: dict[Any, str] = {}
    for row in rows:
        number, name = (_field(row, field, path, "categories") for field in ("id", "name"))
        name = normalize_unicode(str(name))
        if names.setdefault(number, name) != name:
            raise UserError(f"{path} has two categories with the id {number!r}: {names[number]}, {name}; mend it")
    return names


def _image_side(row: Mapping[str, Any], name: str, path: Path) -> float:
    """Return a picture's height or width, a number or the text of one; 0 where it is not known."""
    value = row.get(name)
    if value in (None, ""):
        return 0.0
    try:
        side = float(value)
    except (TypeError, ValueError, OverflowError):
        side = -1.0
    if not 0 <= side < float("inf"):
        raise UserError(f"{path}: {name!r} of the image {row.get('id')!r} is {str(value)[:40]!r}, no size; mend it")
    return side


def _list_field(content: Mapping[str, Any], path: Path, name: str) -> list[Mapping[str, Any]]:
    """Return one of the lists of a file."""
    rows = content.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no list {name!r} of objects, so it is not in COCO's format; bring another")
    return rows


def _field(row: Mapping[str, Any], name: str, path: Path, table: str) -> Any:
    value = row.get(name)
    if isinstance(value, list if name == "bbox" else int | str) and not isinstance(value, bool):
        return value
    raise UserError(f"{path}: {name!r} of an entry of {table} is missing or wrong: {json.dumps(row)[:80]}; mend it")


def _find_image(guard: PathGuard, path: Path, name: str) -> Path:
    """Return the file of a picture, beside its annotations or where ``LAYOUT`` says."""
    split, folder = path.stem.removeprefix("instances_"), guard.top
    folders = [path.parent, folder / split, folder / "images" / split, folder / "images", folder]
    for candidate in folders:
        if file := find_file(candidate, name) or find_file(candidate, name.replace("\\", "/")):
            return guard.check(file, path, candidate)
    where = ", ".join(str(candidate) for candidate in folders[1:4])
    raise UserError(f"{path} names the picture {name}, which is in none of {where}; add it, or mend the file")
