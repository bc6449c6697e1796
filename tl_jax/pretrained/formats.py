"""Weight files: this project's safetensors, other libraries' formats, and the bundles of ``--mode=export``.

A bundle is a folder with ``bundle.json``, which lists its files and their checksums. Weight files are read into flat
dictionaries of NumPy arrays, with the names and order of the file. Our own files are safetensors with our paths as
names, and the facts about the weights in the metadata.
"""

import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pooch
import safetensors

from tl_jax.models.registry import PretrainedSpec
from tl_jax.pretrained.file_checks import check_numeric
from tl_jax.pretrained.hdf5_file import read_h5, read_keras, to_native_order
from tl_jax.pretrained.torch_file import PARSE_ERRORS, Contents, check_file, damaged_error, read_checkpoint, read_pth
from tl_jax.utils import claims, disk, tree
from tl_jax.utils.claims import npz_members, read_npy
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.json_files import (
    MODULES,
    OBJECT,
    STRING,
    add_checksum,
    check_fields,
    choice,
    integer,
    list_of,
    number,
    object_of,
    parse_json,
    read_json,
)
from tl_jax.utils.plugins import check_imported
from tl_jax.utils.scaling import SCALINGS

BUNDLE_FILE, WEIGHTS_FILE = "bundle.json", "model.safetensors"
EXPORT_FOLDER = "export"  # within the folder of a run
FORMAT_VERSION = 1  # files of another version are rejected
_EXPORT_AGAIN = "export the run again"
_FIELDS = {"model": STRING, "task": STRING, "files": object_of(OBJECT), "weights": OBJECT, "modules": MODULES}
_OPTIONAL = {"weights", "modules"}


