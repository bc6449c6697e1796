"""Read prepared TFDS data sets, after checking the content of their files, which TFDS trusts."""

import bisect
import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl_jax.data.labels import MAX_CLASSES, check_class_names
from tl_jax.data.text import read_text
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra
from tl_jax.utils.json_files import read_json

ACTION = "prepare the data set again"
FEATURES = "tensorflow_datasets.core.features."  # TFDS would import any module that a file names
TYPE_KEYS, COUNT_KEYS = ("type", "pythonClassName", "python_class_name"), ("numClasses", "num_classes")
SHARD_KEYS = "shardLengths", "shard_lengths"
# For other dtypes, TFDS asks TensorFlow, if it is installed.
DTYPES = re.compile("bool_?|u?int(8|16|32|64)|b?float(16|32|64)|complex(64|128)|str|string|object_?")
TYPED_FEATURES = ("Audio", "Image", "LabeledImage", "Scalar", "Tensor", "Video")  # features that have a dtype
CHUNK_RECORDS = 1000  # records per read
MAX_REASON = 200  # characters of another library's error


def open_builder(folder: Path) -> Any:
    """Return the TFDS builder of the folder of a data set and version, such as ``mnist/3.0.1``.

    Raises:
        UserError: ``dataset_info.json``, ``features.json`` or class names are missing or damaged, declare too much, or
            point outside the folder; or the files have a format that needs TensorFlow.
    """
    with require_extra("tfds"):
        import tensorflow_datasets as tfds

    folder = Path(folder)
    _check_info(folder / "dataset_info.json")
    _check_features(folder / "features.json")
    try:
        builder = tfds.builder_from_directory(folder)
        # None raises an AttributeError, reported as all errors are.
        kind = builder.info.file_format.value  # pyright: ignore[reportOptionalMemberAccess]
        files = [Path(file) for split in builder.info.splits.values() for file in split.filepaths]
    except Exception as error:  # TFDS raises errors of any kind on damaged files
        raise UserError(f"cannot read the data set in {folder} ({_reason(error)}); {ACTION}") from error
    if kind != "array_record":
        raise UserError(f"{folder} has {kind} files; prepare it again with file_format='array_record'")
    outside = [file for file in files if os.path.normpath(file.parent) != os.path.normpath(folder)]
    if outside:
        raise UserError(f"{folder / 'dataset_info.json'} names {outside[0]}, which is outside its folder; {ACTION}")
    return builder


def _check_info(path: Path) -> None:
    """Refuse a data set that declares more files than its folder has, before TFDS lists them."""
    splits = read_json(path, ACTION).get("splits")
    splits = splits if isinstance(splits, list) else []  # TFDS refuses other types
    lengths = [split.get(key) for split in splits if isinstance(split, dict) for key in SHARD_KEYS]
    claimed = sum(len(shards) for shards in lengths if isinstance(shards, list))
    num_files = len(os.listdir(path.parent))
    if claimed > num_files:
        raise UserError(f"{path} declares {claimed:,} files of records, but its folder has {num_files:,}; {ACTION}")


def _check_features(path: Path) -> None:
    """Refuse features that make TFDS import other modules, or with too many classes."""
    todo = [read_json(path, ACTION)]
    while todo:
        node = todo.pop()
        _check_dtype(path, node)
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                todo.append(value)
            elif key in TYPE_KEYS and not str(value).startswith(FEATURES):
                raise UserError(f"{path} has a feature {str(value)!r} that is not in TFDS; {ACTION}")
            elif key in COUNT_KEYS and not (re.fullmatch("[0-9]{1,7}", str(value)) and int(value) <= MAX_CLASSES):
                raise UserError(f"{path} has {str(value)!r} classes, not a number up to {MAX_CLASSES:,}; {ACTION}")
            elif key == "dtype" and not DTYPES.fullmatch(str(value)):
                raise UserError(f"{path} has the unknown dtype {str(value)!r}; {ACTION}")


