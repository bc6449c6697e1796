"""Pictures with boxes in the layout of COCO (Lin et al. 2014, arXiv:1405.0312): a JSON file for each part."""

import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tl_jax.data.dataset import DECODED_BYTES, Dataset, parse_split, with_test_split
from tl_jax.data.decode import DEFAULT_DECODING, Decoding
from tl_jax.data.detection import Annotated, Object, assemble
from tl_jax.data.walker import PathGuard, find_file, has_ignored_part, normalize_unicode
from tl_jax.utils.errors import UserError, combine
from tl_jax.utils.json_files import read_json

BESIDE = "_annotations.coco.json"  # with the pictures of a part, as Roboflow exports them
LAYOUT = (
    "FOLDER/annotations/instances_PART.json with pictures in FOLDER/PART, FOLDER/images/PART or FOLDER/images, or "
    "FOLDER/PART/_annotations.coco.json with pictures beside it; PART is train, val or test, a year may follow"
)

# Spellings of iscrowd, which some tools leave out.
CROWDS = {"none": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def read(
    folder: Path,
    size: int,
    most_bytes: float = DECODED_BYTES,
    classes: Sequence[str] = (),
    rules: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a folder of COCO; see ``detection.assemble`` for what comes out and for the arguments.

    Parts have one of the names of ``SPLIT_NAMES``. Without a test part, or if it comes without annotations as COCO's
    own does, the validation part is tested; without that too, a fifth of train is held out.

    Raises:
        UserError: files that are missing, damaged, or say something that cannot be.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check --config.data.dir")
    files = _files(folder)
    if "train" not in files:
        raise UserError(f"{folder} has no annotations of a train part; the layout is {LAYOUT}")
    inside = PathGuard(folder, rules.outside)
    parts = {part: _part(inside, path) for part, path in files.items()}
    if "test" in parts and parts["test"] and not any(row.objects for row in parts["test"]):
        tqdm.write(f"{files['test']} has no annotations, so that nothing could be tested on it", file=sys.stderr)
        del parts["test"]
    parts = with_test_split(parts)
    _check_apart(parts)
    return assemble(folder.resolve().name, parts, classes, size, most_bytes, rules)


def _check_apart(parts: Mapping[str, Sequence[Annotated]]) -> None:
    """Refuse a picture file that is listed twice, in two parts or in one."""
    seen: dict[str, Path] = {}
    for row in itertools.chain(*parts.values()):
        if other := seen.get(file := os.path.normpath(row.picture)):
            said = f"{row.where} names {row.picture}, which {other} has already"
            raise UserError(f"{said}; a picture is in one part, once")
        seen[file] = row.where


def _files(folder: Path) -> dict[str, Path]:
    """Return the annotation file of each split: from the first place that has one, the one with the plainest name.

    Raises:
        UserError: two files are for one split, and neither has the plainer name.
    """
    found: dict[str, Path] = {}
    for pattern in ("annotations/instances_*.json", "annotations/*.json", "*.json", f"*/{BESIDE}"):
        ranked: dict[str, list[tuple[int, Path]]] = {}
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not has_ignored_part(path.relative_to(folder)):
                split, rank = _split(path.parent.name if path.name == BESIDE else path.stem.removeprefix("instances_"))
                ranked.setdefault(split, []).append((rank, path))
        for split, files in ranked.items():
            first, *others = sorted(files)
            if not split or split in found:
                continue
            if others and others[0][0] == first[0]:
                one, two = (path.relative_to(folder) for _, path in (first, others[0]))
                raise UserError(f"{folder}: both {one} and {two} name the {split} split; remove or merge one of them")
            found[split] = first[1]
    return found


def _split(name: str) -> tuple[str, int]:
    """Return the split that a name stands for, "" for none, and what follows: 0 nothing, 1 a number, 2 anything."""
    for rank, text in enumerate((name, name.rstrip("-_.0123456789"), re.split("[^a-zA-Z]", name)[0])):
        if split := parse_split(text):
            return split, rank
    return "", 2


def _part(inside: PathGuard, path: Path) -> list[Annotated]:
    """Return the pictures of an annotation file, in its order."""
    content = read_json(path, "bring it anew")
    images, annotations, categories = (_table(content, path, name) for name in ("images", "annotations", "categories"))
    names = _categories(categories, path)
    found: dict[Any, Annotated] = {}
    errors: list[UserError] = []
    for row in images:
        number, file = (_field(row, name, path, "images") for name in ("id", "file_name"))
        if number in found:
            raise UserError(f"{path} has two images with the id {number!r}; mend it")
        height, width = (_side(row, name, path) for name in ("height", "width"))
        try:
            picture = _picture(inside, path, str(file))
        except UserError as error:
            errors.append(error)
            picture = path  # never read: the errors are raised below
        found[number] = Annotated(picture, [], path, (height, width) if height and width else None)
    if errors:
        raise combine(path, errors, f"{len(errors)} of {len(images)} pictures cannot be used")
    for row in annotations:
        number, category, box = (_field(row, name, path, "annotations") for name in ("image_id", "category_id", "bbox"))
        where = f"{path}: the annotation {row.get('id', '')}"
        if number not in found:
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
        found[number].objects.append(Object(names[category], (x, y, x + width, y + height), crowd))
    return list(found.values())


def _categories(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, str]:
    """Return the names of the categories by their ids."""
    names: dict[Any, str] = {}
    for row in rows:
        number, name = (_field(row, field, path, "categories") for field in ("id", "name"))
        name = normalize_unicode(str(name))
        if names.setdefault(number, name) != name:
            raise UserError(f"{path} has two categories with the id {number!r}: {names[number]}, {name}; mend it")
    return names


def _side(row: Mapping[str, Any], name: str, path: Path) -> float:
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


def _table(content: Mapping[str, Any], path: Path, name: str) -> list[Mapping[str, Any]]:
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


def _picture(inside: PathGuard, path: Path, name: str) -> Path:
    """Return the file of a picture, beside its annotations or where ``LAYOUT`` says."""
    part, folder = path.stem.removeprefix("instances_"), inside.top
    places = [path.parent, folder / part, folder / "images" / part, folder / "images", folder]
    for place in places:
        if file := find_file(place, name) or find_file(place, name.replace("\\", "/")):
            return inside.check(file, path, place)
    where = ", ".join(str(place) for place in places[1:4])
    raise UserError(f"{path} names the picture {name}, which is in none of {where}; add it, or mend the file")
