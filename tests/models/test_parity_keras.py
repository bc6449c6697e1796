"""Networks from Keras' files compute what keras.applications computes from them.

The references run in float64, so their own error is nil next to the tolerance. Their weights are random, and published
ones differ from these in their values only: names, layouts and shapes are those of the published files.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.references import compare

pytestmark = [pytest.mark.peers, pytest.mark.slow]
pytestmark += [pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]  # Keras on NumPy 2

NAMES = ("vgg16", "vgg19", "resnet50", "resnet101", "resnet152", "resnet50v2", "inception_v3", "mobilenet_v2")
NAMES += ("mobilenet_v2_035", "mobilenet_v2_140")
DEEP = ("vgg19", "resnet101", "resnet152", "mobilenet_v2_140")  # more of the same, and minutes: these leave cases out
LAYOUTS = ("whole", "weights", "archive", "tf_keras", "later", "published")


@pytest.fixture(autouse=True)
def keras() -> Any:
    return pytest.importorskip("keras")


def small(name: str) -> tuple[int, int]:
    return (75, 75) if name == "inception_v3" else (32, 32)


def native(name: str) -> tuple[int, int]:
    return (299, 299) if name == "inception_v3" else (224, 224)


def cases() -> list[Any]:
    """Return (name, top, size); the second size is odd all the way down, where paddings differ."""
    found = [(name, size == native(name), size) for name in NAMES for size in (native(name), (97, 131), small(name))]
    found = [(name, top, size) for name, top, size in found if name not in DEEP or size != small(name)]
    return [pytest.param(*case, id=f"{case[0]}-{case[2][0]}x{case[2][1]}") for case in found]


@pytest.mark.parametrize("name,top,size", cases())
def test_outputs(name: str, top: bool, size: tuple[int, int], tmp_path: Path, record_property: Any) -> None:
    from tests.references import keras_files, keras_models

    model = keras_models.build(name, top, size, seed=0)
    loaded = compare.load(name, "keras", keras_files.save(model, tmp_path, "legacy"))
    assert loaded.spec.num_classes == (1000 if top else 0)
    x = compare.images(size, count=1 if top else 2)
    compare.assert_agrees(compare.apply(loaded, x), keras_models.outputs(model, x), record_property)


@pytest.fixture(scope="module")
def legacy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model with its top and what is loaded from its file in the layout that ``test_outputs`` checks."""
    pytest.importorskip("keras")
    from tests.references import keras_files, keras_models

    vgg = request.param.startswith("vgg")
    model = keras_models.build(request.param, True, native(request.param) if vgg else small(request.param), seed=0)
    path = keras_files.save(model, tmp_path_factory.mktemp("legacy"), "legacy")
    return model, compare.load(model.name, "keras", path)


def layouts() -> list[tuple[str, str]]:
    """Return (name, layout): of deep models those that tell layers by order, and those with names of their own."""
    return [(n, layout) for n in NAMES for layout in LAYOUTS if n not in DEEP or layout in ("weights", "published")]


@pytest.mark.parametrize("legacy,layout", layouts(), indirect=["legacy"])
def test_every_layout_holds_the_same(legacy: tuple[Any, Any], layout: str, tmp_path: Path) -> None:
    from tests.references import keras_files

    model, expected = legacy
    loaded = compare.load(model.name, "keras", keras_files.save(model, tmp_path, layout))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected.variables)
