"""Keras' numbered variables, in HDF5 and in the zip ``.keras``."""

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from tests.pretrained.files import assert_same, refuse, sample, write_h5, write_keras, write_objects
from tl_jax.pretrained import formats

pytestmark = pytest.mark.fast


def numbered(*groups: str) -> dict[str, np.ndarray]:
    """Return a variable for each of ``PATH:COUNT``, its value the place among all."""
    paths = [f"{path}/vars/{i}" for group in groups for path, _, n in [group.partition(":")] for i in range(int(n))]
    return {path: np.float32(i) for i, path in enumerate(paths)}


def test_numbered_variables_are_named_by_class(tmp_path: Path) -> None:
    groups = "batch_normalization:4 batch_normalization_1:3 batch_normalization_2:2 batch_normalization_3:7".split()
    groups += "conv2d:2 conv2d_1:1 dense:2 dense_1:3 depthwise_conv2d:1 normalization:3 re_lu:0".split()
    arrays = numbered(*(f"layers/{group}" for group in groups))
    write_objects(tmp_path / "a.weights.h5", arrays, {"layers/re_lu": "relu"})
    norm, keys = ["gamma", "beta", "moving_mean", "moving_variance"], []
    words = [norm, norm[1:], norm[2:], "0123456", ["kernel", "bias"], ["kernel"], ["kernel", "bias"], "012"]
    for group, names in zip(groups, [*words, ["kernel"], "012"], strict=False):
        keys += [f"{group.partition(':')[0]}/{name}" for name in names]
    actual = formats.read_arrays(tmp_path / "a.weights.h5")
    assert list(actual) == keys
    assert [float(array) for array in actual.values()] == list(range(len(keys)))


@pytest.mark.parametrize("write", [write_objects, write_keras])
def test_layers_in_order_under_their_own_names(tmp_path: Path, write: Any) -> None:
    groups = ["layers/conv2d", *(f"layers/conv2d_{i}" for i in range(1, 12))]
    arrays = numbered(*(f"{group}:1" for group in groups))
    path = tmp_path / ("a.keras" if write is write_keras else "a.weights.h5")
    write(path, arrays)
    assert list(formats.read_arrays(path)) == [f"{group[7:]}/kernel" for group in groups]
    write(path, arrays, {group: f"conv2d_{94 - i}" for i, group in enumerate(groups)})
    actual = formats.read_arrays(path)
    assert list(actual) == [f"conv2d_{94 - i}/kernel" for i in range(12)]
    assert [float(array) for array in actual.values()] == list(range(12))


def test_more_than_ten_variables_are_in_order(tmp_path: Path) -> None:
    write_objects(tmp_path / "a.h5", numbered("layers/other:12"))
    assert list(formats.read_arrays(tmp_path / "a.h5")) == [f"other/{i}" for i in range(12)]


def test_dependencies_of_tf_keras_2_12(tmp_path: Path) -> None:
    groups = [f"_layer_checkpoint_dependencies/{name}" for name in ("conv2d:1", "conv2d_2:1", "conv2d_4:1", "dense:1")]
    inner = "_layer_checkpoint_dependencies/functional/_layer_checkpoint_dependencies/depthwise_conv2d_2:1"
    write_objects(tmp_path / "a.weights.h5", numbered(*groups, inner))
    keys = ["conv2d/kernel", "conv2d_1/kernel", "conv2d_2/kernel", "dense/kernel", "depthwise_conv2d/kernel"]
    assert list(formats.read_arrays(tmp_path / "a.weights.h5")) == keys


def test_nested_models_are_flattened(tmp_path: Path) -> None:
    arrays = numbered(
        "layers/dense:1", "layers/functional/layers/conv2d:1", "layers/functional/layers/model/layers/dense:1"
    )
    names = {"layers/dense": "top", "layers/functional/layers/conv2d": "Conv1", "layers/functional": "mobilenet"}
    write_objects(tmp_path / "a.weights.h5", arrays, names)
    assert list(formats.read_arrays(tmp_path / "a.weights.h5")) == ["top/kernel", "Conv1/kernel", "dense/kernel"]
    write_objects(tmp_path / "a.weights.h5", arrays)
    refuse(tmp_path / "a.weights.h5", "dense/kernel", "twice")


def test_training_state_is_left_out_and_the_rest_is_not(tmp_path: Path) -> None:
    groups = "optimizer:3 metrics/mean:2 _metrics/mean:2 layers/lstm/cell:1 layers/dropout/seed_generator:1".split()
    groups += ["layers/functional/optimizer:2", "layers/functional/metrics/mean:2"]
    names = {"layers/lstm/cell": "lstm_cell", "layers/lstm": "memory", "optimizer": "adam"}
    write_objects(tmp_path / "a.h5", {**numbered(*groups, "own:1"), "vars/0": np.ones(1)}, names)
    keys = ["dropout/seed_generator/0", "memory/cell/0", "own/0", "top_level_model_weights/0"]
    assert list(formats.read_arrays(tmp_path / "a.h5")) == keys


def test_models_that_list_no_layers(tmp_path: Path) -> None:
    write_objects(
        tmp_path / "a.h5", numbered("backbone/layers/conv2d:1", "blocks/dense_1:1", "head:1"), {"head": "dense_7"}
    )
    assert list(formats.read_arrays(tmp_path / "a.h5")) == ["conv2d/kernel", "blocks/dense_1/kernel", "dense_7/0"]


def test_bfloat16(tmp_path: Path) -> None:
    array = np.arange(4, dtype=ml_dtypes.bfloat16)
    write_objects(tmp_path / "a.h5", {"layers/dense/vars/0": array.view("V2")})
    assert_same(formats.read_arrays(tmp_path / "a.h5"), {"dense/kernel": array})