def write_bundle_json(folder: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Write ``bundle.json`` and return its content.

    Args:
        folder: folder of the bundle.
        facts: facts in JSON types.
        files: file name in the folder -> description.
    """
    entries = {
        name: {
            "what": description,
            "bytes": (folder / name).stat().st_size,
            "sha256": pooch.file_hash(str(folder / name)),
        }
        for name, description in files.items()
    }
    content = {"format": "tl_jax bundle", "version": FORMAT_VERSION, **facts, "files": entries}
    disk.write_text(folder / BUNDLE_FILE, json.dumps(add_checksum(content), indent=2) + "\n")
    return content


def read_bundle(folder: Path) -> dict[str, Any]:
    """Return the content of ``bundle.json``.

    Raises:
        UserError: The file is missing or damaged, or has another format version.
    """
    file = folder / BUNDLE_FILE
    if not file.is_file():
        raise UserError(f"{folder}: not a bundle, {BUNDLE_FILE} is missing; export a run, and pass RUN/export")
    content = read_json(file, _EXPORT_AGAIN)
    if missing := [name for name in ("version", *_FIELDS) if content.get(name) is None and name not in _OPTIONAL]:
        raise UserError(f"{file}: damaged or not written by tl_jax, {missing[0]} is missing; {_EXPORT_AGAIN}")
    check_fields(content, file, {"version": integer(0, 1_000_000)}, _EXPORT_AGAIN)
    if (version := content["version"]) != FORMAT_VERSION:
        raise UserError(
            f"{file}: format version {version!r} is not supported, only {FORMAT_VERSION}; install a matching tl_jax"
        )
    check_fields(content, file, _FIELDS, _EXPORT_AGAIN)
    check_imported(content.get("modules") or (), folder)
    for name, entry in content["files"].items():
        if not STRING.is_valid(entry.get("sha256")):
            raise UserError(f"{file}: damaged, the sha256 of {name!r} is missing; {_EXPORT_AGAIN}")
    return content


def check_bundle(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Verify the checksums of files in a bundle, and return the content of ``bundle.json``.

    Raises:
        UserError: See ``read_bundle``; or a file is missing or has changed.
    """
    content = read_bundle(folder)
    for name in names:
        file, entry = folder / name, content["files"].get(name)
        if entry is None or not file.is_file():
            raise UserError(f"{folder}: {name} is missing; copy the whole bundle, or export the run again")
        if (actual := pooch.file_hash(str(file))) != entry["sha256"]:
            raise UserError(
                f"{file}: changed or truncated (SHA-256 {actual[:12]}..., but {BUNDLE_FILE} has "
                f"{entry['sha256'][:12]}...); copy the bundle again, or export the run again"
            )
    return content


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run, rather than a bundle or another library's network."""
    return (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()


def export_of(folder: Path) -> Path:
    """Return the bundle in the folder of a run; any other folder is returned unchanged."""
    if not is_run(folder):
        return folder
    if not (folder / EXPORT_FOLDER / BUNDLE_FILE).is_file():
        raise UserError(f"{folder}: the run has no export; export it first")
    return folder / EXPORT_FOLDER


def weights_path(path: Path) -> Path:
    """Return the weights file of a bundle or run folder, with a verified checksum, or ``path`` itself.

    Raises:
        UserError: The folder is not a bundle, or see ``check_bundle``.
    """
    if path.is_dir():
        path = export_of(path)
        check_bundle(path, [WEIGHTS_FILE])
        return path / WEIGHTS_FILE
    if path.name == WEIGHTS_FILE and path.is_file() and (path.parent / BUNDLE_FILE).is_file():
        check_bundle(path.parent, [WEIGHTS_FILE])
    return path


def bundle_model(source: str, path: str | Path | None) -> str:
    """Return the model name of a bundle, given its folder or a file in it, for ``pretrained.load`` without a name."""
    if source != "tl_jax" or not path:
        raise UserError("pretrained.load: pass a model name; only a bundle (source='tl_jax', path=FOLDER) contains it")
    bundle_path = export_of(Path(path).expanduser())
    content = read_bundle(bundle_path if bundle_path.is_dir() else bundle_path.parent)
    if content["task"] == "policy":
        raise UserError(
            f"{bundle_path}: holds a policy; start a run from it with config.init.path, or call rl.source.load"
        )
    return content["model"]


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``read_contents``."""
    return read_contents(path).arrays


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Return every array of a weight file, read in the format of its suffix (see ``READERS``).

    Raises:
        UserError: The suffix is unknown, or the file is missing, damaged, or holds values other than numbers.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'no suffix'} is not a weights format; {nearest(suffix, _SUGGESTED)}")
    reader = READERS[suffix]
    return read_checkpoint(path) if reader is read_pth else Contents(reader(path))


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the tensors of a ``.safetensors`` file in storage order. Raises UserError if it is damaged."""
    path = check_file(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}
    except AttributeError as error:  # safetensors uses np.float8_e4m3fn and similar types
        raise UserError(f"{path}: has dtype {error.name}, which NumPy lacks; save it as float32 or bfloat16") from error
    except (*PARSE_ERRORS, safetensors.SafetensorError) as error:
        raise damaged_error(path, error) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a ``.safetensors`` file. Raises UserError if it is damaged."""
    path = check_file(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (*PARSE_ERRORS, safetensors.SafetensorError) as error:
        raise damaged_error(path, error) from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a ``numpy.savez`` file. Raises UserError if it is damaged or holds objects."""
    path = check_file(path)
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for key, member in npz_members(path, archive):
                arrays[key] = to_native_order(read_npy(key, archive, member, functools.partial(check_numeric, path)))
    except claims.NPZ_ERRORS as error:
        raise damaged_error(path, error) from error
    return arrays


READERS = {".h5": read_h5, ".hdf5": read_h5, ".keras": read_keras, ".safetensors": read_safetensors, ".npz": read_npz}
_SUGGESTED = (*READERS, ".pth", ".pt", ".ckpt", ".bin")
# All written by torch.save: by PyTorch's own examples (.pth.tar, .th), by Lightning and by Hugging Face.
READERS |= dict.fromkeys((".pth", ".pt", ".th", ".tar", ".ckpt", ".bin"), read_pth)


_ALIGNMENT = 64  # bytes; JAX adopts aligned arrays without a copy
_MAX_SIDE = 2**31  # limit of the sides of an empty array, which the file size does not bound
_WRITE_AGAIN = "export the run again, or download the file again"
_SPEC = {field.name: STRING for field in dataclasses.fields(PretrainedSpec) if field.type in (str, "str")}
_SPEC |= {
    "options": OBJECT,
    "num_classes": integer(0, 10_000_000),
    "image_size": integer(0, 10_000),  # 0 for a policy
    "crop": number(0.01, 1),
    "interpolation": choice("bilinear", "bicubic"),
    "parameters": integer(0, 2**53),
    "top1": number(0, 100),
    "top5": number(0, 100),
}
# Facts that are used: class names, conversion notes, a delta's base, adapters.
_FACTS = {"classes": list_of(STRING), "notes": list_of(STRING), "base": object_of(STRING), "adapters": OBJECT}
_FACTS |= {"world": STRING, "spaces": OBJECT, "sha256": STRING, "no_head": STRING}
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def save_native(
    path: Path, variables: Mapping[str, Any], spec: PretrainedSpec, facts: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write variables as safetensors under our names, leaf by leaf, without a second copy in memory.

    Args:
        path: output file, written atomically.
        variables: ``{"params": ..., "batch_stats": ...}``.
        spec: facts that ``load`` needs, including the model's ``options``.
        facts: further facts to store, such as dataset, accuracy and classes (JSON types).
        dtype: data type of the stored values; float16 halves the file and is loaded as float32.
    """
    leaves = tree.flatten(variables)
    width = _DTYPES[_CODES[dtype]].itemsize
    # Large leaves first, so that nearly all are aligned.
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
    with disk.atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(leaves[name], _DTYPES[_CODES[dtype]]).reshape(-1).view(np.uint8).data)


def read_native(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of one of our files, as views of one aligned buffer that JAX adopts without a copy.

    Raises:
        UserError: The file is missing or damaged, or has other dtypes.
    """
    read_metadata(path)  # safetensors validates the header: sizes, overlaps, holes
    size = path.stat().st_size
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    buffer = buffer[-buffer.ctypes.data % _ALIGNMENT :][:size]
    with path.open("rb") as file:
        if file.readinto(buffer.data) != size:
            raise damaged_error(path, "it shrank while it was read")
    start = 8 + int.from_bytes(buffer[:8].tobytes(), "little")
    arrays = {}
    for name, entry in json.loads(buffer[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name} has dtype {entry['dtype']}; save it as float32, float16 or bfloat16")
        begin, end = entry["data_offsets"]
        values = buffer[start + begin : start + end]
        dtype = _DTYPES[entry["dtype"]]
        if values.ctypes.data % dtype.itemsize:
            values = values.copy()
        if not values.size and any(n > _MAX_SIDE for n in entry["shape"]):
            raise damaged_error(path, f"{name} has the shape {entry['shape']}")
        arrays[name] = values.view(dtype).reshape(entry["shape"])
    return arrays


def read_spec(path: Path) -> tuple[PretrainedSpec, dict[str, Any]]:
    """Return the spec and facts of one of our files. Raises UserError for another file."""
    metadata = read_metadata(path)
    if not {"spec", "facts"} <= set(metadata):
        raise UserError(f"{path}: not written by tl_jax; set config.init.source to the library that wrote it")
    spec = parse_json(metadata["spec"], f"{path}: its spec", _WRITE_AGAIN)
    facts = parse_json(metadata["facts"], f"{path}: its facts", _WRITE_AGAIN)
    check_fields(facts, f"{path}: its facts", _FACTS, _WRITE_AGAIN)
    return parse_spec(spec, f"{path}: its spec", _WRITE_AGAIN), facts


def parse_spec(spec: Mapping[str, Any], where: str, action: str) -> PretrainedSpec:
    """Return the spec stored by ``PretrainedSpec.to_dict``.

    Args:
        spec: from JSON.
        where: location of the spec, for messages.
        action: advice for a damaged spec.
    """
    if not isinstance(spec, Mapping):
        raise UserError(f"{where} is not an object; {action}")
    spec = {name: value for name, value in spec.items() if value is not None}
    field_names = {field.name for field in dataclasses.fields(PretrainedSpec)}
    if unknown := sorted((set(spec) - field_names) | ({"model", "source"} - set(spec))):
        raise UserError(f"{where}: {unknown[0]!r} is missing or unknown; {action}")
    fields = {**_SPEC, "scaling": choice("", *SCALINGS)}  # evaluated late: users may register scalings
    check_fields(spec, where, fields, action)
    # linen needs tuples instead of JSON's lists
    options = {k: _lists_to_tuples(v) for k, v in spec.get("options", {}).items()}
    return PretrainedSpec(**{**spec, "options": options})


def class_names(path: Path) -> tuple[str, ...]:
    """Return the class names of the head in one of our files; () if it stores none."""
    return tuple(read_spec(path)[1].get("classes") or ())


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(v) for v in value) if isinstance(value, list) else value
