"""Read weight files into flat dictionaries of NumPy arrays, keyed and ordered as the file has them."""

import itertools
import math
import mmap
import os
import struct
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors

from tl_jax.errors import UserError, nearest
from tl_jax.weights.pth import DAMAGE, damaged, existing, read_pth

_TOP_LEVEL = "top_level_model_weights"  # where Keras puts weights of the model that belong to none of its layers
_HEAP = b"GCOL\1\0\0\0"  # opens a global heap of HDF5: signature, version 1, reserved
_EXPANSION = 64  # no real weights compress to less than one such part of their size
_FLOOR = 1 << 24  # bytes that any file may claim


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return every array of a weight file, read by the format that its suffix names (see the other functions here).

    Raises ``UserError`` when the suffix is unknown, or the file is missing, damaged, or holds anything but numbers.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'no suffix'} is no format of weights; {nearest(suffix, READERS)}")
    return READERS[suffix](path)


def read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the weights of Keras' legacy HDF5 layout as ``LAYER/WEIGHT``, such as ``conv1_bn/moving_mean``.

    Reads files of weights and whole models (the group ``model_weights``), by Keras 2 or 3, in the order of layers.
    Raises ``UserError`` when the file is damaged, of another layout, or names one key twice.
    """
    path = existing(path)
    arrays: dict[str, np.ndarray] = {}
    claimed = 0
    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            for key, dataset in _h5_datasets(path, file):
                if key in arrays:
                    raise UserError(f"{path}: {key!r} comes twice; save a nested model's weights on their own")
                _check_numeric(path, key, dataset.dtype)
                claimed += _h5_bytes(path, key, dataset)
                if claimed > max(_FLOOR, _EXPANSION * path.stat().st_size):
                    raise ValueError(f"{key} and those before it claim {claimed} bytes")
                arrays[key] = _native(dataset[()])
    except DAMAGE as error:
        raise damaged(path, error) from error
    return arrays


def _check_heaps(path: Path) -> None:
    """Refuse damaged global heaps, where text of variable length lies: libhdf5 goes round in them for ever."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP)
        while start >= 0:
            (size,) = struct.unpack_from("<Q", content, start + 8)
            position, end = start + 16, start + size
            while position + 16 <= end:
                index, length = struct.unpack_from("<H6xQ", content, position)
                step = 16 + (length + 7) // 8 * 8 if index else length  # index 0 is the free space, header included
                if step < 16 or position + step > end:
                    raise ValueError("a heap does not add up")
                position += step
            start = content.find(_HEAP, max(end, start + 16))


def _h5_datasets(path: Path, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    root = _h5_child(path, file, "model_weights") if "model_weights" in file else file
    layers = _h5_names(root, "layer_names")
    if layers is None:
        if "layers" in root or "_layer_checkpoint_dependencies" in root:
            raise UserError(f"{path}: Keras 3's own layout; save it in the legacy one with model.save('NAME.h5')")
        raise UserError(
            f"{path}: HDF5 without layer_names, so not Keras' weights; give a file of model.save('NAME.h5')"
        )
    for layer in [*layers, _TOP_LEVEL] if _TOP_LEVEL in root else layers:
        group = _h5_child(path, root, layer)
        for weight in _h5_names(group, "weight_names") or []:
            dataset = _h5_child(path, group, weight)
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{layer}: {weight} is no array")
            yield f"{layer}/{weight.rsplit('/', 1)[-1].removesuffix(':0')}", dataset


def _h5_names(group: Any, attribute: str) -> list[str] | None:
    """Return a list of names kept in one attribute, or in ``NAME0``, ``NAME1``, ... when too long for one."""
    chunks = [attribute] if attribute in group.attrs else []
    if not chunks:
        numbered = (f"{attribute}{i}" for i in itertools.count())
        chunks = list(itertools.takewhile(group.attrs.__contains__, numbered))
    names: list[Any] = []
    for chunk in chunks:
        header = group.attrs.get_id(chunk)
        if not header.get_space().get_simple_extent_npoints():
            continue  # Keras writes no names as no floats
        if not isinstance(header.get_type(), h5py.h5t.TypeStringID):
            raise ValueError(f"{chunk} is no text")  # libhdf5 may crash while reading it
        names += np.asarray(group.attrs[chunk]).ravel().tolist()
    return [name.decode() if isinstance(name, bytes) else name for name in names] if chunks else None


def _h5_child(path: Path, group: Any, name: str) -> Any:
    """Return ``group[name]``, going along hard links only: the others may lead into any file of the machine."""
    for part in name.strip("/").split("/"):
        link = group.get(part, getlink=True)
        if link is None:
            raise ValueError(f"{name} is listed but absent")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: {name!r} is a link to elsewhere; save the weights into one file")
        group = group[part]
    return group


def _h5_bytes(path: Path, key: str, dataset: h5py.Dataset) -> int:
    """Return the bytes that reading takes, and refuse arrays whose values lie elsewhere or are not there."""
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: {key!r} keeps its values in another file; save the weights into one file")
    size = dataset.size * dataset.dtype.itemsize
    if dataset.chunks is None:
        if size > dataset.id.get_storage_size():
            raise ValueError(f"{key} is larger than its bytes")
        return size
    return size + math.prod(dataset.chunks) * dataset.dtype.itemsize


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the tensors of a ``.safetensors`` file in the order of their bytes; ``UserError`` when it is damaged."""
    path = existing(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}
    except AttributeError as error:  # safetensors looks up np.float8_e4m3fn and its like
        raise UserError(f"{path}: holds {error.name}, which NumPy lacks; save it as float32 or bfloat16") from error
    except (*DAMAGE, safetensors.SafetensorError) as error:
        raise damaged(path, error) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the text that a ``.safetensors`` file carries beside its tensors; ``UserError`` when it is damaged."""
    path = existing(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (*DAMAGE, safetensors.SafetensorError) as error:
        raise damaged(path, error) from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a ``numpy.savez`` file; ``UserError`` when it is damaged or holds objects."""
    path = existing(path)
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > max(_FLOOR, _EXPANSION * path.stat().st_size):
                raise ValueError("its members claim far more bytes than it has")
            for member in members:
                key = member.filename.removesuffix(".npy")
                if key in arrays:
                    raise UserError(f"{path}: {key!r} comes twice; save each array under a name of its own")
                arrays[key] = _read_npy(path, key, archive, member)
    except (*DAMAGE, SyntaxError, tokenize.TokenError) as error:  # the last two from headers, which are Python
        raise damaged(path, error) from error
    return arrays


def _read_npy(path: Path, key: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{key} is compressed in a way that numpy does not write")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key} is of .npy version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        _check_numeric(path, key, dtype)
        # NumPy allocates what the header says before it reads.
        if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{key} is not as long as its header says")
    with archive.open(member) as stream:
        return _native(np.lib.format.read_array(stream, allow_pickle=False))


def _check_numeric(path: Path, key: str, dtype: np.dtype) -> None:
    if dtype.kind not in "biufc":
        raise UserError(f"{path}: {key!r} holds {' '.join(str(dtype).split())}, not numbers; save it as float32")


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


READERS = {".h5": read_h5, ".hdf5": read_h5, ".safetensors": read_safetensors, ".npz": read_npz}
READERS |= {".pth": read_pth, ".pt": read_pth, ".bin": read_pth}
