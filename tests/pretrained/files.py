"""Weight files of every format, written by plain libraries, and what all tests of the readers ask of them."""

import contextlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from tl_jax.pretrained import formats
from tl_jax.utils.errors import UserError

Arrays = dict[str, np.ndarray]
KINDS = "float64 Double float32 Float float16 Half bfloat16 BFloat16 int64 Long int32 Int int16 Short int8 Char".split()
KINDS += "uint8 Byte bool Bool complex64 ComplexFloat".split()
STORAGES = dict(zip(KINDS[::2], KINDS[1::2], strict=True))  # PyTorch's names of types


# ---- PyTorch's formats, by pickle with stand-ins for PyTorch's names


class Storage:
    def __init__(self, key: str, values: np.ndarray, numel: int | None = None):
        self.key, self.values = key, np.ascontiguousarray(values).ravel()
        self.numel = self.values.size if numel is None else numel


class Reduced:
    """An object pickled as a call of ``MODULE.NAME(*arguments)``, with ``state`` set on the result."""

    def __init__(self, name: str, *arguments: Any, state: Any = None):
        self.name, self.arguments, self.state = name, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return stub(self.name), self.arguments, self.state


def stub(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module], attribute)


@contextlib.contextmanager
def stubs() -> Iterator[None]:
    """Put modules with PyTorch's names in place of any real ones, so that pickle can refer to their members."""
    names = [f"torch.{kind}Storage" for kind in STORAGES.values()]
    names += ["torch.FloatTensor", "torch.nn.parameter.Parameter"]
    calls = ("tensor", "tensor_v2", "parameter", "qtensor", "sparse_tensor")
    names += [f"torch._utils._rebuild_{call}" for call in calls]
    saved = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torch"}
    for name in saved:
        del sys.modules[name]
    for name in names:
        module, _, attribute = name.rpartition(".")
        for depth in range(module.count(".") + 1):
            sys.modules.setdefault(part := module.rsplit(".", depth)[0], types.ModuleType(part))
        setattr(sys.modules[module], attribute, type(attribute, (), {"__module__": module}))
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
            del sys.modules[name]
        sys.modules.update(saved)


def pickled(tree: Any, storages: list[Storage], view: tuple[Any, ...] = ()) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Storage):
                return None
            if value not in storages:
                storages.append(value)
            kind = stub(f"torch.{STORAGES[value.values.dtype.name]}Storage")
            return ("storage", kind, value.key, "cpu", value.numel, *view)

    buffer = io.BytesIO()
    with stubs():
        Pickler(buffer, protocol=2).dump(tree)
    return buffer.getvalue()


def write_zip(path: Path, tree: Any, order: bytes = b"little", compression: int = zipfile.ZIP_STORED) -> None:
    storages: list[Storage] = []
    program = tree if isinstance(tree, bytes) else pickled(tree, storages)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", order)
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.values.tobytes())
        archive.writestr("archive/version", b"3\n")


def write_old(path: Path, tree: Any, order: bytes = b"little") -> None:
    storages: list[Storage] = []
    program = tree if isinstance(tree, bytes) else pickled(tree, storages, view=(None,))
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": order == b"little"})
    parts = [pickle.dumps(part, protocol=2) for part in head] + [program]
    parts.append(pickle.dumps([storage.key for storage in storages], protocol=2))
    parts += [struct.pack("<q", storage.values.size) + storage.values.tobytes() for storage in storages]
    path.write_bytes(b"".join(parts))


def tensor(array: np.ndarray, key: str = "0", call: str = "tensor_v2") -> Reduced:
    steps = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
    rest = () if call == "tensor" else (False, OrderedDict())
    return Reduced(f"torch._utils._rebuild_{call}", Storage(key, array), 0, array.shape, steps, *rest)


def state_dict(arrays: Arrays) -> OrderedDict[str, Reduced]:
    return OrderedDict((name, tensor(array, str(i))) for i, (name, array) in enumerate(arrays.items()))


# ---- HDF5 and all


