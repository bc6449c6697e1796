"""Reader of Keras' files: HDF5 of every layout, and the ``.keras`` zip around it, as flat dicts of NumPy arrays.

All layouts give ``LAYER/WEIGHT``, such as ``conv1_bn/moving_mean``, in the order of layers:

- The legacy layout, of Keras 1 and 2 and of ``model.save("NAME.h5")``, has a group per layer, in the order of
  ``layer_names``. LAYER is the name of the group and WEIGHT the last component of the weight's path, if all paths in
  the group differ only there. Otherwise the layer is a nested model, and LAYER is the component before the last.
- The layout since tf.keras 2.12, of ``model.save_weights("NAME.weights.h5")`` and ``model.save("NAME.keras")``, has
  numbered variables in groups that are named and counted by class, one class after another, each in the order of
  layers. LAYER is the layer's own name if the file has it (Keras 3.6 and later), else the name of its group. WEIGHT is
  the number unless ``_WEIGHTS`` translates it. Layers of a nested model appear under LAYER like the others, and objects
  within a layer under the name of their attribute: ``lstm/cell/0``. Optimizer and metric states are dropped.
"""

import io
import math
import mmap
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from tl_jax.pretrained.file_checks import check_hdf5, check_numeric, is_hdf5
from tl_jax.pretrained.torch_file import PARSE_ERRORS, check_file, damaged_error
from tl_jax.utils.claims import check_claim, check_zip, max_claim
from tl_jax.utils.errors import UserError

_KERAS_MEMBER = "model.weights.h5"  # of a .keras archive
_TOP_LEVEL = "top_level_model_weights"  # Keras' group for weights outside the layers
_LAYERS, _DEPENDENCIES = "layers", "_layer_checkpoint_dependencies"  # the latter in tf.keras 2.12 and 2.13
_ITEM_BYTES = 256  # approximate memory of a chunk, and minimum file size of a named object
_TRAINING = ("optimizer", "metrics", "_metrics")  # groups besides the layers
_KERNEL = (("kernel",), ("kernel", "bias"))
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# Variable names of a class, given that many variables. A norm with three has scale=False.
_WEIGHTS = {"conv2d": _KERNEL, "depthwise_conv2d": _KERNEL, "dense": _KERNEL}
_WEIGHTS |= {"batch_normalization": (_NORM, _NORM[1:], _NORM[2:])}


def read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the weights of a Keras HDF5 file, weights alone or a whole model, named as in the module docstring.

    Raises:
        UserError: The file is damaged, has another layout, or uses a key twice.
    """
    path = check_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_hdf5(content)
        return _read_hdf5(path, path)
    except PARSE_ERRORS as error:
        raise damaged_error(path, error) from error


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the weights of a ``.keras`` file, a zip or (before Keras 2.13) HDF5, without reading its configuration.

    Raises:
        UserError: As ``read_h5``, or the zip has no ``model.weights.h5``.
    """
    path = check_file(path)
    try:
        with path.open("rb") as file:
            if is_hdf5(file.read(8)):
                return read_h5(path)
        with zipfile.ZipFile(path) as archive:
            check_zip(path, archive)
            if _KERAS_MEMBER not in archive.namelist():
                raise UserError(f"{path}: a zip without {_KERAS_MEMBER}; save the model with model.save('NAME.keras')")
            if archive.getinfo(_KERAS_MEMBER).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{_KERAS_MEMBER} has a compression that Keras does not use")
            content = archive.read(_KERAS_MEMBER)
        check_hdf5(content)
        return _read_hdf5(path, io.BytesIO(content))
    except PARSE_ERRORS as error:
        raise damaged_error(path, error) from error


def to_native_order(array: np.ndarray) -> np.ndarray:
    """Return the array in native byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_hdf5(path: Path, source: Path | io.BytesIO) -> dict[str, np.ndarray]:
    """Return the arrays of the HDF5 in ``source``, which is the file ``path`` or a member of it."""
    arrays: dict[str, np.ndarray] = {}
    claimed = 0
    with h5py.File(source, "r") as file:
        for key, dataset in _datasets(path, file):
            if key in arrays:
                raise UserError(f"{path}: {key!r} occurs twice; save a nested model's weights separately")
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{key} is not an array")
            bfloat16 = dataset.dtype == np.dtype("V2")  # Keras writes bfloat16 as opaque 2-byte values
            check_numeric(path, key, np.dtype(np.uint16) if bfloat16 else dataset.dtype)
            claimed += _needed_bytes(path, key, dataset)
            check_claim(path, claimed, f"{key} and those before it")
            array = dataset[...]
            arrays[key] = array.view(ml_dtypes.bfloat16) if bfloat16 else to_native_order(array)
    return arrays


def _needed_bytes(path: Path, key: str, dataset: h5py.Dataset) -> int:
    """Return the bytes needed to read an array. Raises if its values are external or missing."""
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: {key!r} stores its values in another file; save the weights into one file")
    size = dataset.size * dataset.dtype.itemsize
    if dataset.chunks is None:
        if size > dataset.id.get_storage_size():
            raise ValueError(f"{key} is larger than its bytes")
        return size
    chunks = math.prod(-(-n // max(step, 1)) for n, step in zip(dataset.shape, dataset.chunks, strict=True))
    return size + math.prod(dataset.chunks) * dataset.dtype.itemsize + chunks * _ITEM_BYTES


def _datasets(path: Path, file: h5py.File) -> Iterator[tuple[str, Any]]:
    root = _child(path, file, "model_weights") if "model_weights" in file else file
    layers = _attribute_names(root, "layer_names")
    if layers is not None:
        for layer in [*layers, _TOP_LEVEL] if _TOP_LEVEL in root else layers:
            yield from _legacy_layer(path, _child(path, root, layer), layer)
    elif any(name in root for name in (_LAYERS, _DEPENDENCIES, "vars")):
        yield from _objects(path, root, "", "", set())
    else:
        raise UserError(f"{path}: HDF5, but not Keras' weights (no layer_names, no layers); save it with Keras again")


def _legacy_layer(path: Path, group: Any, layer: str) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of one layer in listed order; those of a nested model layer by layer."""
    paths: dict[str, list[str]] = {}
    for name in _attribute_names(group, "weight_names") or []:
        paths.setdefault(name.rpartition("/")[0], []).append(name)
    for scope, names in paths.items():
        inner = scope.rpartition("/")[2] if len(paths) > 1 else ""
        for name in names:
            yield f"{inner or layer}/{name.rpartition('/')[2].removesuffix(':0')}", _child(path, group, name)


