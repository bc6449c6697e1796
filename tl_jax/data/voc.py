"""Images with boxes in the layout of Pascal VOC (Everingham et al. 2010): one XML file per image."""

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
LIST_FOLDERS = (f"{SETS}/Main", SETS)  # folders of lists; the first with any is read
LAYOUT = f"FOLDER/{IMAGES}/NAME.jpg, FOLDER/{ANNOTATIONS}/NAME.xml and, optionally, FOLDER/{LIST_FOLDERS[0]}/SPLIT.txt"
TRAINVAL = "trainval"  # list of the union of train and val
CORNERS = ("xmin", "ymin", "xmax", "ymax")
PRESENCE_PATTERN = re.compile(r"\s+(-1|0|1)$")  # second column of a list for one class

ImageFiles = dict[str, list[Path]]  # stem -> files: an image may exist as JPEG and as PNG


def read_voc(
    folder: Path,
    size: int,
    max_bytes: float = DECODED_BYTES,
    classes: Sequence[str] = (),
    decoding: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a folder in VOC's layout; see ``detection.build_dataset`` for the result and the arguments.

    Lists in ``ImageSets/Main``, or else in ``ImageSets``, name the images of each split, one per line, with or without
    suffix: ``train.txt``, ``val.txt`` and ``test.txt``, or other names in ``SPLIT_NAMES``. Without a list for train,
    ``trainval.txt`` is used. Without one for test, the validation split is tested. Without lists, all images with an
    annotation are used, and a fifth is held out; a line on stderr reports how many have none. Coordinates are used as
    edges without a shift; VOC's own files count pixels from 1, which moves a box by a pixel.

    Raises:
        UserError: missing, damaged or invalid files.
    """
    folder = Path(folder).expanduser()
    for name in (IMAGES, ANNOTATIONS):
        if not (folder / name).is_dir():
            raise UserError(f"no folder {folder / name}; check config.data.dir, whose layout is {LAYOUT}")
    images: ImageFiles = {}
    for path in sorted((folder / IMAGES).iterdir()):
        if path.suffix.lower() in ENDINGS and not is_ignored(path.name):
            images.setdefault(normalize_unicode(path.stem), []).append(path)
    if not images:
        raise UserError(f"{folder / IMAGES} has no images ({', '.join(ENDINGS)}); arrange the files as {LAYOUT}")
    splits = {split: _read_annotations(folder, images, rows) for split, rows in _split_rows(folder, images)}
    return build_dataset(folder.resolve().name, splits, classes, size, max_bytes, decoding)


@register_dataset("voc", inputs="boxes", fields=IMAGE_FILES, layout=LAYOUT)
def load_voc(options: DatasetOptions) -> Dataset:
    """Images with boxes in VOC's layout: one XML file per image."""
    return read_voc(Path(options.folder), options.size, options.max_bytes, options.classes, options.decoding)


def _split_rows(folder: Path, images: ImageFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (split, rows) for each split; a row is a name in a list and the position of that list."""
    for where in LIST_FOLDERS:
        lists = {path.stem: path for path in sorted((folder / where).glob("*.txt")) if not is_ignored(path.name)}
        # Other text files may be next to the folder Main.
        if any(parse_split(name) or name.lower() == TRAINVAL for name in lists) or (lists and where == LIST_FOLDERS[0]):
            break
    else:
        return [("train", [(name, str(folder / IMAGES)) for name in _with_annotation(folder, images)])]
    list_files = {split: lists[name] for split, name in find_splits(lists, folder / where).items()}
    trainval = {name.lower(): path for name, path in lists.items()}.get(TRAINVAL)
    if "train" not in list_files and trainval is None:
        raise UserError(
            f"{folder / where}: neither train.txt nor trainval.txt (only {', '.join(sorted(lists)[:5])}); "
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
                    f"{where}: {name} is also listed in {listed_in[name]}; list each image once, in one split"
                )
            listed_in[name] = where
    return splits


def _with_annotation(folder: Path, images: ImageFiles) -> list[str]:
    """Return the names of annotated images; report the number of others, and refuse annotations without image."""
    annotated = {
        normalize_unicode(path.stem) for path in (folder / ANNOTATIONS).glob("*.xml") if not is_ignored(path.name)
    }
    if orphans := sorted(annotated - set(images)):
        raise UserError(
            f"{folder / ANNOTATIONS / orphans[0]}.xml has no image in {folder / IMAGES} ({len(orphans)} of "
            f"{len(annotated)} annotations have none); add the images, or remove the annotations"
        )
    if unannotated := sorted(set(images) - annotated):
        names = ", ".join(images[name][0].name for name in unannotated[:5]) + (", ..." if len(unannotated) > 5 else "")
        count = f"{len(unannotated)} of {len(images)} images"
        warn(f"{folder}: {count} have no annotation and are skipped: {names}")
    return [name for name in images if name in annotated]


def _read_list(path: Path) -> list[str]:
    """Return the lines of a list without empty ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _image_name(line: str, images: ImageFiles) -> str:
    """Return the image name of a line: as it is, or without its second column, folder or suffix."""
    line = normalize_unicode(line)
    for text in (line, PRESENCE_PATTERN.sub("", line)):
        file = PurePosixPath(text.replace("\\", "/"))
        names = (text, file.name, file.stem if file.suffix.lower() in ENDINGS else file.name)
        if match := next((name for name in names if name in images), None):
            return match
    return PRESENCE_PATTERN.sub("", line)


def _read_annotations(folder: Path, images: ImageFiles, rows: Sequence[tuple[str, str]]) -> list[AnnotatedImage]:
    """Return the images of a split with their objects; report all errors as one."""
    annotated, errors = [], []
    for line, where in rows:
        try:
            annotated.append(_read_annotation(folder, images, line, where))
        except UserError as error:
            errors.append(error)
    if errors:
        raise combine_errors(folder, errors, f"{len(errors)} of {len(rows)} images cannot be used")
    return annotated


def _read_annotation(folder: Path, images: ImageFiles, line: str, where: str) -> AnnotatedImage:
    name = _image_name(line, images)
    if name not in images:  # lists cannot point outside the folder
        raise UserError(f"{where}: {folder / IMAGES} has no image named {name}; add it")
    path = find_file(folder / ANNOTATIONS, f"{name}.xml")
    if path is None:
        path = folder / ANNOTATIONS / f"{name}.xml"
        raise UserError(f"no annotation {path} of {images[name][0].name}; add it, or remove {name} from {where}")
    with require_extra("detection"):
        import defusedxml.ElementTree as xml  # refuses entities, which can exhaust memory or read files
    try:
        root = xml.fromstring(path.read_bytes())
    except (ParseError, ValueError, LookupError, OSError) as error:  # entities, an unknown encoding
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({why}); correct or remove it") from error
    image = _choose_image(images[name], line, root, path)
    objects = [_read_object(element, path) for element in root.findall("object")]
    if root.find("size") is None:
        return AnnotatedImage(image, objects, path)
    height, width = (_read_number(root, f"size/{side}", path) for side in ("height", "width"))
    return AnnotatedImage(image, objects, path, (height, width) if height and width else None)  # 0: unknown


def _choose_image(files: list[Path], line: str, root: Element, path: Path) -> Path:
    """Return the image file; of several with one name, the one in the annotation or the list."""
    if len(files) == 1:
        return files[0]
    for text in (root.findtext("filename") or "", PRESENCE_PATTERN.sub("", line)):
        name = PurePosixPath(text.strip().replace("\\", "/")).name
        matches = [file for file in files if normalize_unicode(file.name) == normalize_unicode(name)]
        if matches:
            return next((file for file in matches if file.name == name), matches[0])
    names = " and ".join(file.name for file in files)
    raise UserError(f"{path}: <filename> does not select one of {names}; remove the others")


def _read_object(element: Element, path: Path) -> Object:
    name = normalize_unicode((element.findtext("name") or "").strip())
    if not name:
        raise UserError(f"{path}: an object has no name; add it")
    x0, y0, x1, y1 = (_read_number(element, f"bndbox/{corner}", path) for corner in CORNERS)
    return Object(name, (x0, y0, x1, y1), (element.findtext("difficult") or "0").strip() == "1")


def _read_number(element: Element, field: str, path: Path) -> float:
    text = element.findtext(field)
    try:
        return float(text or "")
    except ValueError:
        what = "is missing" if text is None else f"is {text!r}, not a number"
        raise UserError(f"{path}: <{field}> {what}; correct it") from None
