"""Labelled images: prepared TFDS sets (read without TensorFlow), scikit-learn's digits, TensorFlow's flowers."""

import dataclasses
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from tl_jax.data import cifar, decode, image_folder, registry, tfds_files
from tl_jax.data.dataset import (
    DECODED_BYTES,
    Dataset,
    Split,
    cached_array,
    cached_or_encoded,
    find_splits,
    fit_image,
    split_test,
)
from tl_jax.data.decode import DEFAULT_DECODING, Decoding
from tl_jax.data.labels import class_indices
from tl_jax.data.registry import IMAGE_FILES, DatasetOptions, register_dataset, register_fallback
from tl_jax.data.text import Columns
from tl_jax.data.value_range import ValueRange
from tl_jax.utils import download
from tl_jax.utils.download import cache_dir
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import require_extra
from tl_jax.utils.registry import IMPORT_HINT

MAX_NAME_BYTES = 128  # of a name at most
FLOWERS = "http://download.tensorflow.org/example_images/flower_photos.tgz"  # 228,813,984 bytes
FLOWERS_DIGEST = "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"  # as in TFDS' tf_flowers


def load(
    name: str,
    data_dir: str = "",
    size: int = 224,
    max_bytes: float = DECODED_BYTES,
    windows: tuple[Any, ...] = (),
    group: str = "",
    label: str = "label",
    fit: str = "crop",
    value_range: ValueRange | None = None,
    max_pixels: int = 0,
    outside: bool = False,
) -> Dataset:
    """Load a data set of images by name.

    Args:
        name: of a registered data set, see ``registry.register_dataset``: "digits" (scikit-learn's, embedded),
            "gratings" and "shapes" (drawn), "folder" (the class folders with pictures under ``data_dir``, see
            ``image_folder.read_folder``), "flowers" (or without ``data_dir`` the 3,670 flower photos of TensorFlow, a
            download of 229 MB), "index" (pictures that an ``index.csv`` lists, see ``image_list.load_index``), "npz"
            and "organamnist" (a file as MedMNIST has them, and its CT slices, a download of 38 MB), ...; or of any
            TFDS image set with the features ``image`` and ``label``, such as "cifar10".
        data_dir: folder with the pictures, an npz file, or TFDS folder; empty for TFDS' own default.
        size: side in pixels into which pictures of differing sizes are fitted.
        max_bytes: of decoded pictures that may be kept on disk; a larger set is decoded each time it is read.
        windows: of CT slices, in Hounsfield units, see ``dicom.read_dicom``.
        group: what keeps images together: of DICOM files, or a column of ``index.csv``, see
            ``image_list.with_dicom_groups``.
        label: the column with the classes of an index; empty takes the name of a file's folder.
        fit: "crop", "pad" or "stretch", see ``dataset.fit_image``.
        value_range: of images with more than 8 bits; None takes the ends of the whole set.
        max_pixels: of an image; 0 for Pillow's limit.
        outside: whether files outside the data folder are read, see ``walker.PathGuard``.

    Raises:
        UserError: the set is absent and cannot be made or downloaded; the message says how to get it.
    """
    decoding = Decoding(windows, value_range, max_pixels, outside=outside)
    columns = Columns(label=label)
    options = DatasetOptions(name, data_dir, size, max_bytes, decoding, fit, group, columns=columns)
    return registry.read_dataset("images", options)


@register_dataset("flowers", fields=image_folder.FIELDS)
def load_flowers(options: DatasetOptions) -> Dataset:
    """TensorFlow's 3,670 photos of five flowers, downloaded on the first use (229 MB), or a folder like them."""
    return image_folder.load_folder(
        options if options.folder else dataclasses.replace(options, folder=str(download_flowers()))
    )


def download_flowers() -> Path:
    """Return the class folders of TensorFlow's flower photos, downloaded and unpacked on the first use."""
    hint = "or pass config.data.dir=FOLDER, with FOLDER/CLASS/PICTURE"
    return (
        download.fetch_archive(FLOWERS, FLOWERS_DIGEST, cache_dir() / "data" / "flowers", hint=hint) / "flower_photos"
    )


def digits() -> Dataset:
    """Return the 1,797 8x8 digits bundled with scikit-learn (test part of the UCI set), a third of them for testing."""
    rows = cached_array((), ("digits", version("scikit-learn")), (1797, 65), np.uint8, lambda: iter([_digit_rows()]))
    grey = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    return split_test("digits", Split(images, rows[:, 64].astype(np.int32)), tuple(str(i) for i in range(10)))


