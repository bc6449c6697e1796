"""Every reader gives back what plain libraries wrote, and meets mangled or hostile files with one readable error."""

import contextlib
import faulthandler
import io
import os
import pickle
import random
import resource
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tl_jax.errors import UserError
from tl_jax.weights import readers

pytestmark = pytest.mark.fast

Arrays = dict[str, np.ndarray]
STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}
STORAGES |= {
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
}


# ---- writers: each format by a plain library, PyTorch's by pickle with stand-ins for PyTorch's names


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


def sample(names: tuple[str, ...] = ("b_conv/kernel", "b_conv/bias", "a_bn/gamma", "a_bn/moving_mean")) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = ((3, 3, 2, 5), (5,), (5,), (4,))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}


WRITERS: dict[str, Callable[[Path, Arrays], None]] = {
    "keras.h5": write_h5,
    "gzip.h5": lambda path, arrays: write_h5(path, arrays, fixed=True, chunks=True, compression="gzip"),
    "plain.safetensors": lambda path, arrays: safetensors.numpy.save_file(arrays, path),
    "zip.pth": lambda path, arrays: write_zip(path, state_dict(arrays)),
    "old.pth": lambda path, arrays: write_old(path, state_dict(arrays)),
    "plain.npz": lambda path, arrays: np.savez(path, **arrays),
    "deflated.npz": lambda path, arrays: np.savez_compressed(path, **arrays),
}
PTH = pytest.mark.parametrize("write", [write_zip, write_old])
each_format = pytest.mark.parametrize("name", WRITERS)


def assert_same(actual: Arrays, expected: Arrays, ordered: bool = True) -> None:
    assert list(actual) == list(expected) if ordered else set(actual) == set(expected)
    for key, array in expected.items():
        assert actual[key].dtype == array.dtype and actual[key].shape == array.shape, key
        assert actual[key].tobytes() == array.tobytes(), key


