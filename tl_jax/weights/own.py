"""This project's own weight files: safetensors under our paths, with the facts about them in the metadata."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tl_jax import disk, tree
from tl_jax.errors import UserError
from tl_jax.specs import PretrainedSpec
from tl_jax.weights import readers
from tl_jax.weights.pth import damaged

_ALIGNMENT = 64  # bytes; JAX takes over arrays that begin at a multiple of it instead of copying them
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
        arrays[name] = values.view(dtype).reshape(entry["shape"])
    return arrays


def read_spec(path: Path) -> tuple[PretrainedSpec, dict[str, Any]]:
    """Return the spec and the facts of a file of ours; a UserError where it is none."""
    metadata = readers.read_metadata(path)
    try:
        spec, facts = PretrainedSpec(**json.loads(metadata["spec"])), json.loads(metadata["facts"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path} was not written by tl_jax; name its origin with --config.init.source") from None
    options = {k: _tuple(v) for k, v in spec.options.items()}  # linen needs tuples where JSON gives lists
    return dataclasses.replace(spec, options=options), facts


def class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes that the head in a file of ours knows, () if the file does not name them."""
    return tuple(map(str, read_spec(path)[1].get("classes") or ()))


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list) else value