def _objects(path: Path, group: Any, kind: str, layer: str, visited: set[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of the object of class ``kind`` in ``group``, and of the objects within it, under ``layer``.

    The model itself has neither kind nor layer. ``visited`` holds the addresses of groups already entered.
    """
    for name, child in _members(path, group, visited):
        if name == "vars":
            numbers = sorted(_member_names(path, child), key=lambda number: (len(number), number))
            is_numbered = numbers == [str(i) for i in range(len(numbers))]
            weight_names = [
                weight_names
                for weight_names in _WEIGHTS.get(kind, ())
                if len(weight_names) == len(numbers) and is_numbered
            ]
            for number, weight_name in zip(numbers, weight_names[0] if weight_names else numbers, strict=True):
                yield f"{layer or _TOP_LEVEL}/{weight_name}", _child(path, child, number)
        elif name in (_LAYERS, _DEPENDENCIES):
            counts: Counter[str] = Counter()
            for item, member in _members(path, child, visited):
                stem = _split_counter(item)[0]
                if name == _DEPENDENCIES:  # lists some layers twice; use the names of later versions
                    item = f"{stem}_{counts[stem]}" if counts[stem] else stem
                    counts[stem] += 1
                yield from _objects(path, member, stem, _layer_name(path, member) or item, visited)
        elif name not in _TRAINING:
            child_layer = f"{layer}/{name}" if layer else _layer_name(path, child) or name
            yield from _objects(path, child, _split_counter(name)[0], child_layer, visited)


def _members(path: Path, group: Any, visited: set[Any]) -> list[tuple[str, Any]]:
    """Return the groups in ``group``, ordered by class and number. Raises ``ValueError`` for other members."""
    members = [(name, _child(path, group, name)) for name in sorted(_member_names(path, group), key=_split_counter)]
    for name, member in members:
        if not isinstance(member, h5py.Group):
            raise ValueError(f"{name} is not a group")
        address = h5py.h5g.get_objinfo(member.id).objno  # h5o.get_info would walk whole trees, cyclic ones forever
        if address in visited:
            raise ValueError(f"{name} is a group that occurs twice")
        visited.add(address)
    return members


def _member_names(path: Path, group: Any) -> list[str]:
    """Return the names in ``group``, up to a limit: damaged trees yield names endlessly."""
    names: list[bytes] = []
    max_names = max_claim(path) // _ITEM_BYTES

    def add(name: bytes) -> bool | None:
        names.append(name)
        return len(names) > max_names or None  # a value other than None ends the iteration

    group.id.links.iterate(add, order=h5py.h5.ITER_NATIVE)
    check_claim(path, len(names) * _ITEM_BYTES, "its names")
    return [name.decode() for name in names]


def _split_counter(name: str) -> tuple[str, int]:
    """Split a counted name: ``conv2d_5`` gives ``conv2d`` and 5; ``conv2d``, the first of them, 0."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (name, 0)


def _layer_name(path: Path, group: Any) -> str:
    """Return the layer name of the object saved in ``group``; "" if the file does not store it."""
    names = _attribute_names(_child(path, group, "vars"), "name") if "vars" in group else None
    return names[0] if names else ""


def _attribute_names(group: Any, attribute: str) -> list[str] | None:
    """Return a list of names stored in one attribute, or in ``NAME0``, ``NAME1``, ... if too long for one."""
    chunks = [attribute] if attribute in group.attrs else []
    if not chunks:
        chunks = list(takewhile(group.attrs.__contains__, (f"{attribute}{i}" for i in count())))
    names: list[Any] = []
    for chunk in chunks:
        header = group.attrs.get_id(chunk)
        if not header.get_space().get_simple_extent_npoints():
            continue  # Keras writes an empty list as floats
        if not isinstance(header.get_type(), h5py.h5t.TypeStringID):
            raise ValueError(f"{chunk} is not text")  # reading it may crash libhdf5
        names += np.asarray(group.attrs[chunk]).ravel().tolist()
    texts = [name.decode() if isinstance(name, bytes) else name for name in names]
    "".join(texts).encode()  # raises if h5py decoded invalid bytes
    return texts if chunks else None


def _child(path: Path, group: Any, name: str) -> Any:
    """Return ``group[name]`` if it is a hard link; other links may lead to any file of the machine."""
    for component in name.strip("/").split("/"):
        link = group.get(component, getlink=True)
        if link is None:
            raise ValueError(f"{name} is listed but absent")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: {name!r} links to another file; save the weights into one file")
        group = group[component]
    return group
