"""Pictures with boxes in the layout of Pascal VOC (Everingham et al. 2010): an XML file for each picture."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree as xml  # refuses entities, by which a small file can take all memory or read others
from defusedxml.common import DefusedXmlException

from tl_jax.data.boxes import Annotated, Object, assemble
from tl_jax.data.decoding import ENDINGS
from tl_jax.data.pictures import DECODED_BYTES, Source
from tl_jax.errors import UserError

PICTURES, ANNOTATIONS, SETS = "JPEGImages", "Annotations", "ImageSets/Main"
LAYOUT = f"FOLDER/{PICTURES}/NAME.jpg, FOLDER/{ANNOTATIONS}/NAME.xml and, if parts are given, FOLDER/{SETS}/PART.txt"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read(folder: Path, size: int, most_bytes: float = DECODED_BYTES, classes: Sequence[str] = ()) -> Source:
    """Read a folder of VOC; see ``boxes.assemble`` for what comes out and for the arguments.

    ``ImageSets/Main`` names the pictures of ``train``, ``val`` and ``test``, one a line; without ``train.txt`` those of
    ``trainval.txt`` are trained on. Without ``test.txt`` ``val`` is the test part. Where there are no such files all
    pictures are taken and a fifth is held out. Coordinates are taken for edges as they are; VOC's own files count
    pixels from 1, which moves a box by a pixel.

    Raises:
        UserError: a file that is missing, damaged, or says something that cannot be.
    """
    folder = Path(folder).expanduser()
    for name in (PICTURES, ANNOTATIONS):
        if not (folder / name).is_dir():
            raise UserError(f"no folder {folder / name}; check --config.data.dir, the layout is {LAYOUT}")
    pictures = {p.stem: p for p in sorted((folder / PICTURES).iterdir()) if p.suffix.lower() in ENDINGS}
    if not pictures:
        raise UserError(f"{folder / PICTURES} has no pictures ({', '.join(ENDINGS)}); the layout is {LAYOUT}")
    parts = {part: [_annotated(folder, pictures, *row) for row in rows] for part, rows in _parts(folder, pictures)}
    return assemble(folder.resolve().name, parts, classes, size, most_bytes)


def _parts(folder: Path, pictures: dict[str, Path]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each part its pictures: name, and where that was found."""
    lists = {path.stem: path for path in (folder / SETS).glob("*.txt")}
    if not lists:
        where = str(folder / PICTURES)
        if loose := sorted({p.stem for p in (folder / ANNOTATIONS).glob("*.xml")} - set(pictures)):
            raise UserError(
                f"{folder / ANNOTATIONS / loose[0]}.xml has no picture in {where}; add it, or remove the file"
            )
        return [("train", [(name, where) for name in pictures])]
    train = next((lists[name] for name in ("train", "trainval") if name in lists), None)
    if train is None:
        raise UserError(f"{folder / SETS} has neither train.txt nor trainval.txt; write one, or remove the folder")
    found = [("train", train)]
    validation = lists.get("val") if train.stem == "train" else None
    if "test" in lists:
        found += [("test", lists["test"])] + ([("validation", validation)] if validation else [])
    elif validation:
        found += [("test", validation)]
    parts = [(part, [(name, str(path)) for name in _names(path)]) for part, path in found]
    seen: dict[str, str] = {}
    for _, rows in parts:
        for name, where in rows:
            if name in seen:
                raise UserError(f"{where} names {name}, which {seen[name]} has already; a picture is in one part, once")
            seen[name] = where
    return parts


def _names(path: Path) -> list[str]:
    """Return the names in a list; files of one class have a second column, which says whether it is there."""
    return [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]


def _annotated(folder: Path, pictures: dict[str, Path], name: str, where: str) -> Annotated:
    path = folder / ANNOTATIONS / f"{name}.xml"
    if name not in pictures:
        raise UserError(f"{where} names {name}, but {folder / PICTURES} has no picture of that name; add it")
    if not path.is_file():
        raise UserError(f"no annotation {path} of {pictures[name].name}; add it, or remove {name} from {where}")
    try:
        root = xml.fromstring(path.read_bytes())
    except (ParseError, DefusedXmlException, ValueError, OSError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({why}); mend or remove it") from error
    objects = [_object(element, path) for element in root.findall("object")]
    if root.find("size") is None:
        return Annotated(pictures[name], objects, path)
    height, width = (_number(root, f"size/{side}", path) for side in ("height", "width"))
    return Annotated(pictures[name], objects, path, (height, width) if height and width else None)  # 0: not known


def _object(element: Element, path: Path) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{path} has an object without a name; mend it")
    x0, y0, x1, y1 = (_number(element, f"bndbox/{corner}", path) for corner in CORNERS)
    return Object(name, (x0, y0, x1, y1), (element.findtext("difficult") or "0").strip() == "1")


def _number(element: Element, field: str, path: Path) -> float:
    text = element.findtext(field)
    try:
        return float(text or "")
    except ValueError:
        what = "is missing" if text is None else f"is {text!r}, not a number"
        raise UserError(f"{path}: <{field}> {what}; mend it") from None
