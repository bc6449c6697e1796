"""Pickles that are small and ask for much: what they copy, compare and repeat is bounded by their length."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pretrained.files import Reduced, Storage, refuse, state_dict, write_old, write_zip
from tl_jax.models import rules
from tl_jax.pretrained import convert, formats, prefixes

pytestmark = pytest.mark.fast
BOTH = pytest.mark.parametrize("write", [write_zip, write_old])
N = 20_000
SECONDS = 5  # of CPU time: a tenth of it is what is needed, ten times that is what N * N steps take
ORDERED, PARAMETER = b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"
TEXT = b"X" + (20 * N).to_bytes(4, "little") + b"x" * 20 * N
NAMES = b"X\xc8\0\0\0" + b"m" * 200 + b"q\0X\xc8\0\0\0" + b"n" * 200 + b"q\1"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0NK\1" + b"N" * N


def dictionaries(depth: int, width: int) -> bytes:
    """Return a dictionary whose ``width`` entries are all one dictionary, and so on: small, but not to walk through."""
    program = b"N"
    for level in range(depth):
        again = b"".join(b"X\6\0\0\0%06dh%c" % (i, level) for i in range(1, width))
        program = b"}(X\5\0\0\0first" + program + b"q%c" % level + again + b"u"
    return program


WORK = "far more work than its size"
GREEDY = {  # program: what is said of it
    "sizes of a list": (b"(" + b"N" * N + b"lq\0ctorch\nSize\nq\1(" + b"h\1h\0\x85R" * N + b"l", WORK),
    "pairs": (b"(" + b"X\1\0\0\0aN\x86" * N + b"lq\0" + ORDERED + b"q\1(" + b"h\1h\0\x85R" * N + b"l", WORK),
    "arguments": (b"(" + b"N" * N + b"tq\0" + PARAMETER + b"q\1(" + b"h\1h\0R" * N + b"l", WORK),
    "storages": (STORAGE + b"tq\0(" + b"h\0Q" * N + b"l", WORK),
    "equal keys": (TEXT + b"q\0" + TEXT + b"q\1}h\0Ns(" + b"h\1N" * N + b"u", WORK),
    "names": (NAMES + b"(" + b"h\0h\1\x93" * 5 * N + b"l", WORK),
    "long names": (TEXT + b"q\0(" + b"h\0h\0\x93" * N + b"l", "name is too long"),
    "letters": (TEXT + b"q\0ctorch\nSize\nq\1(" + b"h\1h\0\x85R" * N + b"l", "items of str"),
    "dictionaries": (dictionaries(3, 2_000), WORK),
}


@BOTH
@pytest.mark.parametrize("name", GREEDY)
def test_what_is_named_once_is_not_copied_without_end(tmp_path: Path, write: Any, guarded: None, name: str) -> None:
    write(tmp_path / "a.pth", GREEDY[name][0] + b".")
    refuse(tmp_path / "a.pth", GREEDY[name][1])


@BOTH
@pytest.mark.parametrize("key", [b"I%d\n", b"F%d\n"])
def test_keys_of_one_hash_take_no_time(tmp_path: Path, write: Any, key: bytes) -> None:
    keys = (key % (i * (2**61 - 1)) for i in range(1, 2 * N))
    write(tmp_path / "a.pth", b"}(" + b"".join(k + b"N" for k in keys) + b"u.")
    begin = time.process_time()
    refuse(tmp_path / "a.pth", "no state dict")
    assert time.process_time() - begin < SECONDS


@BOTH
def test_objects_have_possible_numbers(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "a.pth", b"Np%d\n." % (2**61 - 1))
    refuse(tmp_path / "a.pth", "impossible number")


@BOTH
def test_boolean_tensors_share_their_storage(tmp_path: Path, write: Any, guarded: None) -> None:
    values = (np.arange(1 << 20) % 3).astype(np.uint8)
    storage = Storage("0", values.view(bool))
    entries = (Reduced("torch._utils._rebuild_tensor", storage, 0, values.shape, (1,)) for _ in range(2_000))
    write(tmp_path / "a.pth", {f"w{i}": entry for i, entry in enumerate(entries)})
    arrays = formats.read_arrays(tmp_path / "a.pth")
    assert len(arrays) == 2_000 and np.shares_memory(arrays["w0"], arrays["w1999"])
    assert arrays["w7"].dtype == bool and np.array_equal(arrays["w7"], values > 0)


@BOTH
def test_a_tensor_has_as_many_dimensions_as_numpy_knows(tmp_path: Path, write: Any) -> None:
    storage = Storage("0", np.zeros(1, np.float32))
    write(tmp_path / "a.pth", {"w": Reduced("torch._utils._rebuild_tensor", storage, 0, (1,) * N, (1,) * N)})
    refuse(tmp_path / "a.pth", "impossible rank")


@BOTH
def test_a_checkpoint_with_much_beside_its_network_is_read(tmp_path: Path, write: Any) -> None:
    arrays = {f"module.encoder.layers.{i}.attention.weight": np.full(2, i, np.float32) for i in range(500)}
    steps = {i: {"step": i, "exp_avg_factored": True} for i in range(N)}
    rates = dict.fromkeys(arrays, 0.1)
    extra = {"history": {"loss": [0.5] * N}, "optimizer": {"state": steps, "names": list(arrays) * 20}, "rates": rates}
    write(tmp_path / "a.pth", {"state_dict": state_dict(arrays), **extra})
    assert list(formats.read_arrays(tmp_path / "a.pth")) == list(arrays)


def test_a_prefix_of_its_own_for_each_name_takes_no_time() -> None:
    arrays = {f"a{i}.b.c.d.weight": np.zeros(1) for i in range(N)}
    begin = time.process_time()
    stripped = prefixes.strip_prefix(
        arrays | {"a0.b.c.d.bias": np.zeros(1)}, rules.Table(rules.torch_dense("no", "no")), "x"
    )
    assert stripped.prefix == "" and time.process_time() - begin < SECONDS


def test_a_name_of_nothing_but_dots_takes_no_time() -> None:
    begin = time.process_time()
    assert convert.format_layers(["a." * 10 * N + "weight", "conv1.weight", "conv1.bias", "x"])[-8:] == "conv1, x"
    assert time.process_time() - begin < SECONDS