def refuse(path: Path, *words: str) -> None:
    """Assert that reading fails in one line that names the file and holds ``words``."""
    with pytest.raises(UserError) as caught:
        readers.read(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for word in (str(path), *words):
        assert word in message


@pytest.fixture
def guarded() -> Iterator[None]:
    """Fail on an allocation of over 1 GiB, and end the process with a trace when a file takes a minute."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- all formats


@each_format
def test_reads_back_exactly(tmp_path: Path, name: str) -> None:
    arrays = sample()
    WRITERS[name](tmp_path / name, arrays)
    assert_same(readers.read(tmp_path / name), arrays, ordered="safetensors" not in name)


@each_format
def test_values_that_are_not_finite_pass(tmp_path: Path, name: str) -> None:
    arrays = {"head/bias": np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)}
    WRITERS[name](tmp_path / name, arrays)
    assert_same(readers.read(tmp_path / name), arrays)


@each_format
def test_cut_short(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, sample())
    content = (tmp_path / name).read_bytes()
    for size in (0, 1, 3, 8, 100, len(content) // 4, len(content) // 2, len(content) * 3 // 4, len(content) - 1):
        (tmp_path / name).write_bytes(content[:size])
        refuse(tmp_path / name, "again")


@each_format
def test_flipped_bytes(tmp_path: Path, name: str, guarded: None) -> None:
    WRITERS[name](tmp_path / name, sample())
    content, rng = (tmp_path / name).read_bytes(), random.Random(name)
    for _ in range(300):
        faulthandler.dump_traceback_later(60, exit=True)
        mangled = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            mangled[rng.randrange(len(mangled))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        (tmp_path / name).write_bytes(mangled)
        try:
            arrays = readers.read(tmp_path / name)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(array, np.ndarray) for array in arrays.values())


@each_format
def test_another_format_under_this_suffix(tmp_path: Path, name: str) -> None:
    for other in WRITERS:
        if Path(other).suffix != Path(name).suffix:
            WRITERS[other](tmp_path / other, sample())
            os.replace(tmp_path / other, tmp_path / name)
            refuse(tmp_path / name)


def test_unknown_suffix_and_missing_files(tmp_path: Path) -> None:
    refuse(tmp_path / "weights.h6", "'.h5'")
    refuse(tmp_path / "weights", "no suffix", ".safetensors")
    refuse(tmp_path / "weights.h5", "no such file")
    (tmp_path / "folder.pth").mkdir()
    refuse(tmp_path / "folder.pth", "no such file")


def test_suffix_in_capitals(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    os.rename(tmp_path / "a.npz", tmp_path / "A.NPZ")
    assert readers.read(tmp_path / "A.NPZ")["x"].tolist() == [1, 1, 1]


# ---- HDF5


def test_h5_of_keras_3(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample(), suffix="")
    assert_same(readers.read(tmp_path / "a.h5"), sample())


def test_h5_whole_model(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.hdf5", sample(), group="model_weights")
    assert_same(readers.read(tmp_path / "a.hdf5"), sample())


def test_h5_names_as_text_and_in_chunks(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"] = np.array(names[:1], "S")
        file.attrs["layer_names1"] = np.array(names[1:], h5py.string_dtype())
    assert_same(readers.read(tmp_path / "a.h5"), sample())


def test_h5_names_that_are_no_text(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["layer_names"] = [1.0, 2.0]
    refuse(tmp_path / "a.h5", "layer_names is no text")


@pytest.mark.parametrize("size", [0, 0x7F, 1 << 62])
def test_h5_damaged_heap(tmp_path: Path, guarded: None, size: int) -> None:
    write_h5(tmp_path / "a.h5", sample())
    content = bytearray((tmp_path / "a.h5").read_bytes())
    heap = content.index(b"GCOL")
    entry = heap + 16
    while content[entry] or content[entry + 1]:  # to the entry of free space, whose number is 0
        entry += 16 + (content[entry + 8] + 7) // 8 * 8
    content[entry + 8 : entry + 16] = struct.pack("<Q", size)
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "heap")


def test_h5_weights_of_no_layer(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["top_level_model_weights"].attrs["weight_names"] = ["scale:0"]
        file["top_level_model_weights/scale:0"] = np.float32(2)
    assert readers.read(tmp_path / "a.h5")["top_level_model_weights/scale"] == 2


def test_h5_big_endian_values_become_native(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", {"a/x": np.arange(3, dtype=">f4")})
    assert_same(readers.read(tmp_path / "a.h5"), {"a/x": np.arange(3, dtype=np.float32)})


def test_h5_key_twice(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["b_conv"].attrs["weight_names"] = ["b_conv/kernel:0", "inner/kernel:0"]
        file["b_conv/inner/kernel:0"] = np.ones(3)
    refuse(tmp_path / "a.h5", "b_conv/kernel", "twice")


def test_h5_of_other_layouts(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones(3)
    refuse(tmp_path / "own.weights.h5", "Keras 3", "legacy")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3)
    refuse(tmp_path / "other.h5", "layer_names")


def test_h5_weight_that_is_listed_but_absent(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
    refuse(tmp_path / "a.h5", "bias:0", "absent")


def test_h5_strings_are_no_weights(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", {"a/x": np.array([b"x", b"y"], object)})
    refuse(tmp_path / "a.h5", "a/x", "not numbers")


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/b_conv/b_conv/kernel:0")])
def test_h5_links_are_not_followed(tmp_path: Path, link: Any) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(5, np.float32)
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
        file["b_conv/b_conv/bias:0"] = link
    refuse(tmp_path / "a.h5", "bias:0", "link")


def test_h5_values_in_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
        options = {"shape": (3,), "dtype": "f4", "external": [(str(tmp_path / "secret"), 0, 12)]}
        file["b_conv/b_conv"].create_dataset("bias:0", **options)
    refuse(tmp_path / "a.h5", "another file")


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (1024, 1024), "compression": "gzip"}, {"chunks": (1 << 15, 1 << 14)}]
)
def test_h5_claims_more_than_it_has(tmp_path: Path, guarded: None, options: dict[str, Any]) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
        file["b_conv/b_conv"].create_dataset("bias:0", (1 << 20, 1 << 20), "f4", **options)
    refuse(tmp_path / "a.h5", "bias")


# ---- safetensors


def test_safetensors_types_order_and_metadata(tmp_path: Path) -> None:
    arrays = {
        "z": np.arange(4, dtype=ml_dtypes.bfloat16),
        "a": np.full((), 2, np.float16),
        "b": np.array([True, False]),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"model": "resnet50"})
    assert_same(readers.read(tmp_path / "a.safetensors"), arrays, ordered=False)
    assert readers.read_metadata(tmp_path / "a.safetensors") == {"model": "resnet50"}
    safetensors.numpy.save_file(arrays, tmp_path / "b.safetensors")
    assert readers.read_metadata(tmp_path / "b.safetensors") == {}
    (tmp_path / "b.safetensors").write_bytes(b"\x40")
    with pytest.raises(UserError, match="damaged"):
        readers.read_metadata(tmp_path / "b.safetensors")


def test_safetensors_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    header = (
        b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    )
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\1\2")
    assert list(readers.read(tmp_path / "a.safetensors")) == ["b", "a"]


@pytest.mark.parametrize(
    "entry",
    [b'"F8_E4M3","shape":[4]', b'"F32","shape":[99999999999,99999999]', b'"F32","shape":[2]', b'"OBJ","shape":[1]'],
)
def test_safetensors_lies(tmp_path: Path, guarded: None, entry: bytes) -> None:
    header = b'{"a":{"dtype":' + entry + b',"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refuse(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + header)
    refuse(tmp_path / "a.safetensors")


# ---- npz


def test_npz_types(tmp_path: Path) -> None:
    arrays = {
        "f/kernel": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "i": np.arange(3),
        "s": np.ones((), np.float32),
    }
    np.savez(tmp_path / "a.npz", **arrays, big=np.arange(2, dtype=">i4"))
    actual = readers.read(tmp_path / "a.npz")
    assert actual.pop("big").dtype.isnative
    assert list(actual) == list(arrays) and all(np.array_equal(actual[k], arrays[k]) for k in arrays)


@pytest.mark.parametrize("value", [np.array([{}, 1], object), np.array(["x"]), np.zeros(2, "f4,i4")])
def test_npz_without_numbers(tmp_path: Path, value: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2), y=value)
    refuse(tmp_path / "a.npz", "'y'", "not numbers")


def test_npz_object_array_runs_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=np.array([Hostile(tmp_path / "trace")], object))
    refuse(tmp_path / "a.npz", "'y'")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(2,)", "(" * 90, "(-1, -4)", "'x'", "(4,), 'more': 1"])
def test_npz_header_lies(tmp_path: Path, guarded: None, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(16))
    refuse(tmp_path / "a.npz")


def test_npz_bomb(tmp_path: Path, guarded: None) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 26, np.uint8))
    refuse(tmp_path / "a.npz", "claim")


def test_npz_name_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(1))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", archive.read("x.npy"))
    refuse(tmp_path / "a.npz", "'x'", "twice")


# ---- pth


class Hostile:
    """Creates a file when it is unpickled by a trusting reader."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@PTH
@pytest.mark.parametrize("dtype", STORAGES)
def test_pth_types(tmp_path: Path, write: Any, dtype: str) -> None:
    arrays = {
        "x": np.arange(-3, 3).reshape(2, 3).astype(dtype),
        "scalar": np.ones((), dtype),
        "none": np.zeros((0, 2), dtype),
    }
    write(tmp_path / "a.pth", state_dict(arrays))
    assert_same(readers.read(tmp_path / "a.pth"), arrays)


@PTH
def test_pth_views_of_one_storage(tmp_path: Path, write: Any) -> None:
    base = np.arange(24, dtype=np.float32)
    storage = Storage("7", base)
    views = {"all": (0, (24,), (1,)), "turned": (0, (6, 4), (1, 6)), "part": (5, (2, 3), (6, 2)), "last": (23, (), ())}
    tree = {k: Reduced("torch._utils._rebuild_tensor_v2", storage, *v, True, OrderedDict()) for k, v in views.items()}
    write(tmp_path / "a.bin", tree)
    actual = readers.read(tmp_path / "a.bin")
    assert np.array_equal(actual["turned"], base.reshape(4, 6).T)
    assert np.array_equal(actual["part"], np.lib.stride_tricks.as_strided(base[5:], (2, 3), (24, 8)))
    assert actual["last"] == 23 and np.shares_memory(actual["all"], actual["part"])


@PTH
def test_pth_parameters_and_older_calls(tmp_path: Path, write: Any) -> None:
    base = np.arange(4, dtype=np.float32)
    described = (Storage("4", base), 0, (4,), (1,))
    tree = {
        "rebuilt": Reduced("torch._utils._rebuild_parameter", tensor(base, "1"), True, OrderedDict()),
        "parameter": Reduced("torch.nn.parameter.Parameter", tensor(base, "2"), state=(True, False, OrderedDict())),
        "first": tensor(base, "3", "tensor"),
        "stated": Reduced("torch.FloatTensor", state=described),
    }
    write(tmp_path / "a.pt", tree)
    assert_same(readers.read(tmp_path / "a.pt"), dict.fromkeys(tree, base))


@PTH
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_pth_checkpoints_are_unwrapped(tmp_path: Path, write: Any, key: str) -> None:
    tree = {"epoch": 3, key: state_dict(sample()), "optimizer": {"state": {0: {"step": 1.5}}, "groups": [{"lr": None}]}}
    write(tmp_path / "a.pth", tree)
    assert_same(readers.read(tmp_path / "a.pth"), sample())


@PTH
def test_pth_metadata_of_the_state_dict_is_dropped(tmp_path: Path, write: Any) -> None:
    tree = state_dict(sample())
    tree._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    write(tmp_path / "a.pth", tree)
    assert_same(readers.read(tmp_path / "a.pth"), sample())


@PTH
@pytest.mark.parametrize("tree", [{}, [1], 3, None, {"x": 1}, {"x": [1]}, {1: 2}, {"model": {"x": "y"}}])
def test_pth_without_a_state_dict(tmp_path: Path, write: Any, tree: Any) -> None:
    write(tmp_path / "a.pth", tree)
    refuse(tmp_path / "a.pth", "state_dict()")


@PTH
def test_pth_runs_nothing(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "a.pth", {"x": Hostile(tmp_path / "trace")})
    refuse(tmp_path / "a.pth", f"{os.system.__module__}.system", "state_dict()")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "trace")))
    refuse(tmp_path / "b.pth", "system")
    assert not (tmp_path / "trace").exists()


