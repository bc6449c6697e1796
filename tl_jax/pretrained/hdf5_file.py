"""Read Keras' files, HDF5 of every layout and the zip ``.keras`` around it, into flat dictionaries of NumPy arrays.

All layouts give ``LAYER/WEIGHT``, such as ``conv1_bn/moving_mean``, in the order of layers:

- The legacy one, of Keras 1 and 2 and of ``model.save("NAME.h5")``: a group for each layer, in the order of
  ``layer_names``. LAYER is the name of the group and WEIGHT the last part of the weight's path, as long as all paths
  of the group differ in that part only. Otherwise the layer is itself a model, and LAYER is the part before the last.
- The one since tf.keras 2.12, of ``model.save_weights("NAME.weights.h5")`` and ``model.save("NAME.keras")``: numbered
  variables in groups that are named and counted by class, one class after another, each in the order of layers. LAYER
  is the layer's own name where the file has it (Keras 3.6 and later), else the name of its group; WEIGHT is the number
  unless ``_WEIGHTS`` translates it. Layers of a model within the model stand under LAYER as the others do, objects
  within a layer under the name of their attribute: ``lstm/cell/0``. The state of optimizer and metrics is left out.
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
_TOP_LEVEL = "top_level_model_weights"  # where Keras puts weights of the model that belong to none of its layers
_LAYERS, _DEPENDENCIES = "layers", "_layer_checkpoint_dependencies"  # the latter in tf.keras 2.12 and 2.13
_ITEM_BYTES = 256  # bytes that a chunk costs in memory, about, and a named object in a file, at least
_TRAINING = ("optimizer", "metrics", "_metrics")  # groups beside those of the layers
_KERNEL = (("kernel",), ("kernel", "bias"))
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# What the variables of a class are called, when there are that many. Three of a norm mean scale=False.
_WEIGHTS = {"conv2d": _KERNEL, "depthwise_conv2d": _KERNEL, "dense": _KERNEL}
_WEIGHTS |= {"batch_normalization": (_NORM, _NORM[1:], _NORM[2:])}


def read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the weights of an HDF5 file of Keras, weights alone or a whole model, as this module describes.

    Raises ``UserError`` when the file is damaged, of another layout, or names one key twice.
    """
    path = check_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_hdf5(content)
        return _read_hdf5(path, path)
    except PARSE_ERRORS as error:
        raise damaged_error(path, error) from error


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the weights of a ``.keras`` file, a zip or (before Keras 2.13) HDF5; its configuration is not looked at.

    Raises ``UserError`` as ``read_h5`` does, and for a zip without ``model.weights.h5``.
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
                raise ValueError(f"{_KERAS_MEMBER} is compressed in a way that Keras does not write")
            content = archive.read(_KERAS_MEMBER)
        check_hdf5(content)
        return _read_hdf5(path, io.BytesIO(content))
    except PARSE_ERRORS as error:
        raise damaged_error(path, error) from error


