"""Keras' legacy HDF5: its dialects, and files that would lead the reader elsewhere or round in circles."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.pretrained.files import assert_same, refuse, sample, write_h5
from tl_jax.pretrained import formats

pytestmark = pytest.mark.fast


def test_of_keras_3(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample(), suffix="")
    assert_same(formats.read_arrays(tmp_path / "a.h5"), sample())


def test_whole_model(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.hdf5", sample(), group="model_weights")
    assert_same(formats.read_arrays(tmp_path / "a.hdf5"), sample())


def test_names_as_text_and_in_chunks(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"] = np.array(names[:1], "S")
        file.attrs["layer_names1"] = np.array(names[1:], h5py.string_dtype())
    assert_same(formats.read_arrays(tmp_path / "a.h5"), sample())


def test_names_that_are_no_text(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["layer_names"] = [1.0, 2.0]
    refuse(tmp_path / "a.h5", "layer_names is not text")


@pytest.mark.parametrize("dtype", ["S", h5py.string_dtype()])
def test_names_that_are_no_unicode(tmp_path: Path, dtype: Any) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["b_conv"].attrs["weight_names"] = np.array([b"\xff\xfe"], dtype)
    refuse(tmp_path / "a.h5", "utf-8")


@pytest.mark.parametrize("size", [0, 0x7F, 1 << 62])
def test_damaged_heap(tmp_path: Path, guarded: None, size: int) -> None:
    write_h5(tmp_path / "a.h5", sample())
    content = bytearray((tmp_path / "a.h5").read_bytes())
    heap = content.index(b"GCOL")
    entry = heap + 16
    while content[entry] or content[entry + 1]:  # to the entry of free space, whose number is 0
        entry += 16 + (content[entry + 8] + 7) // 8 * 8
    content[entry + 8 : entry + 16] = struct.pack("<Q", size)
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "heap")


def test_local_heap_that_is_free_in_a_circle(tmp_path: Path, guarded: None) -> None:
    write_h5(tmp_path / "a.h5", sample())
    content = bytearray((tmp_path / "a.h5").read_bytes())
    heap = content.index(b"HEAP")
    free, data = struct.unpack_from("<QQ", content, heap + 16)
    struct.pack_into("<Q", content, data + free, free)
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "cyclic")


@pytest.mark.parametrize("place", [8, 13, 14])
def test_start_that_keras_does_not_write(tmp_path: Path, place: int) -> None:
    write_h5(tmp_path / "a.h5", sample())
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[place] = 4
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "start")
    (tmp_path / "a.h5").write_bytes(bytes(512) + content)
    refuse(tmp_path / "a.h5", "start")


def test_things_that_look_like_heaps_but_are_values(tmp_path: Path) -> None:
    text = b"HEAP\0\0\0\0" + struct.pack("<QQQ", 32, 0, 1 << 40) + b"GCOL\1\0\0\0" + b"\xff" * 24
    arrays = {"a/x": np.frombuffer(text, np.uint8), "a/y": np.frombuffer(b"GCOL\1\0\0\0HEAP\0", np.uint8)}
    write_h5(tmp_path / "a.h5", arrays)
    assert_same(formats.read_arrays(tmp_path / "a.h5"), arrays)


def test_weights_of_no_layer(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["top_level_model_weights"].attrs["weight_names"] = ["scale:0"]
        file["top_level_model_weights/scale:0"] = np.float32(2)
    assert formats.read_arrays(tmp_path / "a.h5")["top_level_model_weights/scale"] == 2


def test_big_endian_values_become_native(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", {"a/x": np.arange(3, dtype=">f4")})
    assert_same(formats.read_arrays(tmp_path / "a.h5"), {"a/x": np.arange(3, dtype=np.float32)})


def test_key_twice(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["b_conv"].attrs["weight_names"] = ["one/conv/kernel:0", "two/conv/kernel:0"]
        file["b_conv/one/conv/kernel:0"] = file["b_conv/two/conv/kernel:0"] = np.ones(3)
    refuse(tmp_path / "a.h5", "conv/kernel", "twice")


def test_h5_of_something_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3)
    refuse(tmp_path / "other.h5", "layer_names")


def test_weight_that_is_listed_but_absent(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
    refuse(tmp_path / "a.h5", "bias:0", "absent")


def test_strings_are_no_weights(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", {"a/x": np.array([b"x", b"y"], object)})
    refuse(tmp_path / "a.h5", "a/x", "not numbers")


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/b_conv/b_conv/kernel:0")])
def test_links_are_not_followed(tmp_path: Path, link: Any) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(5, np.float32)
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
        file["b_conv/b_conv/bias:0"] = link
    refuse(tmp_path / "a.h5", "bias:0", "link")


def test_values_in_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
        options = {"shape": (3,), "dtype": "f4", "external": [(str(tmp_path / "secret"), 0, 12)]}
        file["b_conv/b_conv"].create_dataset("bias:0", **options)
    refuse(tmp_path / "a.h5", "another file")


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (1 << 20, 1 << 20)},
        {"shape": (1 << 20, 1 << 20), "chunks": (1024, 1024), "compression": "gzip"},
        {"shape": (1 << 20, 1 << 20), "chunks": (1 << 15, 1 << 14)},
        {"shape": (1 << 22,), "chunks": (1,)},  # small, but each chunk takes memory
    ],
)
def test_claims_more_than_it_has(tmp_path: Path, guarded: None, options: dict[str, Any]) -> None:
    write_h5(tmp_path / "a.h5", sample())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["b_conv/b_conv/bias:0"]
        file["b_conv/b_conv"].create_dataset("bias:0", dtype="u1", **options)
    refuse(tmp_path / "a.h5", "bias")


# ---- dialects and nested models of the legacy layout


def write_groups(path: Path, groups: dict[str, list[str]]) -> dict[str, float]:
    """Write the legacy layout by groups and their weights' names; return the value of each: its place in the file."""
    values = {f"{group}/{name}": float(i) for i, (group, name) in enumerate((g, n) for g in groups for n in groups[g])}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array(list(groups), "S")
        for group, names in groups.items():
            file.create_group(group).attrs["weight_names"] = np.array(names, "S") if names else []
        for name, value in values.items():
            file[name] = np.float32(value)
    return values


