"""What holds for every format, and the formats of safetensors and NumPy."""

import os
import re
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.pretrained.files import UNORDERED, WRITERS, Hostile, assert_same, refuse, sample
from tl_jax.pretrained import formats
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
each_format = pytest.mark.parametrize("name", WRITERS)


@each_format
def test_reads_back_exactly(tmp_path: Path, name: str) -> None:
    arrays = sample()
    WRITERS[name](tmp_path / name, arrays)
    assert_same(formats.read_arrays(tmp_path / name), arrays, ordered=name not in UNORDERED)


@each_format
def test_values_that_are_not_finite_pass(tmp_path: Path, name: str) -> None:
    arrays = {"head/bias": np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)}
    WRITERS[name](tmp_path / name, arrays)
    assert_same(formats.read_arrays(tmp_path / name), arrays)


@each_format
def test_cut_short(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, sample())
    content = (tmp_path / name).read_bytes()
    for size in (0, 1, 3, 8, 100, len(content) // 4, len(content) // 2, len(content) * 3 // 4, len(content) - 1):
        (tmp_path / name).write_bytes(content[:size])
        refuse(tmp_path / name, "again")


@each_format
def test_another_format_under_this_suffix(tmp_path: Path, name: str) -> None:
    for other in WRITERS:
        if Path(other).suffix != Path(name).suffix and (Path(other).suffix, Path(name).suffix) != (".h5", ".keras"):
            WRITERS[other](tmp_path / other, sample())
            os.replace(tmp_path / other, tmp_path / name)
            refuse(tmp_path / name)


def test_unknown_suffix_and_missing_files(tmp_path: Path) -> None:
    refuse(tmp_path / "weights.h6", "'.h5'")
    refuse(tmp_path / "weights", "no suffix", ".safetensors")
    refuse(tmp_path / "weights.h5", "file not found")
    (tmp_path / "folder.pth").mkdir()
    refuse(tmp_path / "folder.pth", "file not found")


def test_suffix_in_capitals(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    os.rename(tmp_path / "a.npz", tmp_path / "A.NPZ")
    assert formats.read_arrays(tmp_path / "A.NPZ")["x"].tolist() == [1, 1, 1]


# ---- safetensors


def test_safetensors_types_order_and_metadata(tmp_path: Path) -> None:
    arrays = {
        "z": np.arange(4, dtype=ml_dtypes.bfloat16),
        "a": np.full((), 2, np.float16),
        "b": np.array([True, False]),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"model": "resnet50"})
    assert_same(formats.read_arrays(tmp_path / "a.safetensors"), arrays, ordered=False)
    assert formats.read_metadata(tmp_path / "a.safetensors") == {"model": "resnet50"}
    safetensors.numpy.save_file(arrays, tmp_path / "b.safetensors")
    assert formats.read_metadata(tmp_path / "b.safetensors") == {}
    (tmp_path / "b.safetensors").write_bytes(b"\x40")
    with pytest.raises(UserError, match="damaged"):
        formats.read_metadata(tmp_path / "b.safetensors")


def test_safetensors_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    header = (
        b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    )
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\1\2")
    assert list(formats.read_arrays(tmp_path / "a.safetensors")) == ["b", "a"]


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
    actual = formats.read_arrays(tmp_path / "a.npz")
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
    refuse(tmp_path / "a.npz", "declare")


def test_npz_name_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(1))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", archive.read("x.npy"))
    refuse(tmp_path / "a.npz", "'x'", "twice")


# ---- zips of all kinds


@pytest.mark.parametrize("name", ["zip.keras", "deflated.keras", "zip.pth", "plain.npz", "deflated.npz"])
@pytest.mark.parametrize("field", [20, 24])
def test_zip_that_claims_more_than_it_has(tmp_path: Path, guarded: None, name: str, field: int) -> None:
    WRITERS[name](tmp_path / name, sample())
    content = bytearray((tmp_path / name).read_bytes())
    for match in re.finditer(b"PK\1\2", content):  # what the directory says of a member: bytes in the file, unpacked
        struct.pack_into("<I", content, match.start() + field, (1 << 31) - 1)
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, "claim")
