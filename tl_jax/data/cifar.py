"""Prepare CIFAR-10 and CIFAR-100 as TFDS folders from the published binary archives, without TensorFlow.

TFDS' own builders read their archives with ``tf.io.gfile``. This builder uses tarfile and Pillow, and writes the
same features, ids, order and PNG images (lossless), in array_record files that ``tfds.data_source`` and
``tfds.builder_from_directory`` read.
"""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm

from tl_jax.utils.download import fetch, locked, open_tar
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import require_extra
from tl_jax.utils.json_files import read_json

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VERSION = "3.0.2"  # that of TFDS' own builders, which tfds.data_source expects
SIDE = 32  # pixels
PIXELS = 3 * SIDE * SIDE  # bytes of an image: planes of red, green and blue
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/"
CITATION = "Alex Krizhevsky: Learning multiple layers of features from tiny images. Technical report, 2009."


class LabelFeature(NamedTuple):
    """One label per image: a byte of the record, in the order of ``Archive.labels``."""

    feature: str
    file: str  # class names, one per line
    classes: int


class Archive(NamedTuple):
    """Source and content of a published archive. A record is one byte per label, then ``PIXELS`` bytes."""

    file: str
    digest: str  # as in TFDS' url_checksums
    folder: str  # inside the archive
    splits: dict[str, tuple[str, ...]]
    labels: tuple[LabelFeature, ...]


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        (LabelFeature("label", "batches.meta.txt", 10),),
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        (
            LabelFeature("coarse_label", "coarse_label_names.txt", 20),
            LabelFeature("label", "fine_label_names.txt", 100),
        ),
    ),
}


class ArchiveContent(NamedTuple):
    """Content of an archive: records (N, labels + PIXELS) uint8 by split, class names by feature."""

    records: dict[str, np.ndarray]
    names: dict[str, list[str]]


