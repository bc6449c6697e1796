"""Recognize the kind of data: folders of images or boxes, files of texts, arrays, or tables."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import text
from tl_jax.data.dataset import Dataset, Split, hold_out
from tl_jax.data.fingerprint import fingerprint
from tl_jax.data.image_list import FileList, build_dataset, with_dicom_groups
from tl_jax.data.registry import DATASETS, IMAGE_FILES, IN_MEMORY, DatasetOptions, register_dataset
from tl_jax.utils.errors import UserError

TABLE_FIELDS = (*(field for field in IMAGE_FILES if field != "dir"), "group", "windows")  # read by a table of files
TABLES = (".csv", ".tsv", ".jsonl", ".json")
SPLITS_AS_TUPLES = "(images, labels), or ((train_images, train_labels), (test_images, test_labels))"
ADVICE = (
    "pass a folder FOLDER/CLASS/IMAGE, a folder with index.csv or VOC or COCO boxes, a file of texts (.csv, .tsv, "
    f".jsonl, CoNLL), arrays as {SPLITS_AS_TUPLES}, a table with the columns file or text, and label, or a Dataset"
)


Reader = Callable[[DatasetOptions], Dataset]


class RecognizedData(NamedTuple):
    """A data set for ``config.data``.

    Attributes:
        inputs: key of ``registry.DATASETS``: "images", "boxes" or "texts".
        name: name of the data set there.
        folder: folder or file of the data; empty for data in memory.
        tags: whether each word of a text has its own label.
    """

    inputs: str
    name: str
    folder: str = ""
    tags: bool = False


def recognize(data: Any, as_one_split: bool = False) -> RecognizedData:
    """Return the data set that ``data`` are.

    Args:
        data: a path, a ``Dataset``, arrays (see ``SPLITS_AS_TUPLES``; labels are numbers or names), or a mapping of
            columns such as a pandas DataFrame: "file" or "text", and "label".
        as_one_split: whether all examples are for testing, so that data in memory are not split.

    Raises:
        UserError: the data are of no known kind; it lists the known ones.
    """
    share = "" if as_one_split else "fifth"
    if isinstance(data, (str, Path)):
        return _recognize_path(Path(data).expanduser())
    if isinstance(data, Dataset):
        return _in_memory(data)
    if hasattr(data, "keys") and hasattr(data, "__getitem__"):
        return _read_table(data, share)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return _in_memory(_read_arrays(data, share))
    raise UserError(f"data of type {type(data).__name__} are not supported; {ADVICE}")


def _recognize_path(path: Path) -> RecognizedData:
    if path.is_file():
        return _recognize_file(path, path)
    if not path.is_dir():
        raise UserError(f"no folder or file {path}; {ADVICE}")
    if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
        return RecognizedData("boxes", "voc", str(path))
    if any(path.glob("annotations/instances_*.json")) or any(path.glob("*/_annotations.coco.json")):
        return RecognizedData("boxes", "coco", str(path))
    if (path / "index.csv").is_file():
        return RecognizedData("images", "index", str(path))
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file.stem.lower() in ("train", "eng")]
    if files:
        return _recognize_file(files[0], path)
    if any(entry.is_dir() for entry in path.iterdir()):
        return RecognizedData("images", "folder", str(path))
    raise UserError(f"{path}: no known data; {ADVICE}")


def _recognize_file(file: Path, path: Path) -> RecognizedData:
    """Return the kind of a file; ``path`` is it, or the folder in which it is the training split."""
    ending = file.suffix.lower()
    if ending == ".npz":
        return RecognizedData("images", "npz", str(path))
    if ending in TABLES:
        head = file.read_bytes()[:4096].decode("utf-8", "replace").partition("\n")[0]
        names = [name.strip().strip("\"'") for name in head.replace(";", ",").replace("\t", ",").split(",")]
        if ending == ".csv" and "file" in names and "text" not in names:
            return RecognizedData("images", "index", str(path))
        return RecognizedData("texts", "jsonl" if ending == ".json" else ending[1:], str(path))
    lines = [line for line in text.read_text(file).splitlines()[:200] if line.strip()]
    if lines and sum(len(line.split()) >= 2 for line in lines) == len(lines) and len(set(map(_width, lines))) <= 2:
        return RecognizedData("texts", "conll", str(path), tags=True)
    raise UserError(f"{file}: no labelled examples; {ADVICE}")


def _width(line: str) -> int:
    return len(line.split())


def _in_memory(dataset: Dataset) -> RecognizedData:
    """Register a data set in memory under a name derived from its content."""
    is_text = dataset.train.inputs.dtype == object
    has_boxes = not is_text and dataset.train.labels.ndim == 3
    inputs = "texts" if is_text else "boxes" if has_boxes else "images"
    facts = [dataset.name, *dataset.classes, *(fingerprint(s, dataset.classes) for s in (dataset.train, dataset.test))]
    return _register(inputs, facts, lambda options: dataset, is_text and dataset.train.labels.dtype == object)


def _register(
    inputs: str, facts: Sequence[str], read: Reader, tags: bool = False, fields: tuple[str, ...] = ()
) -> RecognizedData:
    name = f"{IN_MEMORY}{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
    if name not in DATASETS[inputs]:
        register_dataset(name, inputs=inputs, fields=fields)(read)
    return RecognizedData(inputs, name, tags=tags)


def _read_arrays(data: Sequence[Any], share: str) -> Dataset:
    """Return the data set of arrays, see ``SPLITS_AS_TUPLES``."""
    has_test = all(isinstance(part, (tuple, list)) and len(part) == 2 for part in data) and not _is_text(data[0])
    parts = list(data) if has_test else [data]
    names = sorted({str(label) for _, labels in parts for label in np.ravel(np.asarray(labels)).tolist()}, key=_order)
    splits = [_make_split(inputs, labels, names) for inputs, labels in parts]
    if not has_test:
        return _with_test("arrays", splits[0], tuple(names), share)
    return Dataset("arrays", splits[0], splits[1], tuple(names))


def _is_text(values: Any) -> bool:
    return len(values) > 0 and isinstance(values[0], str)


def _order(name: str) -> tuple[float, str]:
    """Sort numbers by value, before names."""
    try:
        return float(name), ""
    except ValueError:
        return float("inf"), name


def _make_split(inputs: Any, labels: Any, names: Sequence[str]) -> Split:
    known = {name: i for i, name in enumerate(names)}
    numbers = np.asarray([known[str(label)] for label in np.ravel(np.asarray(labels)).tolist()], np.int32)
    if _is_text(inputs):
        values = np.empty(len(inputs), object)
        values[:] = list(inputs)
    else:
        values = np.asarray(inputs)
        values = values[..., None] if values.ndim == 3 else values
        if values.dtype != np.uint8 or values.ndim != 4 or values.shape[-1] not in (1, 3):
            raise UserError(
                f"images: unsupported type {values.dtype} {values.shape}; pass uint8 (N, H, W, 3) or (N, H, W), "
                "0 to 255 (for images from 0 to 1: (255 * images).astype('uint8'))"
            )
        values = np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values
    if len(values) != len(numbers):
        raise UserError(f"{len(values):,} examples have {len(numbers):,} labels; pass one label per example")
    return Split(values, numbers)


def _with_test(name: str, split: Split, classes: tuple[str, ...], share: str) -> Dataset:
    """Hold out a share of the examples for testing, see ``hold_out``."""
    rows = hold_out(name, split.labels, classes, share)
    train, test = (Split(split.inputs[r], split.labels[r]) for r in rows)
    return Dataset(name, train, test, classes, "a fifth held out")


def _read_table(table: Any, share: str) -> RecognizedData:
    """Return the data set of a table of image files or texts; a fifth is held out for testing."""
    columns = {str(name): list(table[name]) for name in table.keys()}  # noqa: SIM118  # also of a DataFrame
    if "label" not in columns or not {"file", "text"} & set(columns):
        raise UserError(f"table: needs the columns file or text, and label, not {', '.join(columns)}; rename them")
    names = tuple(sorted({str(label) for label in columns["label"]}, key=_order))
    if "text" in columns:
        return _in_memory(_with_test("table", _make_split(columns["text"], columns["label"], names), names, share))
    known = {name: i for i, name in enumerate(names)}
    labels = np.asarray([known[str(label)] for label in columns["label"]], np.int32)
    files = [Path(file).expanduser().absolute() for file in columns["file"]]

    def read(options: DatasetOptions) -> Dataset:
        splits = with_dicom_groups("table", {"train": FileList(files, labels)}, options.group)
        return build_dataset("table", splits, names, "a fifth held out", options)

    return _register("images", [*map(str, files), *map(str, columns["label"])], read, fields=TABLE_FIELDS)