PROGRAMS = {
    "os.system": b"cos\nsystem\nX\x04\0\0\0true\x85R.",
    "builtins.eval": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    "torch.nn.Linear": b"ctorch.nn\nLinear\n)\x81.",
    "numpy.ndarray": b"cnumpy\nndarray\n)R.",
    "collections.OrderedDict.fromkeys": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    "opcode INST": b"(S'true'\nios\nsystem\n.",
    "opcode EXT1": b"\x82\x01.",
    "opcode NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92.",
    "opcode EMPTY_SET": b"\x80\x04\x8f.",
    "opcode BYTEARRAY8": b"\x96\x01\0\0\0\0\0\0\0x.",
    "a call of str": b"X\x01\0\0\0x)R.",
    "a call of Storage": b"ctorch\nFloatStorage\n)R.",
    "state set on _Call": b"ccollections\nOrderedDict\n}b.",
    "state set on Storage": b"ctorch\nFloatStorage\n}b.",
    "a persistent object tagged module": b"(X\x06\0\0\0moduleNNNNtQ.",
}


@PTH
@pytest.mark.parametrize("word", PROGRAMS)
def test_pth_refuses_by_name(tmp_path: Path, write: Any, word: str) -> None:
    write(tmp_path / "a.pth", PROGRAMS[word])
    refuse(tmp_path / "a.pth", word, "refused")


