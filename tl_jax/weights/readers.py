"""Read weight files into flat dictionaries of NumPy arrays, keyed and ordered as the file has them."""

import functools
import os
import zipfile
from pathlib import Path

import numpy as np
import safetensors

from tl_jax import claims
from tl_jax.claims import npz_members, read_npy
from tl_jax.errors import UserError, nearest
from tl_jax.weights.checks import check_numeric
from tl_jax.weights.h5 import native, read_h5, read_keras
from tl_jax.weights.pth import DAMAGE, Contents, damaged, existing, read_checkpoint, read_pth


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``read_contents``."""
    return read_contents(path).arrays


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Return every array of a weight file, read by the format that its suffix names (see ``READERS``).

    Raises ``UserError`` when the suffix is unknown, or the file is missing, damaged, or holds anything but numbers.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'no suffix'} is no format of weights; {nearest(suffix, _SUGGESTED)}")
    reader = READERS[suffix]
    return read_checkpoint(path) if reader is read_pth else Contents(reader(path))


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
            for key, member in npz_members(path, archive):
                arrays[key] = native(read_npy(key, archive, member, functools.partial(check_numeric, path)))
    except claims.DAMAGED as error:
        raise damaged(path, error) from error
    return arrays


READERS = {".h5": read_h5, ".hdf5": read_h5, ".keras": read_keras, ".safetensors": read_safetensors, ".npz": read_npz}
_SUGGESTED = (*READERS, ".pth", ".pt", ".ckpt", ".bin")
# All of them torch.save's: of PyTorch's own examples (.pth.tar, .th), of Lightning and of Hugging Face.
READERS |= dict.fromkeys((".pth", ".pt", ".th", ".tar", ".ckpt", ".bin"), read_pth)