@register_dataset("digits")
def load_digits(options: DatasetOptions) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, 8 pixels wide."""
    return digits()


def _digit_rows() -> np.ndarray:
    """Return the 64 grey values of each digit, 0 to 16, and which it is: (1797, 65)."""
    from sklearn.datasets import load_digits  # takes 1.4 s

    bunch = cast(Any, load_digits())  # a pair only where ``return_X_y`` asks for one
    return np.concatenate([bunch.data, bunch.target[:, None]], axis=1)


@register_fallback("images", fields=IMAGE_FILES)
def load_prepared(options: DatasetOptions) -> Dataset:
    """A prepared image set of TFDS, whose name nobody has registered."""
    decoding = options.decoding._replace(windows=())
    return read_tfds(options.name, options.folder, options.size, options.max_bytes, options.fit, decoding)


def read_tfds(
    name: str,
    data_dir: str,
    size: int,
    max_bytes: float = DECODED_BYTES,
    fit: str = "crop",
    decoding: Decoding = DEFAULT_DECODING,
) -> Dataset:
    """Read a prepared TFDS set; CIFAR-10 and CIFAR-100 are prepared on the first use."""
    builder = open_prepared(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        available = ", ".join(features)
        raise UserError(f"data set {name!r} has no image and class label (it has {available}); choose an image set")
    names = list(builder_splits(builder, name).values())
    title, classes = f"{name}:{builder.info.version}", tfds_files.class_names(builder, "label")
    decoding = _with_value_range(builder, names, decoding)
    train, *others = (_read_split(builder, split, size, max_bytes, fit, decoding=decoding) for split in names)
    class_indices(train.labels, len(classes), f"{title}, {names[0]}")
    # Some test splits, ImageNet's for one, are published without labels.
    named_splits = zip(names[1:], others, strict=True)
    labelled = {split: split_data for split, split_data in named_splits if (split_data.labels >= 0).all()}
    if not labelled:
        return split_test(title, train, classes)._replace(value_range=decoding.value_range)
    test_name, *remaining = labelled
    validation = labelled[remaining[0]] if remaining else None
    return Dataset(title, train, labelled[test_name], classes, test_name, validation, decoding.value_range)


def builder_splits(builder: Any, name: str) -> dict[str, str]:
    """Return the set's own name of each split of a prepared TFDS set: of train, then of test and validation.

    Raises:
        UserError: no train split, or two that stand for the same one, see ``dataset.find_splits``.
    """
    by_split = find_splits(builder.info.splits, f"data set {name!r}")
    if "train" not in by_split:
        available = ", ".join(builder.info.splits)
        raise UserError(f"data set {name!r} has no train part (it has {available}); choose another set")
    return {split: by_split[split] for split in ("train", "test", "validation") if split in by_split}


def read_tfds_names(
    name: str, data_dir: str, size: int, max_bytes: float = DECODED_BYTES, decoding: Decoding = DEFAULT_DECODING
) -> tuple[str, Split, ValueRange | None]:
    """Read the train part of a prepared TFDS set whose labels are names.

    Returns:
        The title, pictures with labels str (N,), and the range of values of images with more than 8 bits.

    Raises:
        UserError: as ``read_tfds``.
    """
    builder = open_prepared(name, data_dir)
    split = builder_splits(builder, name)["train"]
    decoding = _with_value_range(builder, [split], decoding)
    examples = _read_split(builder, split, size, max_bytes, name_bytes=MAX_NAME_BYTES, decoding=decoding)
    names = np.char.decode(np.ascontiguousarray(examples.labels).view(f"S{MAX_NAME_BYTES}")[:, 0], "utf-8")
    return f"{name}:{builder.info.version}", Split(examples.inputs, names), decoding.value_range


def open_prepared(name: str, data_dir: str, inputs: str = "images") -> Any:
    """Return the TFDS builder of a set that lies prepared in a folder, or is prepared now (CIFAR).

    Args:
        name: of the set.
        data_dir: the folder; empty for TFDS' own default.
        inputs: whose registered sets the name may have been meant for, see ``registry.DATASETS``.

    Raises:
        UserError: it does not, or its files are of a format that needs TensorFlow; the message says how to prepare it.
    """
    with require_extra("tfds"):
        from tensorflow_datasets.core import constants

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"no folder {data_dir}; check config.data.dir")
    root = Path(data_dir or constants.DATA_DIR).expanduser()
    if root.name == name or (root / "dataset_info.json").is_file():
        raise UserError(f"{root} is the set itself; pass the folder that holds {name}/ as config.data.dir")
    if name in cifar.ARCHIVES:
        return tfds_files.open_builder(cifar.prepare(name, root))
    info_files = sorted((root / name).glob("**/dataset_info.json"), key=lambda path: _parse_version(path.parent.name))
    if not info_files:
        available = {
            *registry.names(inputs),
            *cifar.ARCHIVES,
            *(path.relative_to(root).parts[0] for path in root.glob("*/**/dataset_info.json")),
        }
        raise UserError(
            f"no data set {name!r} under {root}; {nearest(name, available)}; {IMPORT_HINT}; or prepare it once "
            'where TensorFlow is installed: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\""
        )
    return tfds_files.open_builder(info_files[-1].parent)


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isascii() and part.isdigit())


def _with_value_range(builder: Any, splits: Sequence[str], decoding: Decoding) -> Decoding:
    """Return ``decoding`` with the range of values of a set, see ``decode.with_record_range``."""
    records = [tfds_files.Records(builder, split) for split in splits]
    files = [file for shard_records in records for file in shard_records.files]
    dtype = builder.info.features["image"].np_dtype
    encoded = lambda: (record.content("image") for shard_records in records for record in shard_records)  # noqa: E731
    title = f"{builder.info.name}:{builder.info.version}"
    return decode.with_record_range(title, dtype, files, encoded, sum(map(len, records)), decoding)


def _read_split(
    builder: Any,
    split: str,
    size: int,
    max_bytes: float,
    mode: str = "crop",
    name_bytes: int = 0,
    decoding: Decoding = DEFAULT_DECODING,
) -> Split:
    """Return a whole split, pictures of differing sizes fitted into ``size``; what was decoded once is kept on disk.

    Labels that are names come as ``name_bytes`` bytes each, uint8 (N, name_bytes); others int32 (N,).
    """
    feature, records = builder.info.features["image"], tfds_files.Records(builder, split)
    height, width = feature.shape[:2]
    differs = None in (height, width) or (mode != "crop" and height != width)
    shape = (size, size, 3) if differs else (height, width, 3)
    floats = feature.np_dtype == np.float32

    def read_labels() -> Iterator[np.ndarray]:
        if not name_bytes:
            return (np.asarray([record.number("label")]) for record in records)
        return (_name_bytes(record, name_bytes) for record in records)

    def decode_record(record: tfds_files.Record) -> np.ndarray:
        image = decode.decode_record(record.content("image"), floats, decoding, record.where)
        if not differs and image.shape != shape:
            sizes = f"{image.shape[1]}x{image.shape[0]} pixels, and features.json says {width}x{height}"
            raise UserError(f"{record.where} has {sizes}; prepare the data set again")
        return image if image.shape == shape else fit_image(image, size, mode)

    options = (mode, *([decoding.value_range] if decoding.value_range else []))
    decode_all = lambda: (decode_record(record)[None] for record in records)  # noqa: E731
    decode_row = lambda row: decode_record(records[row])  # noqa: E731
    if not differs:
        decode_row(0)  # before room is made for as much as features.json claims
    images = cached_or_encoded(records.files, (len(records), *shape), decode_all, decode_row, max_bytes, options)
    label_spec = ((len(records), name_bytes), np.uint8) if name_bytes else ((len(records),), np.int64)
    labels = cached_array(records.files, "labels", *label_spec, read_labels)
    if not name_bytes:
        labels = class_indices(labels, builder.info.features["label"].num_classes, records.where, allow_missing=True)
    return Split(images, labels)


def _name_bytes(record: tfds_files.Record, length: int) -> np.ndarray:
    """Return a label that is a name in UTF-8 as uint8 (1, length), filled up with zeros."""
    name = record.content("label")
    try:
        name.decode()
    except UnicodeDecodeError:
        raise UserError(f"{record.where} has the label {name[:40]!r}, which is not UTF-8; mend it") from None
    if len(name) > length:
        raise UserError(f"{record.where} has a label of {len(name):,} bytes, more than {length}; shorten it")
    return np.frombuffer(name.ljust(length, b"\0"), np.uint8)[None]
