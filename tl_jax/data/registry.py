"""Data sets by name, each with the fields of the configuration that it reads.

A data set is one function: ``register_dataset`` makes it known under the name that ``config.data.name`` has.
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
# Those of ``config.data`` that mean something for some data sets only.
FIELDS = ("columns", "dir", "group", "label", "max_pixels", "outside", "range", "text", "windows")
IN_MEMORY = "in_memory_"  # begins the names of what is in memory, see ``recognize``
IMAGE_FILES = ("dir", "max_pixels", "range")  # what decides on the pixels of image files, and where these are


@dataclasses.dataclass(frozen=True)
class DataConfig(Options):
    """Where examples come from, and which of them are used."""

    name: str = option("cifar10", "data set: one that is registered, or any TFDS set")
    dir: str = option("", "TFDS folder (empty: TFDS' own default), pictures as data.name says, or files of texts")
    generate: bool = option(False, "where data.dir is empty, draw pictures, or take installed texts (for smoke runs)")
    label: str = option("label", "column with the label of a text, or in index.csv of a picture (empty: its folder)")
    validation: float = option(
        0.1,
        "share of train held out, stratified by class; 0 for none; a part that the set brings is taken whole",
        low=0.0,
        high=0.9,
    )
    train_examples: int = option(0, "random training examples kept, stratified by class; 0 for all", low=0)
    per_class: int = option(0, "random training examples kept of each class; 0 for all", low=0)
    test_examples: int = option(
        0, "test examples used, drawn stratified by class, the same for every seed; 0 for all", low=0
    )


@dataclasses.dataclass(frozen=True)
class ImageDataConfig(DataConfig):
    """The same of images, and how their files become pixels."""

    group: str = option(
        "",
        "column of index.csv: images of one patient or source stay in one split; without a column of that name, "
        "study: DICOM files by StudyInstanceUID, none: no groups; empty: DICOM files by PatientID",
    )
    fit: str = option(
        "crop",
        "how pictures of differing sizes become squares: their centre, the whole between black borders, or distorted",
        ("crop", "pad", "stretch"),
    )
    windows: tuple[Any, ...] = option(
        ("lung", "mediastinum", "bone"),
        f"of Hounsfield units, for DICOM, as the three channels or one for all: {', '.join(WINDOWS)}, "
        "or pairs (level, width); empty takes the file's own",
    )
    range: tuple[float, ...] = option(
        (),
        "pair (low, high) of values that become black and white, for images with more than 8 bits; "
        "empty takes the least and the largest value of the data set",
    )
    max_pixels: int = option(0, "pixels of an image at most; 0 takes Pillow's limit, 89,478,485", low=0)
    outside: bool = option(
        False,
        "read files outside data.dir, too, that an index or annotations name, or links below a class folder lead to",
    )
    gigabytes: float = option(
        16.0, "of decoded pictures kept on disk; a set that takes more is decoded each time it is read", low=0.0
    )


@dataclasses.dataclass(frozen=True)
class TextDataConfig(DataConfig):
    """The same of texts, and where they stand in their files."""

    text: tuple[str, ...] = option(("text",), "columns that hold the text, or the two of a pair")
    columns: tuple[str, ...] = option(
        (), "names of all columns, for files of texts whose first line does not have them"
    )


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """What a configuration says about a data set; each set takes what it needs.

    Attributes:
        name: of the data set, for functions that several names share.
        folder: ``config.data.dir``, a folder or file; empty if none is given.
        size: side in pixels into which images of differing sizes are fitted.
        max_bytes: of decoded images that may be kept on disk; a larger set is decoded each time it is read.
        decoding: how image files become pixels.
        fit: "crop", "pad" or "stretch", see ``dataset.fit_image``.
        group: what keeps images together, see ``image_list.with_dicom_groups``.
        classes: of boxes, in their order; empty takes those of the training split.
        columns: where texts and labels stand, in an index of images, too.
        shape: (H, W) that all images are fitted into; None keeps them as they are if they have one size.
        as_one_split: whether all examples are there to be tested on, so that none is held out and one class will do.
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
        """How much is held out of a set without a test split, see ``dataset.hold_out``."""
        return "" if self.as_one_split else "fifth"