def _check_dtype(path: Path, node: Any) -> None:
    """Refuse a feature without the dtype that it needs, for which TFDS would ask TensorFlow, if installed."""
    kind = str(node.get("pythonClassName", "")).rpartition(".")[2] if isinstance(node, dict) else ""
    if kind in TYPED_FEATURES and not any("dtype" in value for value in node.values() if isinstance(value, dict)):
        raise UserError(f"{path} has a feature {kind} without a dtype; {ACTION}")


def class_names(builder: Any, feature: str) -> tuple[str, ...]:
    """Return the class names of a label: from its file, which TFDS ignores if damaged, or numbers."""
    label, file = builder.info.features[feature], Path(builder.data_dir) / f"{feature}.labels.txt"
    names = [line.strip() for line in read_text(file).split("\n")] if file.is_file() else label.names
    names = tuple(filter(None, names))
    check_class_names(names, file)
    if len(names) != label.num_classes or len(set(names)) < len(names):
        raise UserError(f"{file} has {len(set(names)):,} different names of {label.num_classes:,} classes; {ACTION}")
    return names


class Record:
    """One example: feature name -> values; ``where`` is its location for messages."""

    def __init__(self, content: bytes, where: str):
        with require_extra("tfds"):
            from tensorflow_datasets.proto import tf_example_pb2

        self.where = where
        with _reading(where):
            # protobuf creates the class on import of its module.
            message = tf_example_pb2.Example.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
            self.features: Mapping[str, Any] = message.features.feature

    def content(self, name: str) -> bytes:
        """Return a feature that is text or an image, as bytes."""
        return self._first(name, "bytes_list")

    def number(self, name: str) -> int:
        """Return a feature that is an integer."""
        return self._first(name, "int64_list")

    def _first(self, name: str, kind: str) -> Any:
        values = getattr(self.features[name], kind).value if name in self.features else ()
        if len(values) != 1:
            what = "bytes" if kind == "bytes_list" else "an integer"
            raise UserError(f"{self.where}: the feature {name!r} is not {what}; {ACTION}")
        return values[0]


class Records:
    """The records of one split, read and parsed directly, three times as fast as TFDS' own random access.

    Attributes:
        files: files of the records.
        where: their location, for messages.
    """

    def __init__(self, builder: Any, split: str):
        """Open the files of a split; raise a UserError if their number of examples is not the declared one."""
        with require_extra("tfds"):
            from array_record.python.array_record_module import ArrayRecordReader

        info = builder.info.splits[split]
        self.where = f"{builder.info.name}:{builder.info.version}, {split}"
        self.files = [str(file) for file in info.filepaths]
        if missing := [file for file in self.files if not os.path.isfile(file)]:
            raise UserError(f"no file {missing[0]} ({len(missing)} of {len(self.files)} are missing); {ACTION}")
        self._readers = []
        for file in self.files:
            with _reading(file):
                self._readers.append(ArrayRecordReader(file))
        self._ends = list(itertools.accumulate(reader.num_records() for reader in self._readers))
        if not len(self) or len(self) != info.num_examples:
            raise UserError(f"{builder.data_dir} has {len(self)} of {info.num_examples} {split} examples; {ACTION}")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order, reading a thousand at a time."""
        for file, reader, end in zip(self.files, self._readers, self._ends, strict=True):
            count = reader.num_records()
            for first in range(0, count, CHUNK_RECORDS):
                with _reading(file):
                    contents = reader.read(first, min(first + CHUNK_RECORDS, count))
                for row, record in enumerate(contents, start=end - count + first):
                    yield Record(record, f"{self.where} example {row}")

    def __getitem__(self, row: int) -> Record:
        shard = bisect.bisect_right(self._ends, row)
        with _reading(self.files[shard]):
            (record,) = self._readers[shard].read([row - (self._ends[shard - 1] if shard else 0)])
        return Record(record, f"{self.where} example {row}")


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn any error of another library on damaged bytes into a UserError that names them."""
    try:
        yield
    except Exception as error:
        raise UserError(f"cannot read {where} ({_reason(error)}); {ACTION}") from error


def _reason(error: Exception) -> str:
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return message if len(message) <= MAX_REASON else f"{message[:MAX_REASON]}..."
