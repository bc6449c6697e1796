"""Pictures with boxes in the layout of COCO (Lin et al. 2014, arXiv:1405.0312): a JSON file for each part."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax.data.boxes import Annotated, Object, assemble
from tl_jax.data.pictures import DECODED_BYTES, Source
from tl_jax.errors import UserError

# Names under which sets call a part, the usual one first.
PARTS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
LAYOUT = (
    "FOLDER/annotations/instances_PART.json with pictures in FOLDER/PART, FOLDER/images/PART or FOLDER/images, or "
    "FOLDER/PART/_annotations.coco.json with pictures beside it; PART is train, val or test, a year may follow"
)


def read(folder: Path, size: int, most_bytes: float = DECODED_BYTES, classes: Sequence[str] = ()) -> Source:
    """Read a folder of COCO; see ``boxes.assemble`` for what comes out and for the arguments.

    Without a test part, or where it comes without annotations as COCO's own does, the validation part is tested.

    Raises:
        UserError: a file that is missing, damaged, or says something that cannot be.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check --config.data.dir")
    files = {part: path for part, names in PARTS.items() if (path := _file(folder, names))}
    if "train" not in files:
        raise UserError(f"{folder} has no annotations of a train part; the layout is {LAYOUT}")
    parts = {part: _part(folder, path) for part, path in files.items()}
    if "validation" in parts and "test" not in parts:
        parts["test"] = parts.pop("validation")
    return assemble(folder.resolve().name, parts, classes, size, most_bytes)


def _file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the annotation file of a part."""
    for name in names:
        for pattern in (f"annotations/instances_{name}*.json", f"annotations/{name}*.json", f"{name}*.json"):
            if found := sorted(folder.glob(pattern)):
                return found[0]
        if (beside := folder / name / "_annotations.coco.json").is_file():
            return beside
    return None


def _part(folder: Path, path: Path) -> list[Annotated]:
    """Return the pictures of an annotation file, in its order."""
    content = _load(path)
    images, annotations, categories = (_table(content, path, name) for name in ("images", "annotations", "categories"))
    names = {_field(row, "id", path, "categories"): str(_field(row, "name", path, "categories")) for row in categories}
    found: dict[Any, Annotated] = {}
    for row in images:
        number, file = (_field(row, name, path, "images") for name in ("id", "file_name"))
        if number in found:
            raise UserError(f"{path} has two images with the id {number!r}; mend it")
        height, width = row.get("height"), row.get("width")
        known = (height, width) if isinstance(height, int) and isinstance(width, int) and height and width else None
        found[number] = Annotated(_picture(folder, path, str(file)), [], path, known)
    for row in annotations:
        number, category, box = (_field(row, name, path, "annotations") for name in ("image_id", "category_id", "bbox"))
        where = f"{path}: the annotation {row.get('id', '')}"
        if number not in found:
            raise UserError(f"{where} is of the image {number!r}, which is not among the images; mend it")
        if category not in names:
            raise UserError(f"{where} has the category {category!r}, which is not among the categories; mend it")
        if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise UserError(f"{where} has the bbox {box!r} instead of four numbers (x, y, width, height); mend it")
        x, y, width, height = box
        found[number].objects.append(Object(names[category], (x, y, x + width, y + height), bool(row.get("iscrowd"))))
    return list(found.values())


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({why}); bring it anew") from error


def _table(content: Any, path: Path, name: str) -> list[Mapping[str, Any]]:
    """Return one of the lists of a file."""
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no list {name!r} of objects, so it is not in COCO's format; bring another")
    return rows


def _field(row: Mapping[str, Any], name: str, path: Path, table: str) -> Any:
    value = row.get(name)
    if isinstance(value, list if name == "bbox" else int | str):
        return value
    raise UserError(f"{path}: {name!r} of an entry of {table} is missing or wrong: {json.dumps(row)[:80]}; mend it")


def _picture(folder: Path, path: Path, name: str) -> Path:
    """Return the file of a picture, beside its annotations or where ``LAYOUT`` says."""
    part = path.stem.removeprefix("instances_")
    places = [path.parent, folder / part, folder / "images" / part, folder / "images", folder]
    for place in places:
        if (place / name).is_file():
            return place / name
    where = ", ".join(str(place) for place in places[1:4])
    raise UserError(f"{path} names the picture {name}, which is in none of {where}; add it, or mend the file")
