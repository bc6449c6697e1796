"""ResNet-50 from files of Keras and PyTorch computes what Keras and PyTorch compute from them.

The references run in float64, so their own error is nil next to the tolerance. Their weights are random, and published
ones differ from these in their values only: names, layouts and shapes are those of the published files.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_jax import pretrained

pytestmark = [pytest.mark.peers, pytest.mark.slow]

SIZES = [(224, 224), (97, 131)]  # the second is odd all the way down, where paddings differ
TOLERANCE = 1e-4  # of the largest value of the reference


def images(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)


def assert_agrees(loaded: Any, expected: dict[str, np.ndarray], x: np.ndarray, record: Any) -> None:
    """Compare logits (or features, without a head) and every endpoint; keep the errors in the test report."""
    first, ends = loaded.model.apply(loaded.variables, x, train=False)
    actual = {**ends, "logits": first}
    expected = {"logits": expected["features"], **expected}
    assert set(actual) == set(expected)
    errors = {}
    for name, reference in expected.items():
        assert actual[name].shape == reference.shape, name
        errors[name] = float(np.abs(np.asarray(actual[name]) - reference).max() / np.abs(reference).max())
        record(name, errors[name])
    print(*(f"{name} {error:.1e}" for name, error in errors.items()))
    assert max(errors.values()) < TOLERANCE, errors


@pytest.fixture(scope="module", params=[True, False], ids=["top", "notop"])
def keras_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pytest.importorskip("keras")
    from tests.references import keras_resnet

    model = keras_resnet.build(top=request.param, seed=0)
    path = tmp_path_factory.mktemp("keras") / "resnet50.h5"
    keras_resnet.save_legacy_h5(model, path)
    return model, path


@pytest.mark.parametrize("size", SIZES)
def test_keras(keras_file: tuple[Any, Path], size: tuple[int, int], record_property: Any) -> None:
    from tests.references import keras_resnet

    model, path = keras_file
    loaded = pretrained.load("resnet50", source="keras", path=path)
    x = images(size)
    expected = keras_resnet.outputs(model, x)
    assert loaded.spec.num_classes == (1000 if "logits" in expected else 0)
    assert_agrees(loaded, expected, x, record_property)


@pytest.fixture(scope="module")
def torch_model() -> Any:
    pytest.importorskip("torch")
    from tests.references import torch_resnet

    model = torch_resnet.ResNet50().eval()
    torch_resnet.randomize(model, seed=0)
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["safetensors", "zip.pth", "old.pth"])
def test_torchvision(torch_model: Any, tmp_path: Path, form: str, size: tuple[int, int], record_property: Any) -> None:
    import torch
    from safetensors.torch import save_file

    from tests.references import torch_resnet

    path = tmp_path / f"resnet50.{form}"
    if form == "safetensors":
        save_file(torch_model.state_dict(), path)
    else:
        torch.save(torch_model.state_dict(), path, _use_new_zipfile_serialization=form == "zip.pth")
    loaded = pretrained.load("resnet50", source="torchvision", path=path)
    x = images(size)
    double = torch_resnet.ResNet50().double().eval()
    double.load_state_dict(torch_model.state_dict())
    with torch.no_grad():
        logits, ends = double(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    # PyTorch's maps are (N, C, H, W).
    expected = {name: np.moveaxis(end.numpy(), 1, -1) if end.ndim == 4 else end.numpy() for name, end in ends.items()}
    assert_agrees(loaded, {"logits": logits.numpy(), **expected}, x, record_property)
