"""Prepared TFDS sets made by hand, so that what they say can be wrong."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FEATURES = "tensorflow_datasets.core.features"
CLASSES = {"classLabel": {"numClasses": "2"}, "pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel"}
TEXT = {"text": {}, "pythonClassName": f"{FEATURES}.text_feature.Text"}


def image_feature(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    """Return how a feature says that it is an image; -1 for a side that differs."""
    content = {"dtype": dtype, "shape": {"dimensions": list(map(str, shape or (-1, -1, 3)))}}
    return {"image": content, "pythonClassName": f"{FEATURES}.image_feature.Image"}


def png(seed: int = 0, side: int = 8) -> bytes:
    """Return an encoded image of noise."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def example(values: Mapping[str, Any]) -> bytes:
    """Return a record with features that are bytes, whole numbers or, as floats, neither."""
    from tensorflow_datasets.proto import tf_example_pb2

    found = tf_example_pb2.Example()
    for name, value in values.items():
        feature = found.features.feature[name]
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(value)]
        getattr(feature, kind).value.append(value)
    return found.SerializeToString()


def prepare(
    top: Path, parts: Mapping[str, Sequence[Any]], features: Mapping[str, Any] | None = None, name: str = "odd"
) -> Path:
    """Write a set of records, mappings or bytes, by split; return its folder below ``top``."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = top / name / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for part, rows in parts.items():
        writer = ArrayRecordWriter(str(folder / f"{name}-{part}.array_record-00000-of-00001"), "group_size:1")
        for row in rows:
            writer.write(row if isinstance(row, bytes) else example(row))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": part, "filepathTemplate": template, "shardLengths": [str(len(rows))], "numBytes": "1"})
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = features or {"image": image_feature(), "label": CLASSES}
    whole = {"featuresDict": {"features": features}, "pythonClassName": f"{FEATURES}.features_dict.FeaturesDict"}
    (folder / "features.json").write_text(json.dumps(whole))
    (folder / "label.labels.txt").write_text("dark\nlight\n")
    return folder
