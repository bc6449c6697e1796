"""Pictures with boxes in the layout of Pascal VOC (Everingham et al. 2010): an XML file for each picture."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

from tqdm import tqdm

from tl_jax.data.dataset import DECODED_BYTES, Dataset, find_splits, parse_split, with_test_split
from tl_jax.data.decode import DEFAULT_DECODING, ENDINGS, Decoding
from tl_jax.data.detection import Annotated, Object, assemble
from tl_jax.data.text import read_text
from tl_jax.data.walker import find_file, is_ignored, normalize_unicode
from tl_jax.utils.errors import UserError, combine
from tl_jax.utils.extras import needs

PICTURES, ANNOTATIONS, SETS = "JPEGImages", "Annotations", "ImageSets"
LISTS = (f"{SETS}/Main", SETS)  # folders of lists; the first that has any is read
LAYOUT = (
    f"FOLDER/{PICTURES}/NAME.jpg, FOLDER/{ANNOTATIONS}/NAME.xml and, if parts are given, FOLDER/{LISTS[0]}/PART.txt"
)
BOTH = "trainval"  # a list of what is for training and for validation
CORNERS = ("xmin", "ymin", "xmax", "ymax")
PRESENCE = re.compile(r"\s+(-1|0|1)$")  # second column of a list that is about one class

Files = dict[str, list[Path]]  # by name without ending: a picture may be there as JPEG and as PNG


def read(
    folder: Path,
    size: int,
    most_bytes: float = DECODED_BYTES,
    classes: Sequence[str] = (),
    rules: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a folder of VOC; see ``detection.assemble`` for what comes out and for the arguments.

    Lists in ``ImageSets/Main``, or else in ``ImageSets``, name the pictures of each part, one a line, with or without
    their ending: ``train.txt``, ``val.txt`` and ``test.txt``, or another name of ``SPLIT_NAMES``. Without a list for
    train the pictures of ``trainval.txt`` are trained on. Without one for test the validation part is tested. Where
    there are no lists all pictures with an annotation are taken and a fifth is held out; a line on stderr says how
    many have none. Coordinates are taken for edges as they are; VOC's own files count pixels from 1, which moves a box
    by a pixel.

    Raises:
        UserError: files that are missing, damaged, or say something that cannot be.
    """
    folder = Path(folder).expanduser()
    for name in (PICTURES, ANNOTATIONS):
        if not (folder / name).is_dir():
            raise UserError(f"no folder {folder / name}; check --config.data.dir, the layout is {LAYOUT}")
    pictures: Files = {}
    for path in sorted((folder / PICTURES).iterdir()):
        if path.suffix.lower() in ENDINGS and not is_ignored(path.name):
            pictures.setdefault(normalize_unicode(path.stem), []).append(path)
    if not pictures:
        raise UserError(f"{folder / PICTURES} has no pictures ({', '.join(ENDINGS)}); the layout is {LAYOUT}")
    parts = {part: _annotated_all(folder, pictures, rows) for part, rows in _parts(folder, pictures)}
    return assemble(folder.resolve().name, parts, classes, size, most_bytes, rules)