LEGACY = {
    "Keras 1": ({"c": ["c_W_1:0", "c_b_1:0"]}, ["c/c_W_1", "c/c_b_1"]),
    "names alone, Keras 3.0": ({"c": ["kernel", "bias"]}, ["c/kernel", "c/bias"]),
    "renamed by TensorFlow 1": ({"c": ["c_1/kernel:0", "c_1/bias:0"]}, ["c/kernel", "c/bias"]),
    "within a scope": ({"c": ["net/c/kernel:0"], "d": ["net/d/kernel:0"]}, ["c/kernel", "d/kernel"]),
    "a cell": ({"lstm": ["lstm/lstm_cell/kernel", "lstm/lstm_cell/bias"]}, ["lstm/kernel", "lstm/bias"]),
    "nested": ({"net": ["Conv1/kernel", "bn/gamma"], "top": ["top/bias"]}, ["Conv1/kernel", "bn/gamma", "top/bias"]),
    "nested in a scope": ({"net": ["all/net/a/kernel", "all/net/b/kernel"]}, ["a/kernel", "b/kernel"]),
    "nested, trained first": (
        {"net": ["a/gamma", "b/gamma", "a/mean", "b/mean"]},
        "a/gamma a/mean b/gamma b/mean".split(),
    ),
    "nested, of one layer": ({"net": ["only/kernel", "only/bias"]}, ["net/kernel", "net/bias"]),
}


@pytest.mark.parametrize("name", LEGACY)
def test_legacy_names(tmp_path: Path, name: str) -> None:
    groups, keys = LEGACY[name]
    values = write_groups(tmp_path / "a.h5", groups)
    actual = formats.read_arrays(tmp_path / "a.h5")
    assert list(actual) == keys
    written = {value: name.rpartition("/")[2].removesuffix(":0") for name, value in values.items()}
    assert [written.pop(float(actual[key])) for key in keys] == [key.rpartition("/")[2] for key in keys]