def to_native_order(array: np.ndarray) -> np.ndarray:
    """Return the array in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_hdf5(path: Path, source: Path | io.BytesIO) -> dict[str, np.ndarray]:
    """Return the arrays of the HDF5 in ``source``, which is the file ``path`` or lies within it."""
    arrays: dict[str, np.ndarray] = {}
    claimed = 0
    with h5py.File(source, "r") as file:
        for key, dataset in _datasets(path, file):
            if key in arrays:
                raise UserError(f"{path}: {key!r} comes twice; save a nested model's weights on their own")
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{key} is no array")
            bfloat16 = dataset.dtype == np.dtype("V2")  # Keras writes bfloat16 as two bytes without a meaning
            check_numeric(path, key, np.dtype(np.uint16) if bfloat16 else dataset.dtype)
            claimed += _needed_bytes(path, key, dataset)
            check_claim(path, claimed, f"{key} and those before it")
            array = dataset[...]
            arrays[key] = array.view(ml_dtypes.bfloat16) if bfloat16 else to_native_order(array)
    return arrays


def _needed_bytes(path: Path, key: str, dataset: h5py.Dataset) -> int:
    """Return the bytes that reading takes, and refuse arrays whose values lie elsewhere or are not there."""
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: {key!r} keeps its values in another file; save the weights into one file")
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
    """Yield the arrays of one layer in the order that it lists them; those of a nested model, layer by layer."""
    paths: dict[str, list[str]] = {}
    for name in _attribute_names(group, "weight_names") or []:
        paths.setdefault(name.rpartition("/")[0], []).append(name)
    for scope, names in paths.items():
        inner = scope.rpartition("/")[2] if len(paths) > 1 else ""
        for name in names:
            yield f"{inner or layer}/{name.rpartition('/')[2].removesuffix(':0')}", _child(path, group, name)


def _objects(path: Path, group: Any, kind: str, layer: str, visited: set[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of the object of class ``kind`` in ``group``, and of the objects within it, under ``layer``.

    The model itself is the object without kind and layer. ``visited`` holds the addresses of groups already entered.
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
                if name == _DEPENDENCIES:  # which counts some layers twice: name them as the later versions do
                    item = f"{stem}_{counts[stem]}" if counts[stem] else stem
                    counts[stem] += 1
                yield from _objects(path, member, stem, _layer_name(path, member) or item, visited)
        elif name not in _TRAINING:
            child_layer = f"{layer}/{name}" if layer else _layer_name(path, child) or name
            yield from _objects(path, child, _split_counter(name)[0], child_layer, visited)


def _members(path: Path, group: Any, visited: set[Any]) -> list[tuple[str, Any]]:
    """Return the groups in ``group``, each class by its numbers, or raise ``ValueError`` if there is anything else."""
    members = [(name, _child(path, group, name)) for name in sorted(_member_names(path, group), key=_split_counter)]
    for name, member in members:
        if not isinstance(member, h5py.Group):
            raise ValueError(f"{name} is no group")
        address = h5py.h5g.get_objinfo(member.id).objno  # h5o.get_info would walk whole trees, cyclic ones for ever
        if address in visited:
            raise ValueError(f"{name} is a group that comes twice")
        visited.add(address)
    return members


def _member_names(path: Path, group: Any) -> list[str]:
    """Return the names in ``group``, and stop at the first too many: damaged trees give more and more of them."""
    names: list[bytes] = []
    max_names = max_claim(path) // _ITEM_BYTES

    def add(name: bytes) -> bool | None:
        names.append(name)
        return len(names) > max_names or None  # anything but None ends the iteration

    group.id.links.iterate(add, order=h5py.h5.ITER_NATIVE)
    check_claim(path, len(names) * _ITEM_BYTES, "its names")
    return [name.decode() for name in names]


def _split_counter(name: str) -> tuple[str, int]:
    """Split a counted name: ``conv2d_5`` gives ``conv2d`` and 5, and ``conv2d``, the first of them, 0."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (name, 0)


def _layer_name(path: Path, group: Any) -> str:
    """Return the name that the object saved in ``group`` had in its model, or "" where the file does not tell."""
    names = _attribute_names(_child(path, group, "vars"), "name") if "vars" in group else None
    return names[0] if names else ""


def _attribute_names(group: Any, attribute: str) -> list[str] | None:
    """Return a list of names kept in one attribute, or in ``NAME0``, ``NAME1``, ... when too long for one."""
    chunks = [attribute] if attribute in group.attrs else []
    if not chunks:
        chunks = list(takewhile(group.attrs.__contains__, (f"{attribute}{i}" for i in count())))
    names: list[Any] = []
    for chunk in chunks:
        header = group.attrs.get_id(chunk)
        if not header.get_space().get_simple_extent_npoints():
            continue  # Keras writes no names as no floats
        if not isinstance(header.get_type(), h5py.h5t.TypeStringID):
            raise ValueError(f"{chunk} is no text")  # libhdf5 may crash while reading it
        names += np.asarray(group.attrs[chunk]).ravel().tolist()
    texts = [name.decode() if isinstance(name, bytes) else name for name in names]
    "".join(texts).encode()  # fails where h5py made text of bytes that are none
    return texts if chunks else None


def _child(path: Path, group: Any, name: str) -> Any:
    """Return ``group[name]``, going along hard links only: the others may lead into any file of the machine."""
    for component in name.strip("/").split("/"):
        link = group.get(component, getlink=True)
        if link is None:
            raise ValueError(f"{name} is listed but absent")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: {name!r} is a link to elsewhere; save the weights into one file")
        group = group[component]
    return group
