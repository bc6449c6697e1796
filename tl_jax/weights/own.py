"""This project's own weight files: safetensors under our paths, with the facts about them in the metadata."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tl_jax import disk, tree
from tl_jax.data.preprocess import SCALINGS
from tl_jax.errors import UserError
from tl_jax.json_files import OBJECT, TEXT, check_fields, choice, integer, list_of, number, object_of, parse_json
from tl_jax.specs import PretrainedSpec
from tl_jax.weights import readers
from tl_jax.weights.pth import damaged

_ALIGNMENT = 64  # bytes; JAX takes over arrays that begin at a multiple of it instead of copying them
_LARGEST = 2**31  # of the sides of an array without values, which the size of the file does not bound
_AGAIN = "export the run again, or download the file again"
_SPEC = {field.name: TEXT for field in dataclasses.fields(PretrainedSpec) if field.type in (str, "str")}
_SPEC |= {
    "options": OBJECT,
    "num_classes": integer(0, 10_000_000),
    "image_size": integer(0, 10_000),  # 0 of a policy
    "crop": number(0.01, 1),
    "interpolation": choice("bilinear", "bicubic"),
    "scaling": choice("", *SCALINGS),
    "parameters": integer(0, 2**53),
    "top1": number(0, 100),
    "top5": number(0, 100),
}
# What is read of the facts, by whom: names of classes, notes of a conversion, a delta's base, a policy's world.
_FACTS = {"classes": list_of(TEXT), "notes": list_of(TEXT), "base": object_of(TEXT), "adapters": OBJECT}
_FACTS |= {"world": TEXT, "spaces": OBJECT, "sha256": TEXT, "no_head": TEXT}
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def save(
    path: Path, variables: Mapping[str, Any], spec: PretrainedSpec, facts: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write variables as safetensors under our own names, one leaf at a time: no second copy is made in memory.

    Args:
        path: file to write; it is put in place whole or not at all.
        variables: ``{"params": ..., "batch_stats": ...}``.
        spec: what ``load`` must know; its ``options`` are stored with it.
        facts: anything worth keeping in the file, such as data set, accuracy and classes (JSON types).
        dtype: of the stored values; float16 halves the file and is widened again when it is loaded.
    """
    leaves = tree.flatten(variables)
    width = _DTYPES[_CODES[dtype]].itemsize
    # Large leaves first: then nearly all begin at a multiple of the alignment.
    order = sorted(leaves, key=lambda p: (-int(np.prod(leaves[p].shape)), p))
    header: dict[str, Any] = {
        "__metadata__": {"format": "tl_jax", "spec": json.dumps(spec.to_dict()), "facts": json.dumps(dict(facts))}
    }
    end = 0
    for name in order:
        begin, end = end, end + int(np.prod(leaves[name].shape)) * width
        header[name] = {"dtype": _CODES[dtype], "shape": list(leaves[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with disk.replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(leaves[name], _DTYPES[_CODES[dtype]]).reshape(-1).view(np.uint8).data)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file of ours, as views of one aligned buffer that JAX can take over without a copy.

    Raises:
        UserError: missing or damaged file, or one with other types of values.
    """
    readers.read_metadata(path)  # safetensors checks the header: sizes, overlaps, holes
    size = path.stat().st_size
    room = np.empty(size + _ALIGNMENT, np.uint8)
    room = room[-room.ctypes.data % _ALIGNMENT :][:size]
    with path.open("rb") as file:
        if file.readinto(room.data) != size:
            raise damaged(path, "it became shorter while it was read")
    start = 8 + int.from_bytes(room[:8].tobytes(), "little")
    arrays = {}
    for name, entry in json.loads(room[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name} holds {entry['dtype']}; save it as float32, float16 or bfloat16")
        begin, end = entry["data_offsets"]
        values = room[start + begin : start + end]
        dtype = _DTYPES[entry["dtype"]]
        if values.ctypes.data % dtype.itemsize:
            values = values.copy()
        if not values.size and any(n > _LARGEST for n in entry["shape"]):
            raise damaged(path, f"{name} has the shape {entry['shape']}")
        arrays[name] = values.view(dtype).reshape(entry["shape"])
    return arrays


def read_spec(path: Path) -> tuple[PretrainedSpec, dict[str, Any]]:
    """Return the spec and the facts of a file of ours; a UserError where it is none."""
    metadata = readers.read_metadata(path)
    known = {field.name for field in dataclasses.fields(PretrainedSpec)}
    if not {"spec", "facts"} <= set(metadata):
        raise UserError(f"{path} was not written by tl_jax; name its origin with --config.init.source")
    found = parse_json(metadata["spec"], f"{path}: its spec", _AGAIN)
    facts = parse_json(metadata["facts"], f"{path}: its facts", _AGAIN)
    found = {name: value for name, value in found.items() if value is not None}
    if strange := sorted((set(found) - known) | ({"model", "source"} - set(found))):
        raise UserError(f"{path}: its spec has no {strange[0]!r}, or one that is not known here; {_AGAIN}")
    check_fields(found, f"{path}: its spec", _SPEC, _AGAIN)
    check_fields(facts, f"{path}: its facts", _FACTS, _AGAIN)
    options = {k: _tuple(v) for k, v in found.get("options", {}).items()}  # linen needs tuples where JSON gives lists
    return PretrainedSpec(**{**found, "options": options}), facts


def class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes that the head in a file of ours knows, () if the file does not name them."""
    return tuple(read_spec(path)[1].get("classes") or ())


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list) else value
