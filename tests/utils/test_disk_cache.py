"""Arrays on a shelf of limited size: made once, whole or not at all."""

import errno
import os
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tl_jax.utils import disk_cache
from tl_jax.utils.disk_cache import DiskCache
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, ml_dtypes.bfloat16])
def test_what_is_there_is_not_made_again(tmp_path, dtype):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3).astype(dtype)
    shelf = DiskCache(tmp_path / "deep" / "shelf", 10**6)
    made = shelf.get("key", (4, 3), dtype, lambda: iter([rows[:3], rows[3:]]))
    again = shelf.get("key", (4, 3), dtype, None)
    for found in (made, again):
        assert found.dtype == dtype and found.shape == (4, 3)
        np.testing.assert_array_equal(found, rows)
    assert sorted(path.name for path in shelf.folder.iterdir()) == ["key.npy"]


@pytest.mark.parametrize("damage", [
    lambda content: content[:-5], lambda content: b"", lambda content: b"?" + content[1:],
    lambda content: content.replace(b"4, 3", b"4, 2"), lambda content: content.replace(b"descr", b"desc2"),
])  # fmt: skip
def test_what_is_damaged_is_made_again(tmp_path, damage):
    rows, shelf = np.arange(12, dtype=np.float32).reshape(4, 3), DiskCache(tmp_path, 10**6)
    shelf.get("key", (4, 3), np.float32, lambda: iter([rows]))
    path = tmp_path / "key.npy"
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(shelf.get("key", (4, 3), np.float32, lambda: iter([rows])), rows)
    np.testing.assert_array_equal(np.load(path), rows)


def test_the_longest_unused_make_room(tmp_path):
    shelf = DiskCache(tmp_path, 1000)
    for age, key in ((30, "old"), (10, "new"), (20, "middle")):
        shelf.get(key, (75,), np.float32, lambda: iter([np.zeros(75)]))
        os.utime(tmp_path / f"{key}.npy", (time.time() - age,) * 2)
    # 428 bytes each: the third did not fit beside the others
    assert not (tmp_path / "old.npy").exists()
    held = shelf.get("new", (75,), np.float32, None)  # used just now
    shelf.get("more", (75,), np.float32, lambda: iter([np.ones(75)]))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["more", "new"]
    shelf.get("huge", (240,), np.float32, lambda: iter([np.ones(240)]))
    assert held.sum() == 0  # who reads it still can


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(self, *args, **kwargs):
        path = open_file(self, *args, **kwargs)
        if self.suffix == ".part":
            path.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return path

    open_file = Path.open
    monkeypatch.setattr(Path, "open", full)
    found = DiskCache(tmp_path, 10**6).get("key", (10,), np.float32, lambda: iter([np.zeros(5), np.ones(5)]))
    assert found.tolist() == [0.0] * 5 + [1.0] * 5 and found.dtype == np.float32
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = DiskCache(tmp_path / "file" / "shelf", 10**6).get("key", (2,), np.float32, lambda: iter([np.ones(2)]))
    assert found.tolist() == [1.0, 1.0] and "cannot write" in capsys.readouterr().err


def test_a_full_disk_is_said_once_however_many_arrays_meet_it(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for key in ("a", "b", "c"):
        DiskCache(tmp_path / "file" / "shelf", 10**6).get(key, (2,), np.float32, lambda: iter([np.ones(2)]))
    assert capsys.readouterr().err.count("not cached: ") == 1


def test_what_cannot_be_made_is_an_error(tmp_path):
    def broken():
        yield np.zeros(5)
        raise UserError("the source is broken")

    with pytest.raises(UserError, match="source is broken"):
        DiskCache(tmp_path, 10**6).get("key", (10,), np.float32, broken)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    for age, name in ((0, "young"), (2, "old")):
        (tmp_path / f"{name}.part").write_bytes(b"")
        os.utime(tmp_path / f"{name}.part", (time.time() - age * disk_cache.DAY,) * 2)
    DiskCache(tmp_path, 10**6).get("key", (1,), np.float32, lambda: iter([np.zeros(1)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.npy", "young.part"]


def test_the_digest_of_code_is_that_of_the_package_and_changes_with_it(tmp_path, monkeypatch):
    models = {path.relative_to(disk_cache.PACKAGE_DIR) for path in (disk_cache.PACKAGE_DIR / "models").rglob("*.py")}
    assert {Path("models/ops/conv.py"), Path("models/resnet.py")} <= models
    (tmp_path / "models" / "ops").mkdir(parents=True)
    file = tmp_path / "models" / "ops" / "conv.py"
    file.write_text("x = 1")
    monkeypatch.setattr(disk_cache, "PACKAGE_DIR", tmp_path)
    digest = disk_cache.code_digest.__wrapped__
    first = digest("models")
    file.write_text("x = 2")
    assert digest("models") != first
    with pytest.raises(ValueError, match="no code in modells"):
        digest("modells")
