"""Labelled images: prepared TFDS data sets (without TensorFlow), scikit-learn's digits, and TensorFlow's flowers."""

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

MAX_NAME_BYTES = 128  # limit of a label that is a name
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
        name: name of a registered data set, see ``registry.register_dataset``: "digits" (scikit-learn's, embedded),
            "gratings" and "shapes" (synthetic), "folder" (class folders in ``data_dir``, see
            ``image_folder.read_folder``), "flowers" (or without ``data_dir`` the 3,670 flower photos of TensorFlow, a
            download of 229 MB), "index" (images listed in an ``index.csv``, see ``image_list.load_index``), "npz" and
            "organamnist" (a file in MedMNIST's format, and its CT slices, a download of 38 MB), ...; or of any TFDS
            image data set with the features ``image`` and ``label``, such as "cifar10".
        data_dir: folder of the images, an npz file, or TFDS folder; empty for TFDS' default.
        size: side in pixels to which images of different sizes are fitted.
        max_bytes: size limit of decoded images on disk; a larger data set is decoded on every read.
        windows: windows of CT slices in Hounsfield units, see ``dicom.read_dicom``.
        group: grouping of DICOM files, or a column of ``index.csv``, see ``image_list.with_dicom_groups``.
        label: label column of an index; empty uses the name of a file's folder.
        fit: "crop", "pad" or "stretch", see ``dataset.fit_image``.
        value_range: range of images with more than 8 bits; None uses the minimum and maximum of the data set.
        max_pixels: largest number of pixels of an image; 0 for Pillow's limit.
        outside: whether files outside the data folder are read, see ``walker.PathGuard``.

    Raises:
        UserError: the data set is missing and cannot be created or downloaded; it tells how to get it.
    """
    decoding = Decoding(windows, value_range, max_pixels, outside=outside)
    columns = Columns(label=label)
    options = DatasetOptions(name, data_dir, size, max_bytes, decoding, fit, group, columns=columns)
    return registry.read_dataset("images", options)


@register_dataset("flowers", fields=image_folder.FIELDS)
def load_flowers(options: DatasetOptions) -> Dataset:
    """TensorFlow's 3,670 photos of five flowers, downloaded on first use (229 MB), or a folder like them."""
    return image_folder.load_folder(
        options if options.folder else dataclasses.replace(options, folder=str(download_flowers()))
    )


def download_flowers() -> Path:
    """Return the class folders of TensorFlow's flower photos, downloaded and unpacked on first use."""
    hint = "or set config.data.dir to a folder with CLASS/IMAGE"
    return (
        download.fetch_archive(FLOWERS, FLOWERS_DIGEST, cache_dir() / "data" / "flowers", hint=hint) / "flower_photos"
    )


def digits() -> Dataset:
    """Return scikit-learn's 1,797 8x8 digits (test split of the UCI data set), a third of them for testing."""
    rows = cached_array((), ("digits", version("scikit-learn")), (1797, 65), np.uint8, lambda: iter([_digit_rows()]))
    grey = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    return split_test("digits", Split(images, rows[:, 64].astype(np.int32)), tuple(str(i) for i in range(10)))


@register_dataset("digits")
def load_digits(options: DatasetOptions) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, 8 pixels wide."""
    return digits()


def _digit_rows() -> np.ndarray:
    """Return the 64 grey values, 0 to 16, and the class of each digit: (1797, 65)."""
    from sklearn.datasets import load_digits  # takes 1.4 s

    bunch = cast(Any, load_digits())  # a pair only with ``return_X_y``
    return np.concatenate([bunch.data, bunch.target[:, None]], axis=1)


@register_fallback("images", fields=IMAGE_FILES)
def load_prepared(options: DatasetOptions) -> Dataset:
    """A prepared TFDS data set of images with any other name."""
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
    """Read a prepared TFDS data set; CIFAR-10 and CIFAR-100 are prepared on first use."""
    builder = open_prepared(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        available = ", ".join(features)
        raise UserError(f"data set {name!r}: no image and class label (only {available}); choose an image data set")
    names = list(builder_splits(builder, name).values())
    title, classes = f"{name}:{builder.info.version}", tfds_files.class_names(builder, "label")
    decoding = _with_value_range(builder, names, decoding)
    train, *others = (_read_split(builder, split, size, max_bytes, fit, decoding=decoding) for split in names)
    class_indices(train.labels, len(classes), f"{title}, {names[0]}")
    # Some test splits, such as ImageNet's, are published without labels.
    named_splits = zip(names[1:], others, strict=True)
    labelled = {split: split_data for split, split_data in named_splits if (split_data.labels >= 0).all()}
    if not labelled:
        return split_test(title, train, classes)._replace(value_range=decoding.value_range)
    test_name, *remaining = labelled
    validation = labelled[remaining[0]] if remaining else None
    return Dataset(title, train, labelled[test_name], classes, test_name, validation, decoding.value_range)


def builder_splits(builder: Any, name: str) -> dict[str, str]:
    """Return split -> the data set's name of it, of a prepared TFDS data set: train, then test and validation.

    Raises:
        UserError: no train split, or two names of one split, see ``dataset.find_splits``.
    """
    by_split = find_splits(builder.info.splits, f"data set {name!r}")
    if "train" not in by_split:
        available = ", ".join(builder.info.splits)
        raise UserError(f"data set {name!r} has no train split (only {available}); choose another data set")
    return {split: by_split[split] for split in ("train", "test", "validation") if split in by_split}


def read_tfds_names(
    name: str, data_dir: str, size: int, max_bytes: float = DECODED_BYTES, decoding: Decoding = DEFAULT_DECODING
) -> tuple[str, Split, ValueRange | None]:
    """Read the train split of a prepared TFDS data set whose labels are names.

    Returns:
        The title, images with labels str (N,), and the value range of images with more than 8 bits.

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
    """Return the TFDS builder of a prepared data set; CIFAR is prepared on first use.

    Args:
        name: name of the data set.
        data_dir: TFDS folder; empty for TFDS' default.
        inputs: kind of registered data sets to suggest names from, see ``registry.DATASETS``.

    Raises:
        UserError: the data set is not prepared, or in a format that needs TensorFlow; it tells how to prepare it.
    """
    with require_extra("tfds"):
        from tensorflow_datasets.core import constants

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"no folder {data_dir}; check config.data.dir")
    root = Path(data_dir or constants.DATA_DIR).expanduser()
    if root.name == name or (root / "dataset_info.json").is_file():
        raise UserError(f"{root} is the data set itself; set config.data.dir to the folder above {name}/")
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
            'with TensorFlow: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\""
        )
    return tfds_files.open_builder(info_files[-1].parent)


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isascii() and part.isdigit())