def test_numbered_variables_elsewhere_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    other = tmp_path / "other.h5"
    write_objects(other, numbered("layers/dense:1"))
    links = {"soft": h5py.SoftLink("/layers/dense"), "external": h5py.ExternalLink(str(other), "/layers/dense")}
    for where in ("layers/dense_1", "layers/dense/vars/1", "layers/dense/cell", "aside", "layers/dense_1/layers"):
        for link in links.values():
            write_objects(tmp_path / "a.h5", numbered("layers/dense:1"))
            with h5py.File(tmp_path / "a.h5", "r+") as file:
                file[where] = link
            refuse(tmp_path / "a.h5", where.rpartition("/")[2], "link")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"shape": (3,), "dtype": "f4", "external": [(str(tmp_path / "secret"), 0, 12)]}
        file.create_group("layers/dense/vars").create_dataset("0", **options)
    refuse(tmp_path / "a.h5", "another file")


def test_groups_that_come_twice(tmp_path: Path) -> None:
    for where, target in (
        ("layers/dense/layers", "layers"),
        ("layers/dense/x", "/"),
        ("layers/dense_1", "layers/dense"),
    ):
        write_objects(tmp_path / "a.h5", numbered("layers/dense:1"))
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file[where] = file[target]
        refuse(tmp_path / "a.h5", "twice")


def test_groups_too_deep_to_follow(tmp_path: Path) -> None:
    write_objects(tmp_path / "a.h5", numbered("layers/" + "layers/x/" * 2000 + "dense:1"))
    refuse(tmp_path / "a.h5", "damaged")


def test_tree_with_the_same_branch_over_and_over(tmp_path: Path, guarded: None) -> None:
    write_objects(tmp_path / "a.h5", numbered("layers/dense:1"))
    with h5py.File(tmp_path / "a.h5") as file:
        message = h5py.h5g.get_objinfo(file["layers"].id).objno[0] + 16  # first of the header: where tree and heap are
    content = bytearray((tmp_path / "a.h5").read_bytes())
    assert content[message : message + 2] == b"\x11\0"
    (branch,) = struct.unpack_from("<Q", content, message + 8)
    for level in range(1, 7):  # 32**6 ways to the leaf
        content += bytes(-len(content) % 8)
        node = struct.pack("<4sBBHqqQ", b"TREE", 0, level, 32, -1, -1, 0) + 32 * struct.pack("<QQ", branch, 8)
        branch = len(content)
        content += node.ljust(544, b"\0")
    struct.pack_into("<Q", content, message + 8, branch)
    struct.pack_into("<Q", content, 40, len(content))  # where the file ends
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "declare")


def test_trees_in_a_circle(tmp_path: Path) -> None:
    write_objects(tmp_path / "a.h5", numbered("layers/dense:1"))
    content = bytearray((tmp_path / "a.h5").read_bytes())
    tree = content.index(b"TREE")
    content[tree + 5] = 1  # its level
    struct.pack_into("<Q", content, tree + 32, tree)
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "cyclic")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.arange(2000).reshape(200, 10), chunks=(2, 5))
    assert formats.read_arrays(tmp_path / "a.h5")["dense/kernel"].ravel().tolist() == list(range(2000))
    content = bytearray((tmp_path / "a.h5").read_bytes())
    tree = next(match.start() for match in re.finditer(b"TREE\1\1", content))  # over chunks, above the lowest level
    struct.pack_into("<Q", content, tree + 24 + 32, tree)
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "cyclic")


def test_signatures_over_and_over(tmp_path: Path, guarded: None) -> None:
    entry = struct.pack("<6sHQ", b"TREE\1\1", 64, 0) + b"GCOL\1\0\0\0" + struct.pack("<Q", 1 << 20) + bytes(8)
    write_objects(tmp_path / "a.h5", {"layers/dense/vars/0": np.frombuffer(entry * 40_000, np.uint8)})
    refuse(tmp_path / "a.h5", "damaged")


def test_things_that_keras_does_not_write(tmp_path: Path) -> None:
    for where in ("layers/dense", "aside", "layers/dense_1/cell"):
        write_objects(tmp_path / "a.h5", {where: np.ones(3)})
        refuse(tmp_path / "a.h5", "not a group")
    write_objects(tmp_path / "a.h5", {"layers/dense/vars/0/0": np.ones(3)})
    refuse(tmp_path / "a.h5", "not an array")
    write_objects(tmp_path / "a.h5", {"layers/dense/vars/0": b"text"})
    refuse(tmp_path / "a.h5", "dense/kernel", "not numbers")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("layers/dense/vars").attrs["name"] = 1.5
    refuse(tmp_path / "a.h5", "not text")


# ---- .keras


def test_keras_names_in_the_zip_lead_nowhere(tmp_path: Path) -> None:
    write_keras(tmp_path / "a.keras", numbered("layers/dense:1"))
    with zipfile.ZipFile(tmp_path / "a.keras", "a") as archive:
        archive.writestr("../trace", b"x")
        archive.writestr("/tmp/trace/model.weights.h5", b"x")
    assert list(formats.read_arrays(tmp_path / "a.keras")) == ["dense/kernel"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.keras"]


def test_keras_without_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("model.weights.npz", b"x")
    refuse(tmp_path / "a.keras", "model.weights.h5", "model.save")


@pytest.mark.parametrize("name", ["model.weights.h5", "assets/x"])
def test_keras_bomb(tmp_path: Path, guarded: None, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(1 << 26))
    refuse(tmp_path / "a.keras", "declare")


def test_keras_before_2_13_is_hdf5(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.keras", sample(), group="model_weights")
    assert_same(formats.read_arrays(tmp_path / "a.keras"), sample())
