"""Networks from PyTorch's files compute what torchvision's models compute from them; see ``test_parity_keras``."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.references import compare

pytestmark = [pytest.mark.peers, pytest.mark.slow]

NAMES = ("vgg16", "vgg19", "vgg16_bn", "vgg19_bn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NAMES += ("inception_v3", "mobilenet_v2")
DEEP = ("vgg19", "vgg19_bn", "resnet101", "resnet152")  # more of the same, and minutes: these leave cases out


@pytest.fixture(autouse=True)
def torch() -> Any:
    return pytest.importorskip("torch")


def cases() -> list[Any]:
    found = []
    for name in NAMES:
        native, small = (299, 75) if name == "inception_v3" else (224, 32)
        found += [(name, True, (native, native)), (name, False, (97, 131))]
        found += [] if name in DEEP else [(name, False, (small, small))]
    return [pytest.param(*case, id=f"{case[0]}-{case[2][0]}x{case[2][1]}") for case in found]


def save(state: Any, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("name,top,size", cases())
def test_outputs(name: str, top: bool, size: tuple[int, int], tmp_path: Path, record_property: Any) -> None:
    from tests.references import torch_models

    model = torch_models.build(name, seed=0)
    state = model.state_dict() if top else torch_models.headless(model.state_dict())
    path = save(state, tmp_path / "model.safetensors")
    options = {"aux": True} if top and name == "inception_v3" else {}
    loaded = compare.load(name, "torchvision", path, **options)
    assert loaded.spec.num_classes == (1000 if top else 0)
    x = compare.images(size, count=1 if top else 2)
    actual, expected = compare.apply(loaded, x), torch_models.outputs(model, x)
    compare.assert_agrees(actual, expected if top else torch_models.without_head(expected), record_property)


@pytest.mark.parametrize("size", [(97, 131), (32, 32)])
@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_heads_at_other_sizes(name: str, size: tuple[int, int], tmp_path: Path, record_property: Any) -> None:
    from tests.references import torch_models

    model = torch_models.build(name, seed=0)
    loaded = compare.load(name, "torchvision", save(model.state_dict(), tmp_path / "model.safetensors"))
    x = compare.images(size)
    compare.assert_agrees(compare.apply(loaded, x), torch_models.outputs(model, x), record_property)


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


@pytest.mark.parametrize("form", ["zip.pth", "old.pth"])
def test_every_format_holds_the_same(torch: Any, form: str, tmp_path: Path) -> None:
    from tests.references import torch_models

    state = torch_models.build("resnet18", seed=0).state_dict()
    torch.save(state, tmp_path / form, _use_new_zipfile_serialization=form == "zip.pth")
    expected = compare.load("resnet18", "torchvision", save(state, tmp_path / "model.safetensors"))
    same(compare.load("resnet18", "torchvision", tmp_path / form), expected)


@pytest.mark.parametrize("name,top", [("vgg16", True), ("vgg19_bn", False), ("mobilenet_v2", True)])
def test_timms_names_hold_the_same(name: str, top: bool, tmp_path: Path) -> None:
    from tests.references import torch_models

    state = torch_models.build(name, seed=0).state_dict()
    state = state if top else torch_models.headless(state)
    theirs = compare.load(name, "timm", save(torch_models.to_timm(name, state), tmp_path / "timm.safetensors"))
    same(theirs, compare.load(name, "torchvision", save(state, tmp_path / "torchvision.safetensors")))