def _with_value_range(builder: Any, splits: Sequence[str], decoding: Decoding) -> Decoding:
    """Return ``decoding`` with the value range of a data set, see ``decode.with_record_range``."""
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
    """Return a split, with images of different sizes fitted to ``size``; decoded images are cached on disk.

    Labels that are names become ``name_bytes`` bytes each, uint8 (N, name_bytes); others int32 (N,).
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
            sizes = f"{image.shape[1]}x{image.shape[0]} pixels, but features.json has {width}x{height}"
            raise UserError(f"{record.where} has {sizes}; prepare the data set again")
        return image if image.shape == shape else fit_image(image, size, mode)

    options = (mode, *([decoding.value_range] if decoding.value_range else []))
    decode_all = lambda: (decode_record(record)[None] for record in records)  # noqa: E731
    decode_row = lambda row: decode_record(records[row])  # noqa: E731
    if not differs:
        decode_row(0)  # before allocating what features.json declares
    images = cached_or_encoded(records.files, (len(records), *shape), decode_all, decode_row, max_bytes, options)
    label_spec = ((len(records), name_bytes), np.uint8) if name_bytes else ((len(records),), np.int64)
    labels = cached_array(records.files, "labels", *label_spec, read_labels)
    if not name_bytes:
        labels = class_indices(labels, builder.info.features["label"].num_classes, records.where, allow_missing=True)
    return Split(images, labels)


def _name_bytes(record: tfds_files.Record, length: int) -> np.ndarray:
    """Return a label that is a UTF-8 name as uint8 (1, length), padded with zeros."""
    name = record.content("label")
    try:
        name.decode()
    except UnicodeDecodeError:
        raise UserError(f"{record.where} has the label {name[:40]!r}, which is not UTF-8; correct it") from None
    if len(name) > length:
        raise UserError(f"{record.where} has a label of {len(name):,} bytes, more than {length}; shorten it")
    return np.frombuffer(name.ljust(length, b"\0"), np.uint8)[None]