def write_h5(
    path: Path, arrays: Arrays, suffix: str = ":0", group: str = "", fixed: bool = False, **options: Any
) -> None:
    """Write ``LAYER/WEIGHT`` arrays in the layout of Keras 2, or of 3 when ``suffix`` is empty.

    Names are text of variable length, as h5py 3 writes a list of bytes, or of ``fixed`` length, as h5py 2 did.
    """

    def text(names: list[str]) -> Any:
        return np.array(names, "S") if fixed and names else [name.encode() for name in names]

    names = [f"{layer}/{name.split('/')[-1]}{suffix}" for name in arrays for layer in [name.split("/")[0]]]
    layers = list(dict.fromkeys(["input_1", *(name.split("/")[0] for name in arrays)]))
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = text(layers)
        for layer in layers:
            child = root.create_group(layer)
            child.attrs["weight_names"] = text([name for name in names if name.startswith(f"{layer}/")])
        for name, array in zip(names, arrays.values(), strict=True):
            root[name.split("/")[0]].create_dataset(name, data=array, **options)
        root.create_group("top_level_model_weights").attrs["weight_names"] = []


def write_objects(path: Path | io.BytesIO, arrays: Mapping[str, Any], names: Mapping[str, str] = {}) -> None:
    """Write the layout since tf.keras 2.12: arrays by their path, ``layers/conv2d/vars/0``.

    ``names`` are the layers' own by the path of the layer, ``layers/conv2d``, as Keras has written them since 3.6.
    """
    with h5py.File(path, "w") as file:
        for group in ("", *names):
            file.require_group(f"{group}/vars")
        for group, name in names.items():
            file[group]["vars"].attrs["name"] = name
        for where, array in arrays.items():
            file[where] = array


def write_keras(path: Path, arrays: Mapping[str, Any], names: Mapping[str, str] = {}, compression: int = 0) -> None:
    """Write the same into a zip as ``model.save`` does, with a configuration that nobody should look at."""
    content = io.BytesIO()
    write_objects(content, arrays, names)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", "neither JSON nor anything else")
        archive.writestr("model.weights.h5", content.getvalue())


def objects(arrays: Arrays) -> tuple[Arrays, dict[str, str]]:
    """Return what to give to ``write_objects`` in order to read ``LAYER/WEIGHT`` arrays back, in another order."""
    layers = list(dict.fromkeys(name.split("/")[0] for name in arrays))
    groups = {layer: f"layers/layer_{i}" if i else "layers/layer" for i, layer in enumerate(layers)}
    paths = {f"{groups[name.split('/')[0]]}/vars/{name.split('/')[1]}": array for name, array in arrays.items()}
    return paths, {group: layer for layer, group in groups.items()}


def sample(names: tuple[str, ...] = ("b_conv/kernel", "b_conv/bias", "a_bn/gamma", "a_bn/moving_mean")) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = ((3, 3, 2, 5), (5,), (5,), (4,))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}


WRITERS: dict[str, Callable[[Path, Arrays], None]] = {
    "keras.h5": write_h5,
    "gzip.h5": lambda path, arrays: write_h5(path, arrays, fixed=True, chunks=True, compression="gzip"),
    "numbered.weights.h5": lambda path, arrays: write_objects(path, *objects(arrays)),
    "zip.keras": lambda path, arrays: write_keras(path, *objects(arrays)),
    "deflated.keras": lambda path, arrays: write_keras(path, *objects(arrays), compression=zipfile.ZIP_DEFLATED),
    "plain.safetensors": lambda path, arrays: safetensors.numpy.save_file(arrays, path),
    "zip.pth": lambda path, arrays: write_zip(path, state_dict(arrays)),
    "old.pth": lambda path, arrays: write_old(path, state_dict(arrays)),
    "plain.npz": lambda path, arrays: np.savez(path, **arrays),
    "deflated.npz": lambda path, arrays: np.savez_compressed(path, **arrays),
}


def assert_same(actual: Arrays, expected: Arrays, ordered: bool = True) -> None:
    assert list(actual) == list(expected) if ordered else set(actual) == set(expected)
    for key, array in expected.items():
        assert actual[key].dtype == array.dtype and actual[key].shape == array.shape, key
        assert actual[key].tobytes() == array.tobytes(), key


def refuse(path: Path, *words: str) -> None:
    """Assert that reading fails in one line that names the file and holds ``words``."""
    with pytest.raises(UserError) as caught:
        formats.read_arrays(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for word in (str(path), *words):
        assert word in message


UNORDERED = {
    "numbered.weights.h5",
    "zip.keras",
    "deflated.keras",
    "plain.safetensors",
}  # formats with an order of theirs


class Hostile:
    """Creates a file when it is unpickled by a trusting reader."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)
