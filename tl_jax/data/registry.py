"""Registry of data sets, with the configuration fields that each one reads.

A data set is a function; ``register_dataset`` adds it under a name for ``config.data.name``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from tl_jax.config.options import Options, option
from tl_jax.data.dataset import DECODED_BYTES
from tl_jax.data.decode import DEFAULT_DECODING, Decoding
from tl_jax.data.dicom import WINDOWS
from tl_jax.data.fingerprint import folder_stamp
from tl_jax.data.text import DEFAULT_COLUMNS, Columns
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.registry import IMPORT_HINT, Registry

INPUTS = ("images", "boxes", "people", "texts")
# Fields of ``config.data`` that only some data sets read.
FIELDS = ("columns", "dir", "group", "label", "max_pixels", "outside", "range", "text", "windows")
IN_MEMORY = "in_memory_"  # prefix of the names of data in memory, see ``recognize``
IMAGE_FILES = ("dir", "max_pixels", "range")  # fields that locate and decode image files


@dataclasses.dataclass(frozen=True)
class DataConfig(Options):
    """Source and selection of examples."""

    name: str = option("cifar10", "data set: a registered one, or any TFDS data set")
    dir: str = option("", "folder of TFDS (empty: its default), of images in the layout of data.name, or of texts")
    generate: bool = option(False, "if data.dir is empty, use synthetic images, or installed texts (for smoke runs)")
    label: str = option("label", "column of the label in a table of texts or index.csv (empty: the image's folder)")
    validation: float = option(
        0.1,
        "share of train for validation, stratified by class; 0 for none; a validation split of the data is used whole",
        low=0.0,
        high=0.9,
    )
    train_examples: int = option(0, "number of random training examples, stratified by class; 0 for all", low=0)
    per_class: int = option(0, "number of random training examples per class; 0 for all", low=0)
    test_examples: int = option(
        0, "number of random test examples, stratified by class, the same for every seed; 0 for all", low=0
    )


@dataclasses.dataclass(frozen=True)
class ImageDataConfig(DataConfig):
    """Source and selection of images, and how their files are decoded."""

    group: str = option(
        "",
        "column of index.csv whose groups (patient, source) stay in one split; if there is no such column, "
        "study: DICOM files by StudyInstanceUID, none: no groups; empty: DICOM files by PatientID",
    )
    fit: str = option(
        "crop",
        "how images of different sizes become square: centre crop, black borders, or stretching",
        ("crop", "pad", "stretch"),
    )
    windows: tuple[Any, ...] = option(
        ("lung", "mediastinum", "bone"),
        f"windows of Hounsfield units for DICOM, one per channel or one for all: {', '.join(WINDOWS)}, "
        "or pairs (level, width); empty uses that of the file",
    )
    range: tuple[float, ...] = option(
        (),
        "values (low, high) of black and white for images with more than 8 bits; empty uses the minimum and maximum "
        "of the data set",
    )
    max_pixels: int = option(0, "largest number of pixels of an image; 0 for Pillow's limit, 89,478,485", low=0)
    outside: bool = option(
        False,
        "also read files outside data.dir that an index, annotations or links in a class folder point to",
    )
    gigabytes: float = option(
        16.0,
        "disk cache of decoded images, in GB; a larger data set is decoded on every read",
        low=0.0,
    )


@dataclasses.dataclass(frozen=True)
class TextDataConfig(DataConfig):
    """Source and selection of texts, and the columns of their files."""

    text: tuple[str, ...] = option(("text",), "column of the text, or the two columns of a pair")
    columns: tuple[str, ...] = option((), "names of all columns, for files of texts without a header")


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """The options of a configuration for reading a data set; each data set uses some of them.

    Attributes:
        name: name of the data set, for functions that several names share.
        folder: ``config.data.dir``, a folder or file; empty if none is given.
        size: side in pixels to which images of different sizes are fitted.
        max_bytes: size limit of decoded images on disk; a larger data set is decoded on every read.
        decoding: how image files are decoded.
        fit: "crop", "pad" or "stretch", see ``dataset.fit_image``.
        group: how images are grouped, see ``image_list.with_dicom_groups``.
        classes: classes of boxes in order; empty uses those of the training split.
        columns: columns of texts and labels, also of an index of images.
        shape: (H, W) to which all images are fitted; None keeps their size if all have one size.
        as_one_split: whether all examples are for testing, so that none is held out and a single class is allowed.
    """

    name: str
    folder: str = ""
    size: int = 224
    max_bytes: float = DECODED_BYTES
    decoding: Decoding = DEFAULT_DECODING
    fit: str = "crop"
    group: str = ""
    classes: tuple[str, ...] = ()
    columns: Columns = DEFAULT_COLUMNS
    shape: tuple[int, int] | None = None
    as_one_split: bool = False

    @property
    def share(self) -> str:
        """Share that is held out for a test split if there is none, see ``dataset.hold_out``."""
        return "" if self.as_one_split else "fifth"


class DatasetEntry(NamedTuple):
    """A registered data set.

    Attributes:
        read: function that returns the ``Dataset``, or the ``faces.FaceSet`` for people.
        fields: the ``FIELDS`` that it reads.
        layout: content that it needs in ``config.data.dir``, as text; empty if that may be empty.
    """

    read: Callable[[DatasetOptions], Any]
    fields: tuple[str, ...]
    layout: str


DATASETS: Mapping[str, Registry[DatasetEntry]] = MappingProxyType({kind: Registry("data set") for kind in INPUTS})
_FALLBACKS: dict[str, DatasetEntry] = {}
_F = TypeVar("_F", bound=Callable[[DatasetOptions], Any])


def register_dataset(
    *names: str, inputs: str = "images", fields: tuple[str, ...] = (), layout: str = ""
) -> Callable[[_F], _F]:
    """Return a decorator that registers a function of ``DatasetOptions`` as a data set.

    Args:
        *names: names of the data set; a task with other inputs may have a data set of the same name.
        inputs: "images", "boxes" or "texts", for a function that returns a ``Dataset``; "people" for a ``FaceSet``.
        fields: the ``FIELDS`` of ``config.data`` that it reads; a run that sets another one is refused.
        layout: content that the data set needs in ``config.data.dir``, as text; it then reads "dir", and is read again
            if a file there changes.
    """

    def register(read: _F) -> _F:
        for name in names:
            DATASETS[inputs].add(name, _entry(read, fields, layout), read.__module__)
        return read

    return register


def register_fallback(inputs: str, fields: tuple[str, ...]) -> Callable[[_F], _F]:
    """Return a decorator that registers the function for all names that are not registered, those of TFDS."""

    def register(read: _F) -> _F:
        _FALLBACKS[inputs] = _entry(read, fields, "")
        return read

    return register


def _entry(read: Callable[[DatasetOptions], Any], fields: tuple[str, ...], layout: str) -> DatasetEntry:
    if unknown := [field for field in fields if field not in FIELDS]:
        raise UserError(f"{read.__module__}.{read.__name__}: no field {unknown[0]!r}; {nearest(unknown[0], FIELDS)}")
    return DatasetEntry(read, tuple(sorted({*fields, *(("dir",) if layout else ())})), layout)


def names(inputs: str, field: str = "") -> tuple[str, ...]:
    """Return the sorted names of the registered data sets, or of those that read ``field``.

    Data in memory that ``recognize`` registered are left out.
    """
    entries = DATASETS[inputs].items()
    return tuple(
        sorted(n for n, entry in entries if not n.startswith(IN_MEMORY) and (not field or field in entry.fields))
    )


def find(inputs: str, name: str) -> DatasetEntry | None:
    """Return the entry of the data set ``name``; None if there is none."""
    return DATASETS[inputs][name] if name in DATASETS[inputs] else _FALLBACKS.get(inputs)


def ignores(inputs: str, name: str, field: str) -> bool:
    """Return whether the data set ``name`` is known not to read a field."""
    entry = find(inputs, name)
    return entry is not None and field not in entry.fields


def read_dataset(inputs: str, options: DatasetOptions) -> Any:
    """Read the data set ``options.name``.

    Raises:
        UserError: there is no such data set, it needs a folder, or its function raises.
    """
    return _find_entry(inputs, options).read(options)


def load_dataset(inputs: str, options: DatasetOptions) -> Any:
    """Return the data set ``options.name``, cached from the last call if its files are unchanged.

    Raises:
        UserError: as ``read_dataset``.
    """
    entry = _find_entry(inputs, options)
    return _load_cached(folder_stamp(options.folder) if entry.layout else "", entry, options)


@functools.lru_cache(maxsize=1)  # shared by the runs of a comparison, which do not change it
def _load_cached(_: str, entry: DatasetEntry, options: DatasetOptions) -> Any:
    return entry.read(options)


def _find_entry(inputs: str, options: DatasetOptions) -> DatasetEntry:
    name, entry = options.name, find(inputs, options.name)
    if entry is None:
        known = nearest(name, DATASETS[inputs])
        raise UserError(f"config.data.name={name!r} has no {inputs}; {known}; {IMPORT_HINT}")
    if entry.layout and not options.folder:
        raise UserError(f"config.data.name={name} needs files; set config.data.dir to a path with {entry.layout}")
    return entry
