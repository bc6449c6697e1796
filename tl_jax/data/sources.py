"""Labelled pictures by name: TFDS sets (read without TensorFlow), scikit-learn's digits, and a generator for tests."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from tl_jax.data import cifar
from tl_jax.errors import UserError

TEST_SHARE = 1 / 3  # of sets that come without a test part
SPLIT_SEED = 0  # of that cut: the same test part whatever the seed of the run


class Split(NamedTuple):
    """Pictures uint8 (N, H, W, 3), RGB, and labels int32 (N,) in [0, K)."""

    images: np.ndarray
    labels: np.ndarray


class Source(NamedTuple):
    """A data set before any part is cut for validation; ``classes`` holds K names."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def load(name: str, data_dir: str = "", size: int = 0) -> Source:
    """Load a data set by name.

    Args:
        name: "digits" (scikit-learn's, embedded), "gratings" (drawn by a generator), or any TFDS image set with the
            features ``image`` and ``label``, such as "cifar10".
        data_dir: TFDS folder; empty for TFDS' own default.
        size: side in pixels to which pictures of differing sizes are resized and cropped.

    Raises:
        UserError: the set is absent and cannot be made or downloaded; the message says how to get it.
    """
    if name == "digits":
        return digits()
    if name == "gratings":
        return gratings()
    return tfds_source(name, data_dir, size)


def digits() -> Source:
    """Return the 1,797 8x8 digits bundled with scikit-learn (test part of the UCI set), a third of them for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    return cut_test(Split(images, bunch.target.astype(np.int32)), tuple(str(i) for i in range(10)))


def gratings(classes: int = 10, train: int = 512, test: int = 128, size: int = 32) -> Source:
    """Draw striped pictures whose class is the direction of the stripes; phase, colour and noise are random."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size

    def draw(n: int) -> Split:
        labels = np.arange(n) % classes
        angle = np.pi * labels / classes
        along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
        wave = np.sin(2 * np.pi * (4 * along + rng.random((n, 1, 1))))
        images = (
            128 + 60 * wave[..., None] * rng.uniform(0.3, 1.0, (n, 1, 1, 3)) + rng.normal(0, 15, (n, size, size, 3))
        )
        return Split(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Source(draw(train), draw(test), tuple(f"{180 * k // classes} degrees" for k in range(classes)))


def cut_test(everything: Split, classes: tuple[str, ...]) -> Source:
    """Cut a test part, the same at every call, from a set that has none; classes keep their shares."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(everything.labels))
    train, test = train_test_split(
        rows, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=everything.labels, shuffle=True
    )
    parts = (Split(everything.images[r], everything.labels[r]) for r in (np.sort(train), np.sort(test)))
    return Source(*parts, classes=classes)


def tfds_source(name: str, data_dir: str, size: int) -> Source:
    """Read a prepared TFDS set; CIFAR-10 and CIFAR-100 are prepared on the first use."""
    builder = _tfds_builder(name, data_dir)
    for feature in ("image", "label"):
        if feature not in builder.info.features:
            have = ", ".join(builder.info.features)
            raise UserError(f"data set {name!r} has no feature {feature!r} (it has {have}); choose an image set")
    classes = tuple(builder.info.features["label"].names)
    train = _read(builder, "train", size)
    other = next((s for s in ("test", "validation") if s in builder.info.splits), None)
    if other is None:
        logging.info("%s has no test part: a third of train is cut for it", name)
        return cut_test(train, classes)
    return Source(train, _read(builder, other, size), classes)


def _tfds_builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"no folder {data_dir}; check --config.data.dir")
    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if name in cifar.ARCHIVES:
        return tfds.builder_from_directory(cifar.prepare(name, folder))
    found = sorted((folder / name).glob("**/dataset_info.json"))
    if not found:
        raise UserError(
            f"no data set {name!r} under {folder}; prepare it once where TensorFlow is installed, with python -c "
            f"\"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{folder}', "
            "file_format='array_record').download_and_prepare()\", or point --config.data.dir at a TFDS folder with it"
        )
    builder = tfds.builder_from_directory(found[-1].parent)
    if builder.info.file_format.value != "array_record":
        kind = builder.info.file_format.value
        raise UserError(f"{found[-1].parent} holds {kind} files; prepare it again with file_format='array_record'")
    return builder


def _read(builder: Any, split: str, size: int) -> Split:
    """Decode a whole split into memory.

    The records are read and parsed directly: TFDS' own random access takes four times as long an example, which is
    half a minute for CIFAR-10.
    """
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    images, labels = [], []
    for file in builder.info.splits[split].filepaths:
        reader = ArrayRecordReader(str(file))
        for record in reader.read(0, reader.num_records()):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            images.append(_decode(feature["image"].bytes_list.value[0]))
            labels.append(feature["label"].int64_list.value[0])
    expected = builder.info.splits[split].num_examples
    if len(labels) != expected:
        raise UserError(f"{builder.data_dir} has {len(labels)} of {expected} {split} examples; prepare it again")
    if len({image.shape for image in images}) > 1:
        images = [_fit(image, size) for image in images]
    return Split(np.stack(images), np.asarray(labels, np.int32))


def _decode(encoded: bytes) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 (H, W, 3); grey is repeated into three channels."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the shortest side to ``size`` and cut the centre, so that pictures of differing sizes stack."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR))
