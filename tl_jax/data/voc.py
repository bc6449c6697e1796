"""Pictures with boxes in the layout of Pascal VOC (Everingham et al. 2010): an XML file for each picture."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

from tl_jax.data.dataset import DECODED_BYTES, Dataset, find_splits, parse_split, with_test_split
from tl_jax.data.decode import DEFAULT_DECODING, ENDINGS, Decoding
from tl_jax.data.detection import AnnotatedImage, Object, build_dataset
from tl_jax.data.registry import IMAGE_FILES, DatasetOptions, register_dataset
from tl_jax.data.text import read_text
from tl_jax.data.walker import find_file, is_ignored, normalize_unicode
from tl_jax.utils.errors import UserError, combine_errors
from tl_jax.utils.extras import require_extra
from tl_jax.utils.log import warn

IMAGES, ANNOTATIONS, SETS = "JPEGImages", "Annotations", "ImageSets"
LIST_FOLDERS = (f"{SETS}/Main", SETS)  # folders of lists; the first that has any is read
LAYOUT = (
    f"FOLDER/{IMAGES}/NAME.jpg, FOLDER/{ANNOTATIONS}/NAME.xml and, if parts are given, "
    f"FOLDER/{LIST_FOLDERS[0]}/PART.txt"
)
TRAINVAL = "trainval"  # a list of what is for training and for validation
CORNERS = ("xmin", "ymin", "xmax", "ymax")
PRESENCE_PATTERN = re.compile(r"\s+(-1|0|1)$")  # second column of a list that is about one class

ImageFiles = dict[str, list[Path]]  # by name without ending: a picture may be there as JPEG and as PNG


def read_voc(
    folder: Path,
    size: int,
    max_bytes: float = DECODED_BYTES,
    classes: Sequence[str] = (),
    decoding: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a folder of VOC; see ``detection.build_dataset`` for what comes out and for the arguments.

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
    for name in (IMAGES, ANNOTATIONS):
        if not (folder / name).is_dir():
            raise UserError(f"no folder {folder / name}; check config.data.dir, the layout is {LAYOUT}")
    images: ImageFiles = {}
    for path in sorted((folder / IMAGES).iterdir()):
        if path.suffix.lower() in ENDINGS and not is_ignored(path.name):
            images.setdefault(normalize_unicode(path.stem), []).append(path)
    if not images:
        raise UserError(f"{folder / IMAGES} has no pictures ({', '.join(ENDINGS)}); the layout is {LAYOUT}")
    splits = {split: _read_annotations(folder, images, rows) for split, rows in _split_rows(folder, images)}
    return build_dataset(folder.resolve().name, splits, classes, size, max_bytes, decoding)


@register_dataset("voc", inputs="boxes", fields=IMAGE_FILES, layout=LAYOUT)
def load_voc(options: DatasetOptions) -> Dataset:
    """Images with boxes in VOC's layout: an XML file for each image."""
    return read_voc(Path(options.folder), options.size, options.max_bytes, options.classes, options.decoding)