def _parts(folder: Path, pictures: Files) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each part its pictures: the name in a list, and where that was found."""
    for where in LISTS:
        lists = {path.stem: path for path in sorted((folder / where).glob("*.txt")) if not is_ignored(path.name)}
        # Other texts may lie beside the folder Main.
        if any(parse_split(name) or name.lower() == BOTH for name in lists) or (lists and where == LISTS[0]):
            break
    else:
        return [("train", [(name, str(folder / PICTURES)) for name in _with_annotation(folder, pictures)])]
    found = {split: lists[name] for split, name in find_splits(lists, folder / where).items()}
    both = {name.lower(): path for name, path in lists.items()}.get(BOTH)
    if "train" not in found and both is None:
        raise UserError(
            f"{folder / where} has neither train.txt nor trainval.txt (it has {', '.join(sorted(lists)[:5])}); "
            "write one, or remove the folder"
        )
    if "train" not in found and both:
        found = {"train": both, **{split: path for split, path in found.items() if split == "test"}}
    found = with_test_split(found)
    order = [split for split in ("train", "test", "validation") if split in found]
    parts = [(split, [(name, str(found[split])) for name in _names(found[split])]) for split in order]
    seen: dict[str, str] = {}
    for _, rows in parts:
        for line, where in rows:
            name = _stem(line, pictures)
            if name in seen:
                raise UserError(f"{where} names {name}, which {seen[name]} has already; a picture is in one part, once")
            seen[name] = where
    return parts


def _with_annotation(folder: Path, pictures: Files) -> list[str]:
    """Return the names of pictures that have an annotation; say how many have none, and refuse the reverse."""
    annotated = {
        normalize_unicode(path.stem) for path in (folder / ANNOTATIONS).glob("*.xml") if not is_ignored(path.name)
    }
    if loose := sorted(annotated - set(pictures)):
        raise UserError(
            f"{folder / ANNOTATIONS / loose[0]}.xml has no picture in {folder / PICTURES} ({len(loose)} of "
            f"{len(annotated)} annotations have none); add them, or remove the files"
        )
    if bare := sorted(set(pictures) - annotated):
        names = ", ".join(pictures[name][0].name for name in bare[:5]) + (", ..." if len(bare) > 5 else "")
        count = f"{len(bare)} of {len(pictures)} pictures"
        tqdm.write(f"{folder}: {count} left out, which have no annotation: {names}", file=sys.stderr)
    return [name for name in pictures if name in annotated]


def _names(path: Path) -> list[str]:
    """Return the lines of a list that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _stem(line: str, pictures: Files) -> str:
    """Return the name that a line of a list gives: as it stands, without a second column, a folder or an ending."""
    line = normalize_unicode(line)
    for text in (line, PRESENCE.sub("", line)):
        file = PurePosixPath(text.replace("\\", "/"))
        names = (text, file.name, file.stem if file.suffix.lower() in ENDINGS else file.name)
        if known := next((name for name in names if name in pictures), None):
            return known
    return PRESENCE.sub("", line)


def _annotated_all(folder: Path, pictures: Files, rows: Sequence[tuple[str, str]]) -> list[Annotated]:
    """Return the pictures of a part with their objects; whatever is wrong is one error."""
    found, errors = [], []
    for line, where in rows:
        try:
            found.append(_annotated(folder, pictures, line, where))
        except UserError as error:
            errors.append(error)
    if errors:
        raise combine(folder, errors, f"{len(errors)} of {len(rows)} pictures cannot be used")
    return found


def _annotated(folder: Path, pictures: Files, line: str, where: str) -> Annotated:
    name = _stem(line, pictures)
    if name not in pictures:  # so that a list leads nowhere else: pictures are those of the folder
        raise UserError(f"{where} names {name}, but {folder / PICTURES} has no picture of that name; add it")
    path = find_file(folder / ANNOTATIONS, f"{name}.xml")
    if path is None:
        path = folder / ANNOTATIONS / f"{name}.xml"
        raise UserError(f"no annotation {path} of {pictures[name][0].name}; add it, or remove {name} from {where}")
    with needs("detection"):
        import defusedxml.ElementTree as xml  # refuses entities, which can take all memory or read other files
    try:
        root = xml.fromstring(path.read_bytes())
    except (ParseError, ValueError, LookupError, OSError) as error:  # entities, an unknown encoding
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({why}); mend or remove it") from error
    picture = _picture(pictures[name], line, root, path)
    objects = [_object(element, path) for element in root.findall("object")]
    if root.find("size") is None:
        return Annotated(picture, objects, path)
    height, width = (_number(root, f"size/{side}", path) for side in ("height", "width"))
    return Annotated(picture, objects, path, (height, width) if height and width else None)  # 0: not known


def _picture(found: list[Path], line: str, root: Element, path: Path) -> Path:
    """Return the file of a picture; of several with the same name the one that the annotation or the list names."""
    if len(found) == 1:
        return found[0]
    for named in (root.findtext("filename") or "", PRESENCE.sub("", line)):
        name = PurePosixPath(named.strip().replace("\\", "/")).name
        same = [file for file in found if normalize_unicode(file.name) == normalize_unicode(name)]
        if same:
            return next((file for file in same if file.name == name), same[0])
    names = " and ".join(file.name for file in found)
    raise UserError(f"{path} does not say in <filename> which of {names} it is about; remove the others")


def _object(element: Element, path: Path) -> Object:
    name = normalize_unicode((element.findtext("name") or "").strip())
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
