"""Where frozen layers end, keys that change with what they name, and arrays on a shelf of limited size."""

import errno
import os
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tl_jax import tree
from tl_jax.errors import UserError
from tl_jax.transfer import feature_cache
from tl_jax.transfer.feature_cache import Shelf, boundary, digest

pytestmark = pytest.mark.fast
PARTS = ("stem", "stage1", "stage2")
NORMS = frozenset({"stem/bn", "stage2/bn"})


def mask(*trains):
    paths = ("stem/kernel", "stem/bn/scale", "stage1/kernel", "stage2/kernel", "stage2/bn/scale", "head/kernel")
    return tree.unflatten({path: path in trains for path in (*paths, *trains)})


@pytest.mark.parametrize(
    ("trains", "still", "reads", "expected"),
    [
        (("head/kernel",), NORMS, "features", "features"),
        (("head/kernel",), NORMS, "stage2", "stage2"),  # a head on the map needs the map
        (("head/kernel",), NORMS, "stage1", "stage1"),  # an auxiliary head on an earlier one needs that
        (("head/kernel", "stage2/kernel"), NORMS, "features", "stage1"),
        (("head/kernel", "stage1/kernel"), NORMS, "features", "stem"),
        (("head/kernel", "stem/kernel"), NORMS, "features", ""),
        (("head/kernel", "stage1/lora_a"), NORMS, "features", "stem"),
        (("head/kernel", "adapter_stage1/up/kernel"), NORMS, "features", "stem"),
        (("head/kernel",), NORMS - {"stage2/bn"}, "features", "stage1"),  # its statistics move
        (("head/kernel",), frozenset(), "features", ""),
    ],
)
def test_boundary(trains, still, reads, expected):
    assert boundary(PARTS, reads, mask(*trains), still, NORMS) == expected


def test_a_digest_changes_with_everything_in_it():
    x = np.arange(6, dtype=np.float32)
    facts = (("a", 1), {"w": {"k": jnp.ones(3)}}, x)
    others = (
        (("a", 2), facts[1], x),
        (facts[0], {"w": {"k": jnp.ones(3).at[1].set(2.0)}}, x),
        (facts[0], {"v": {"k": jnp.ones(3)}}, x),
        (*facts[:2], x.reshape(2, 3)),
        (*facts[:2], x.view(np.int32)),
    )
    assert digest(*facts) == digest(("a", 1), {"w": {"k": jnp.ones(3)}}, x.copy())
    assert len({digest(*facts), *(digest(*other) for other in others)}) == 6


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_there_is_not_made_again(tmp_path, dtype):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3).astype(dtype)
    shelf = Shelf(tmp_path / "deep" / "shelf", 10**6)
    made = shelf.get("key", (4, 3), dtype, lambda: iter([rows[:3], rows[3:]]))
    again = shelf.get("key", (4, 3), dtype, None)
    for found in (made, again):
        assert found.dtype == dtype and found.shape == (4, 3)
        np.testing.assert_array_equal(found, rows)
    assert sorted(path.name for path in shelf.folder.iterdir()) == ["key.npy"]


def test_the_longest_unused_make_room(tmp_path):
    shelf = Shelf(tmp_path, 1000)
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


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    def full():
        yield np.zeros(5)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left.*cache.dir"):
        Shelf(tmp_path, 10**6).get("key", (10,), np.float32, full)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    for age, name in ((0, "young"), (2, "old")):
        (tmp_path / f"{name}.part").write_bytes(b"")
        os.utime(tmp_path / f"{name}.part", (time.time() - age * feature_cache.DAY,) * 2)
    Shelf(tmp_path, 10**6).get("key", (1,), np.float32, lambda: iter([np.zeros(1)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.npy", "young.part"]