def _split_rows(folder: Path, images: ImageFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each part its pictures: the name in a list, and where that was found."""
    for where in LIST_FOLDERS:
        lists = {path.stem: path for path in sorted((folder / where).glob("*.txt")) if not is_ignored(path.name)}
        # Other texts may lie beside the folder Main.
        if any(parse_split(name) or name.lower() == TRAINVAL for name in lists) or (lists and where == LIST_FOLDERS[0]):
            break
    else:
        return [("train", [(name, str(folder / IMAGES)) for name in _with_annotation(folder, images)])]
    list_files = {split: lists[name] for split, name in find_splits(lists, folder / where).items()}
    trainval = {name.lower(): path for name, path in lists.items()}.get(TRAINVAL)
    if "train" not in list_files and trainval is None:
        raise UserError(
            f"{folder / where} has neither train.txt nor trainval.txt (it has {', '.join(sorted(lists)[:5])}); "
            "write one, or remove the folder"
        )
    if "train" not in list_files and trainval:
        list_files = {"train": trainval, **{split: path for split, path in list_files.items() if split == "test"}}
    list_files = with_test_split(list_files)
    order = [split for split in ("train", "test", "validation") if split in list_files]
    splits = [(split, [(name, str(list_files[split])) for name in _read_list(list_files[split])]) for split in order]
    listed_in: dict[str, str] = {}
    for _, rows in splits:
        for line, where in rows:
            name = _image_name(line, images)
            if name in listed_in:
                raise UserError(
                    f"{where} names {name}, which {listed_in[name]} has already; a picture is in one part, once"
                )
            listed_in[name] = where
    return splits


def _with_annotation(folder: Path, images: ImageFiles) -> list[str]:
    """Return the names of pictures that have an annotation; say how many have none, and refuse the reverse."""
    annotated = {
        normalize_unicode(path.stem) for path in (folder / ANNOTATIONS).glob("*.xml") if not is_ignored(path.name)
    }
    if orphans := sorted(annotated - set(images)):
        raise UserError(
            f"{folder / ANNOTATIONS / orphans[0]}.xml has no picture in {folder / IMAGES} ({len(orphans)} of "
            f"{len(annotated)} annotations have none); add them, or remove the files"
        )
    if unannotated := sorted(set(images) - annotated):
        names = ", ".join(images[name][0].name for name in unannotated[:5]) + (", ..." if len(unannotated) > 5 else "")
        count = f"{len(unannotated)} of {len(images)} pictures"
        warn(f"{folder}: {count} left out, which have no annotation: {names}")
    return [name for name in images if name in annotated]


def _read_list(path: Path) -> list[str]:
    """Return the lines of a list that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _image_name(line: str, images: ImageFiles) -> str:
    """Return the name that a line of a list gives: as it stands, without a second column, a folder or an ending."""
    line = normalize_unicode(line)
    for text in (line, PRESENCE_PATTERN.sub("", line)):
        file = PurePosixPath(text.replace("\\", "/"))
        names = (text, file.name, file.stem if file.suffix.lower() in ENDINGS else file.name)
        if match := next((name for name in names if name in images), None):
            return match
    return PRESENCE_PATTERN.sub("", line)


def _read_annotations(folder: Path, images: ImageFiles, rows: Sequence[tuple[str, str]]) -> list[AnnotatedImage]:
    """Return the pictures of a part with their objects; whatever is wrong is one error."""
    annotated, errors = [], []
    for line, where in rows:
        try:
            annotated.append(_read_annotation(folder, images, line, where))
        except UserError as error:
            errors.append(error)
    if errors:
        raise combine_errors(folder, errors, f"{len(errors)} of {len(rows)} pictures cannot be used")
    return annotated


def _read_annotation(folder: Path, images: ImageFiles, line: str, where: str) -> AnnotatedImage:
    name = _image_name(line, images)
    if name not in images:  # so that a list leads nowhere else: pictures are those of the folder
        raise UserError(f"{where} names {name}, but {folder / IMAGES} has no picture of that name; add it")
    path = find_file(folder / ANNOTATIONS, f"{name}.xml")
    if path is None:
        path = folder / ANNOTATIONS / f"{name}.xml"
        raise UserError(f"no annotation {path} of {images[name][0].name}; add it, or remove {name} from {where}")
    with require_extra("detection"):
        import defusedxml.ElementTree as xml  # refuses entities, which can take all memory or read other files
    try:
        root = xml.fromstring(path.read_bytes())
    except (ParseError, ValueError, LookupError, OSError) as error:  # entities, an unknown encoding
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({why}); mend or remove it") from error
    image = _choose_image(images[name], line, root, path)
    objects = [_read_object(element, path) for element in root.findall("object")]
    if root.find("size") is None:
        return AnnotatedImage(image, objects, path)
    height, width = (_read_number(root, f"size/{side}", path) for side in ("height", "width"))
    return AnnotatedImage(image, objects, path, (height, width) if height and width else None)  # 0: not known


def _choose_image(files: list[Path], line: str, root: Element, path: Path) -> Path:
    """Return the file of a picture; of several with the same name the one that the annotation or the list names."""
    if len(files) == 1:
        return files[0]
    for text in (root.findtext("filename") or "", PRESENCE_PATTERN.sub("", line)):
        name = PurePosixPath(text.strip().replace("\\", "/")).name
        matches = [file for file in files if normalize_unicode(file.name) == normalize_unicode(name)]
        if matches:
            return next((file for file in matches if file.name == name), matches[0])
    names = " and ".join(file.name for file in files)
    raise UserError(f"{path} does not say in <filename> which of {names} it is about; remove the others")


def _read_object(element: Element, path: Path) -> Object:
    name = normalize_unicode((element.findtext("name") or "").strip())
    if not name:
        raise UserError(f"{path} has an object without a name; mend it")
    x0, y0, x1, y1 = (_read_number(element, f"bndbox/{corner}", path) for corner in CORNERS)
    return Object(name, (x0, y0, x1, y1), (element.findtext("difficult") or "0").strip() == "1")


def _read_number(element: Element, field: str, path: Path) -> float:
    text = element.findtext(field)
    try:
        return float(text or "")
    except ValueError:
        what = "is missing" if text is None else f"is {text!r}, not a number"
        raise UserError(f"{path}: <{field}> {what}; mend it") from None