def prepare(name: str, data_dir: Path, *, url: str | None = None, digest: str | None = None) -> Path:
    """Return the TFDS folder ``data_dir/name/VERSION`` of a data set; create it if it is missing.

    The archive (170 MB) is kept in ``data_dir/downloads``. Creating the folder takes about 30 s, 0.5 GB of memory and
    150 MB of disk; it is created completely or not at all. Read it with
    ``tfds.builder_from_directory(folder).as_data_source("train")`` or ``tfds.data_source(name, data_dir=data_dir)``:
    examples have ``image`` (32, 32, 3) uint8 RGB, ``label`` int, ``id`` bytes, for cifar100 also ``coarse_label`` int.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: folder of TFDS data sets; a complete version of the data set in it is used as it is.
        url: address of the binary archive, if not the publisher's.
        digest: hash of the archive as ``fetch`` takes it, if it is not the published one.

    Raises:
        UserError: an unknown name, a failed download, a damaged archive or one of another layout, or a folder that
            blocks the result or cannot be written.
    """
    if name not in ARCHIVES:
        raise UserError(f"no builder for data set {name!r}; {nearest(name, ARCHIVES)}")
    data_dir, archive = Path(data_dir), ARCHIVES[name]
    if existing := find_prepared(name, data_dir):
        return existing
    folder = data_dir / name / VERSION
    with locked(folder):
        if existing := find_prepared(name, data_dir):  # another process made it meanwhile
            return existing
        if folder.exists():
            raise UserError(f"{folder}: no complete array_record data set of {name}; move it away to create it again")
        for stale in folder.parent.glob(f"incomplete.*_{VERSION}"):  # TFDS' name of an unfinished folder
            shutil.rmtree(stale)  # its writer was killed, as we hold the lock
        url = url or HOMEPAGE + archive.file
        file = data_dir / "downloads" / Path(urlsplit(url).path).name
        content = read_archive(fetch(url, file, digest or archive.digest), archive)
        try:
            _write(name, data_dir, archive, content)
        except OSError as error:
            raise UserError(f"cannot write {folder} ({error}); free disk space, or choose another folder") from error
    return folder


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Return the folder of a complete array_record version of a data set: ``VERSION``, else the newest, else None."""
    versions = [path for path in data_dir.glob(f"{name}/*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    versions.sort(key=lambda path: (path.name == VERSION, *map(int, path.name.split("."))), reverse=True)
    return next((path for path in versions if _is_complete(name, path)), None)


def _is_complete(name: str, folder: Path) -> bool:
    """Return whether ``folder`` has all the shards of its dataset_info.json, each with all its records."""
    with require_extra("tfds"):
        from array_record.python.array_record_module import ArrayRecordReader

    try:
        splits = read_json(folder / "dataset_info.json")["splits"]
        lengths = {str(split["name"]): [int(length) for length in split["shardLengths"]] for split in splits}
    except (UserError, ValueError, KeyError, TypeError, OverflowError):
        return False
    existing = set(os.listdir(folder))  # excludes paths outside the folder
    shards = {
        f"{name}-{split}.array_record-{i:05d}-of-{len(shards):05d}": length
        for split, shards in lengths.items()
        for i, length in enumerate(shards)
    }
    # A damaged or missing shard has 0 records.
    complete = existing.issuperset(shards) and all(
        ArrayRecordReader(str(folder / shard)).num_records() == length for shard, length in shards.items()
    )
    return complete and {"train", "test"} <= set(lengths) and "features.json" in existing


def read_archive(path: Path, archive: Archive) -> ArchiveContent:
    """Read the records and class names of a binary archive, without writing to disk.

    Raises:
        UserError: the archive is damaged or has another layout.
    """
    files = _read_members(path, archive.folder)

    def member(name: str) -> bytes:
        if name not in files:
            raise _wrong_layout(path, f"has no {archive.folder}/{name}")
        return files[name]

    width = len(archive.labels) + PIXELS
    records = {}
    for split, names in archive.splits.items():
        data = b"".join(map(member, names))
        if not data or len(data) % width:
            raise _wrong_layout(path, f"has {len(data)} bytes of {split} images, no multiple of {width}")
        records[split] = np.frombuffer(data, np.uint8).reshape(-1, width)
    classes = {}
    for i, labels in enumerate(archive.labels):
        classes[labels.feature] = [
            line.strip() for line in member(labels.file).decode(errors="replace").splitlines() if line.strip()
        ]
        highest = max(int(split[:, i].max()) for split in records.values())
        if len(classes[labels.feature]) != labels.classes or highest >= labels.classes:
            counts = f"{len(classes[labels.feature])} names and labels up to {highest}"
            raise _wrong_layout(path, f"has {counts} in {labels.file}, expected {labels.classes} classes")
    return ArchiveContent(records, classes)


def _read_members(path: Path, folder: str) -> dict[str, bytes]:
    """Return name -> content of the regular files in ``folder`` of a tar.gz."""
    files = {}
    with open_tar(path) as tar:
        for member in tar:
            parent, _, name = member.name.removeprefix("./").rpartition("/")
            if parent == folder and member.isfile() and (stream := tar.extractfile(member)):
                files[name] = stream.read()
    return files


def _wrong_layout(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; pass the url of the archive of the *binary* version, or omit url and digest")


def _write(name: str, data_dir: Path, archive: Archive, content: ArchiveContent) -> None:
    """Write the data set with TFDS' own writer, to incomplete.*_VERSION, which is then renamed to VERSION."""
    with require_extra("tfds"):
        import tensorflow_datasets as tfds

    total = sum(map(len, content.records.values()))
    with tqdm(total=total, desc=f"preparing {name}", unit=" images", mininterval=0.5, leave=False) as bar:
        builder = _builder(name, archive, content, bar)(data_dir=data_dir, file_format="array_record")
        unused = data_dir / "downloads"  # TFDS creates it without any download
        config = tfds.download.DownloadConfig(try_download_gcs=False, extract_dir=unused)
        tfds.disable_progress_bar()  # replaced by ours
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=config)
        finally:
            tfds.enable_progress_bar()


def _builder(
    set_name: str, archive: Archive, content: ArchiveContent, bar: tqdm
) -> "type[tfds.core.GeneratorBasedBuilder]":
    """Return a TFDS builder class of the content, not registered because TFDS has one of that name."""
    with require_extra("tfds"):
        import tensorflow_datasets as tfds

    class Cifar(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(SIDE, SIDE, 3))}
            features |= {key: tfds.features.ClassLabel(names=names) for key, names in content.names.items()}
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{set_name}, made by tl_jax from {archive.file}",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage=HOMEPAGE + "cifar.html",
                citation=CITATION,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in archive.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, record in enumerate(content.records[split]):
                values, planes = np.split(record, [len(archive.labels)])
                labels = {key: int(value) for key, value in zip(content.names, values, strict=True)}
                # As a Pillow image: TFDS would encode an array with TensorFlow.
                image = Image.fromarray(planes.reshape(3, SIDE, SIDE).transpose(1, 2, 0).copy())
                yield i, {"id": f"{split}_{i:05d}", "image": image} | labels
                bar.update()

    return Cifar