@PTH
@pytest.mark.parametrize("name", ["qtensor", "sparse_tensor"])
def test_pth_kinds_of_tensor_that_are_not_read(tmp_path: Path, write: Any, name: str) -> None:
    write(tmp_path / "a.pth", {"x": Reduced(f"torch._utils._rebuild_{name}", 1)})
    refuse(tmp_path / "a.pth", name, "quantized" if name == "qtensor" else "a sparse")


@PTH
def test_pth_big_endian(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "a.pth", state_dict(sample()), order=b"big")
    refuse(tmp_path / "a.pth", "big-endian")


TENSORS = {
    "offset": (1, (4,), (1,)),
    "size": (0, (5,), (1,)),
    "stride": (0, (2, 2), (3, 1)),
    "negative stride": (3, (4,), (-1,)),
    "negative offset": (-1, (4,), (1,)),
    "huge": (0, (1 << 62, 4), (1, 1)),
    "huge and empty": (0, (0, 1 << 62), (1, 1)),
    "expanded": (0, (1 << 40,), (0,)),
    "ranks": (0, (2, 2), (1,)),
    "text": (0, ("4",), (1,)),
    "list": (0, [4], [1]),
    "none": (None, (4,), (1,)),
    "deep": (0, (1,) * 70, (1,) * 70),
}


