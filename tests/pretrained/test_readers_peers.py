"""The readers against files that PyTorch wrote itself."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tl_jax.pretrained import formats
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def save(path: Path, tree: Any, zipped: bool) -> dict[str, np.ndarray]:
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    return formats.read_arrays(path)


def values(tensor: Any) -> np.ndarray:
    """Return a tensor as NumPy, by way of its bits where NumPy lacks the type."""
    tensor = tensor.detach().contiguous()
    names = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}
    if tensor.dtype in names:
        bits = torch.int16 if tensor.dtype.itemsize == 2 else torch.uint8
        return tensor.view(bits).numpy().view(names[tensor.dtype])
    return tensor.numpy()


def assert_same(actual: dict[str, np.ndarray], tree: dict[str, Any]) -> None:
    assert list(actual) == list(tree)
    for key, tensor in tree.items():
        expected = values(tensor)
        assert actual[key].dtype == expected.dtype and actual[key].shape == expected.shape, key
        assert actual[key].tobytes() == expected.tobytes(), key


@FORMATS
def test_types(tmp_path: Path, zipped: bool) -> None:
    names = "float64 float32 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 bool".split()
    names += ["uint16", "uint32", "uint64", "float8_e4m3fn"]  # these have no storage class of their own
    tree = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    tree |= {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "nan": torch.tensor([float("nan"), float("inf")])}
    assert_same(save(tmp_path / "a.pth", tree, zipped), tree)


@FORMATS
def test_views_and_shared_storages(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(4, 6, 5)
    tree = {"base": base, "again": base, "turned": base.permute(2, 0, 1), "part": base[1:3, ::2, 2]}
    tree |= {"last": base[-1, -1, -1], "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    actual = save(tmp_path / "a.pth", tree, zipped)
    assert_same(actual, tree)
    assert np.shares_memory(actual["base"], actual["part"])


@FORMATS
def test_parameters_and_modules(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)).half()
    model[2].weight.requires_grad_(False)
    assert_same(save(tmp_path / "a.pth", model.state_dict(), zipped), model.state_dict())
    parameters = OrderedDict(model.named_parameters())
    assert_same(save(tmp_path / "a.bin", parameters, zipped), parameters)


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints(tmp_path: Path, zipped: bool, key: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tree = {"epoch": 3, key: model.state_dict(), "optimizer": optimizer.state_dict(), "size": torch.Size([1, 2])}
    assert_same(save(tmp_path / "a.pt", tree, zipped), model.state_dict())


@FORMATS
def test_pickle_protocol_4(tmp_path: Path, zipped: bool) -> None:
    tree = {"a": torch.randn(3), "b" * 300: torch.nn.Parameter(torch.randn(2))}
    torch.save(tree, tmp_path / "a.pth", pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    assert_same(formats.read_arrays(tmp_path / "a.pth"), tree)


@FORMATS
@pytest.mark.parametrize("name", ["module", "quantized", "sparse", "negated", "expanded", "tensor"])
def test_refused(tmp_path: Path, zipped: bool, name: str) -> None:
    makers = {
        "module": lambda: torch.nn.Linear(2, 2),
        "quantized": lambda: {"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
        "sparse": lambda: {"x": torch.eye(3).to_sparse()},
        "negated": lambda: {"x": torch.ones(2, dtype=torch.complex64).conj().imag},
        "expanded": lambda: {"x": torch.ones(1).expand(10**12)},
        "tensor": lambda: torch.ones(2),
    }
    words = {"module": "torch.nn.modules.linear.Linear", "quantized": "quantized", "sparse": "sparse"}
    words |= {"negated": "negation", "expanded": "contiguous", "tensor": "state dict"}
    with pytest.raises(UserError, match=words[name]):
        save(tmp_path / "a.pth", makers[name](), zipped)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(UserError, match="state_dict"):
        formats.read_arrays(tmp_path / "a.pt")


def test_safetensors_of_torch(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tree = {"a": torch.randn(3, 2), "b": torch.randn(4).bfloat16(), "c": torch.tensor(3)}
    save_file(tree, tmp_path / "a.safetensors", metadata={"format": "pt"})
    actual = formats.read_arrays(tmp_path / "a.safetensors")
    assert_same({key: actual[key] for key in tree}, tree)
    assert formats.read_metadata(tmp_path / "a.safetensors") == {"format": "pt"}