class DatasetEntry(NamedTuple):
    """A data set that has a name.

    Attributes:
        read: makes the ``Dataset``, or for people the ``faces.FaceSet``.
        fields: of ``FIELDS``, those that it reads.
        layout: what must lie in ``config.data.dir``, in words; empty if that may be empty.
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
    """Return a decorator that makes a function known as a data set; it takes ``DatasetOptions``.

    Args:
        *names: of the data set; a task with other inputs may have another set of the same name.
        inputs: "images", "boxes" or "texts", for a function that returns a ``Dataset``; "people" for a ``FaceSet``.
        fields: of ``config.data``, those of ``FIELDS`` that it reads; a run that sets another one is refused.
        layout: what must lie in ``config.data.dir``, in words, for a set that cannot do without; it reads "dir", and
            is read anew if a file in there changes.
    """

    def register(read: _F) -> _F:
        for name in names:
            DATASETS[inputs].add(name, _entry(read, fields, layout), read.__module__)
        return read

    return register


def register_fallback(inputs: str, fields: tuple[str, ...]) -> Callable[[_F], _F]:
    """Return a decorator of the function that reads the data sets whose names are in no registry, those of TFDS."""

    def register(read: _F) -> _F:
        _FALLBACKS[inputs] = _entry(read, fields, "")
        return read

    return register


def _entry(read: Callable[[DatasetOptions], Any], fields: tuple[str, ...], layout: str) -> DatasetEntry:
    if unknown := [field for field in fields if field not in FIELDS]:
        raise UserError(f"{read.__module__}.{read.__name__}: no field {unknown[0]!r}; {nearest(unknown[0], FIELDS)}")
    return DatasetEntry(read, tuple(sorted({*fields, *(("dir",) if layout else ())})), layout)


def names(inputs: str, field: str = "") -> tuple[str, ...]:
    """Return the names of the registered data sets, sorted; of those that read a field, if one is given.

    What ``recognize`` registered of this process is not among them: nobody can name it.
    """
    entries = DATASETS[inputs].items()
    return tuple(
        sorted(n for n, entry in entries if not n.startswith(IN_MEMORY) and (not field or field in entry.fields))
    )


def find(inputs: str, name: str) -> DatasetEntry | None:
    """Return what reads the data set ``name``, None if nothing does."""
    return DATASETS[inputs][name] if name in DATASETS[inputs] else _FALLBACKS.get(inputs)


def ignores(inputs: str, name: str, field: str) -> bool:
    """Whether the data set ``name`` does not read a field; no field is known to be ignored if nothing reads the set."""
    entry = find(inputs, name)
    return entry is not None and field not in entry.fields


def read_dataset(inputs: str, options: DatasetOptions) -> Any:
    """Return the data set ``options.name``, read anew.

    Raises:
        UserError: no such set, or none without a folder; or what its function raises.
    """
    return _find_entry(inputs, options).read(options)


def load_dataset(inputs: str, options: DatasetOptions) -> Any:
    """Return the data set ``options.name``: the copy of the last call, if nothing has changed since.

    Raises:
        UserError: as ``read_dataset``.
    """
    entry = _find_entry(inputs, options)
    return _load_cached(folder_stamp(options.folder) if entry.layout else "", entry, options)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _load_cached(_: str, entry: DatasetEntry, options: DatasetOptions) -> Any:
    return entry.read(options)


def _find_entry(inputs: str, options: DatasetOptions) -> DatasetEntry:
    name, entry = options.name, find(inputs, options.name)
    if entry is None:
        known = nearest(name, DATASETS[inputs])
        raise UserError(f"config.data.name={name!r} has no {inputs}; {known}; {IMPORT_HINT}")
    if entry.layout and not options.folder:
        raise UserError(f"config.data.name={name} needs files; pass config.data.dir=PATH, with {entry.layout}")
    return entry
