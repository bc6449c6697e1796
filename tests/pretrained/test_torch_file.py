"""PyTorch's files, of both formats: what they may hold, and that nothing they say is run or believed."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pretrained.files import (
    STORAGES,
    Hostile,
    Reduced,
    Storage,
    assert_same,
    pickled,
    refuse,
    sample,
    state_dict,
    tensor,
    write_old,
    write_zip,
)
from tl_jax.pretrained import formats

pytestmark = pytest.mark.fast
PTH = pytest.mark.parametrize("write", [write_zip, write_old])


@PTH
@pytest.mark.parametrize("dtype", STORAGES)
def test_types(tmp_path: Path, write: Any, dtype: str) -> None:
    arrays = {
        "x": np.arange(-3, 3).reshape(2, 3).astype(dtype),
        "scalar": np.ones((), dtype),
        "none": np.zeros((0, 2), dtype),
    }
    write(tmp_path / "a.pth", state_dict(arrays))
    assert_same(formats.read_arrays(tmp_path / "a.pth"), arrays)


@PTH
def test_views_of_one_storage(tmp_path: Path, write: Any) -> None:
    base = np.arange(24, dtype=np.float32)
    storage = Storage("7", base)
    views = {"all": (0, (24,), (1,)), "turned": (0, (6, 4), (1, 6)), "part": (5, (2, 3), (6, 2)), "last": (23, (), ())}
    tree = {k: Reduced("torch._utils._rebuild_tensor_v2", storage, *v, True, OrderedDict()) for k, v in views.items()}
    write(tmp_path / "a.bin", tree)
    actual = formats.read_arrays(tmp_path / "a.bin")
    assert np.array_equal(actual["turned"], base.reshape(4, 6).T)
    assert np.array_equal(actual["part"], np.lib.stride_tricks.as_strided(base[5:], (2, 3), (24, 8)))
    assert actual["last"] == 23 and np.shares_memory(actual["all"], actual["part"])


@PTH
def test_parameters_and_older_calls(tmp_path: Path, write: Any) -> None:
    base = np.arange(4, dtype=np.float32)
    described = (Storage("4", base), 0, (4,), (1,))
    tree = {
        "rebuilt": Reduced("torch._utils._rebuild_parameter", tensor(base, "1"), True, OrderedDict()),
        "parameter": Reduced("torch.nn.parameter.Parameter", tensor(base, "2"), state=(True, False, OrderedDict())),
        "first": tensor(base, "3", "tensor"),
        "stated": Reduced("torch.FloatTensor", state=described),
    }
    write(tmp_path / "a.pt", tree)
    assert_same(formats.read_arrays(tmp_path / "a.pt"), dict.fromkeys(tree, base))


@PTH
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_are_unwrapped(tmp_path: Path, write: Any, key: str) -> None:
    tree = {"epoch": 3, key: state_dict(sample()), "optimizer": {"state": {0: {"step": 1.5}}, "groups": [{"lr": None}]}}
    write(tmp_path / "a.pth", tree)
    assert_same(formats.read_arrays(tmp_path / "a.pth"), sample())


@PTH
def test_metadata_of_the_state_dict_is_dropped(tmp_path: Path, write: Any) -> None:
    tree = state_dict(sample())
    tree._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    write(tmp_path / "a.pth", tree)
    assert_same(formats.read_arrays(tmp_path / "a.pth"), sample())


@PTH
@pytest.mark.parametrize("tree", [{}, [1], 3, None, {"x": 1}, {"x": [1]}, {1: 2}, {"model": {"x": "y"}}])
def test_without_a_state_dict(tmp_path: Path, write: Any, tree: Any) -> None:
    write(tmp_path / "a.pth", tree)
    refuse(tmp_path / "a.pth", "state_dict()")


@PTH
def test_runs_nothing(tmp_path: Path, write: Any) -> None:
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
def test_refuses_by_name(tmp_path: Path, write: Any, word: str) -> None:
    write(tmp_path / "a.pth", PROGRAMS[word])
    refuse(tmp_path / "a.pth", word, "refused")


@PTH
@pytest.mark.parametrize("name", ["qtensor", "sparse_tensor"])
def test_kinds_of_tensor_that_are_not_read(tmp_path: Path, write: Any, name: str) -> None:
    write(tmp_path / "a.pth", {"x": Reduced(f"torch._utils._rebuild_{name}", 1)})
    refuse(tmp_path / "a.pth", name, "quantized" if name == "qtensor" else "a sparse")


@PTH
def test_big_endian(tmp_path: Path, write: Any) -> None:
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
def test_tensors_beyond_their_storage(tmp_path: Path, write: Any, guarded: None, lie: str) -> None:
    storage = Storage("0", np.zeros(4, np.float32))
    write(tmp_path / "a.pth", {"x": Reduced("torch._utils._rebuild_tensor", storage, *TENSORS[lie])})
    refuse(tmp_path / "a.pth", "damaged")


@PTH
@pytest.mark.parametrize("numel", [5, 1 << 40, 1 << 62, 1 << 70, -1, "4", (4,)])
def test_storages_beyond_their_bytes(tmp_path: Path, write: Any, guarded: None, numel: Any) -> None:
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
def test_programs_that_would_exhaust_the_machine(tmp_path: Path, write: Any, guarded: None, name: str) -> None:
    write(tmp_path / "a.pth", HEAVY[name])
    refuse(tmp_path / "a.pth")


def test_old_storage_keys_that_would_exhaust_the_stack(tmp_path: Path, guarded: None) -> None:
    write_old(tmp_path / "a.pth", pickled(state_dict(sample()), [], view=(None,)))
    content = (tmp_path / "a.pth").read_bytes().removesuffix(pickle.dumps([], protocol=2))
    (tmp_path / "a.pth").write_bytes(content + b"])" + b"\x85" * 300_000 + b"a." + bytes(64))
    refuse(tmp_path / "a.pth", "damaged")


def test_bomb(tmp_path: Path, guarded: None) -> None:
    write_zip(tmp_path / "a.pth", state_dict({"x": np.zeros(1 << 24)}), compression=zipfile.ZIP_DEFLATED)
    refuse(tmp_path / "a.pth", "exceed")


def test_zip_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    os.rename(tmp_path / "a.npz", tmp_path / "a.pth")
    refuse(tmp_path / "a.pth", "data.pkl")


def test_tar_of_the_first_versions(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(bytes(257) + b"ustar\0" + bytes(249))
    refuse(tmp_path / "a.pth", "torch 0.1")


def test_old_storages_that_are_views(tmp_path: Path) -> None:
    base, storages = np.arange(6, dtype=np.float32), []
    tree = {"x": Reduced("torch._utils._rebuild_tensor", Storage("0", base), 0, (2,), (1,))}
    program = pickled(tree, storages, view=(("9", 3, 2),))
    write_old(tmp_path / "a.pth", program)
    content = (tmp_path / "a.pth").read_bytes().removesuffix(pickle.dumps([], protocol=2))
    tail = pickle.dumps(["0"], protocol=2) + struct.pack("<q", 6) + base.tobytes()
    (tmp_path / "a.pth").write_bytes(content + tail)
    assert_same(formats.read_arrays(tmp_path / "a.pth"), {"x": base[3:5]})