@PTH
@pytest.mark.parametrize("lie", TENSORS)
def test_pth_tensors_beyond_their_storage(tmp_path: Path, write: Any, guarded: None, lie: str) -> None:
    storage = Storage("0", np.zeros(4, np.float32))
    write(tmp_path / "a.pth", {"x": Reduced("torch._utils._rebuild_tensor", storage, *TENSORS[lie])})
    refuse(tmp_path / "a.pth", "damaged")


@PTH
@pytest.mark.parametrize("numel", [5, 1 << 40, 1 << 62, 1 << 70, -1, "4", (4,)])
def test_pth_storages_beyond_their_bytes(tmp_path: Path, write: Any, guarded: None, numel: Any) -> None:
    storage = Storage("0", np.zeros(4, np.float32), numel)
    write(tmp_path / "a.pth", {"x": Reduced("torch._utils._rebuild_tensor", storage, 0, (4,), (1,))})
    refuse(tmp_path / "a.pth", "damaged")


def _laughs() -> bytes:
    """Return a pickle of lists of nine times the list before: small, until somebody prints it."""
    return b"(lq\0" + b"".join(b"(" + 9 * bytes([*b"h", i]) + bytes([*b"lq", i + 1]) for i in range(99))


HEAVY = {
    "memo index": b"Nr\xff\xff\xff\xff.",
    "long text": b"X\xff\xff\xff\xffabc.",
    "longer text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "long number": b"\x8b\xff\xff\xff\x7f\x01.",
    "deep key": b"}" + b")" + b"\x85" * 300_000 + b"Ns.",
    "laughs": _laughs() + b".",
    "laughing name": _laughs() + b"N\x93.",
    "endless": b"N" * 100_000,
    "nothing": b".",
}


@PTH
@pytest.mark.parametrize("name", HEAVY)
def test_pth_programs_that_would_exhaust_the_machine(tmp_path: Path, write: Any, guarded: None, name: str) -> None:
    write(tmp_path / "a.pth", HEAVY[name])
    refuse(tmp_path / "a.pth")


def test_pth_old_storage_keys_that_would_exhaust_the_stack(tmp_path: Path, guarded: None) -> None:
    write_old(tmp_path / "a.pth", pickled(state_dict(sample()), [], view=(None,)))
    content = (tmp_path / "a.pth").read_bytes().removesuffix(pickle.dumps([], protocol=2))
    (tmp_path / "a.pth").write_bytes(content + b"])" + b"\x85" * 300_000 + b"a." + bytes(64))
    refuse(tmp_path / "a.pth", "damaged")


def test_pth_bomb(tmp_path: Path, guarded: None) -> None:
    write_zip(tmp_path / "a.pth", state_dict({"x": np.zeros(1 << 24)}), compression=zipfile.ZIP_DEFLATED)
    refuse(tmp_path / "a.pth", "claim")


def test_pth_zip_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    os.rename(tmp_path / "a.npz", tmp_path / "a.pth")
    refuse(tmp_path / "a.pth", "data.pkl")


def test_pth_tar_of_the_first_versions(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(bytes(257) + b"ustar\0" + bytes(249))
    refuse(tmp_path / "a.pth", "torch 0.1")


def test_pth_old_storages_that_are_views(tmp_path: Path) -> None:
    base, storages = np.arange(6, dtype=np.float32), []
    tree = {"x": Reduced("torch._utils._rebuild_tensor", Storage("0", base), 0, (2,), (1,))}
    program = pickled(tree, storages, view=(("9", 3, 2),))
    write_old(tmp_path / "a.pth", program)
    content = (tmp_path / "a.pth").read_bytes().removesuffix(pickle.dumps([], protocol=2))
    tail = pickle.dumps(["0"], protocol=2) + struct.pack("<q", 6) + base.tobytes()
    (tmp_path / "a.pth").write_bytes(content + tail)
    assert_same(readers.read(tmp_path / "a.pth"), {"x": base[3:5]})
