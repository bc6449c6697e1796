"""The readers against models that Keras saved in each of its layouts, every array and the order of layers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tl_jax.pretrained import formats

pytestmark = pytest.mark.peers

keras = pytest.importorskip("keras")
from keras.src.legacy.saving import legacy_h5_format  # noqa: E402


def save_legacy(model: Any, path: Path) -> None:
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


LAYOUTS: dict[str, Callable[[Any, Path], None]] = {
    "legacy.h5": save_legacy,
    "whole.h5": lambda model, path: model.save(path),
    "own.weights.h5": lambda model, path: model.save_weights(path),
    "own.keras": lambda model, path: model.save(path),
}


def branches() -> Any:
    """Return a model whose automatic names are not in the order in which Keras lists layers."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    far = layers.Conv2D(4, 3, padding="same")(inputs)
    near = layers.BatchNormalization(scale=False)(layers.Conv2D(4, 1, use_bias=False)(inputs))
    for _ in range(10):
        near = layers.Conv2D(4, 1)(near)
    x = layers.Concatenate()([layers.BatchNormalization()(far), near])
    x = layers.DepthwiseConv2D(3)(layers.BatchNormalization(center=False, scale=False)(x))
    return keras.Model(inputs, [layers.Dense(2)(layers.Flatten()(x)), layers.Dense(3, name="side")(near)])


def mobilenet(top: bool = True, name: str | None = None) -> Any:
    options = {"weights": None, "alpha": 0.35, "input_shape": (32, 32, 3), "classes": 10, "name": name}
    return keras.applications.MobileNetV2(include_top=top, **options)


def nested(frozen: int = 0) -> Any:
    """Return a backbone with a head as people fine-tune them; the first ``frozen`` layers are."""
    backbone, layers = mobilenet(top=False), keras.layers
    for layer in backbone.layers[:frozen]:
        layer.trainable = False
    top = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(10)]
    return keras.Sequential([keras.Input((32, 32, 3)), backbone, *top])


def trained() -> Any:
    model = nested(frozen=1000)
    model.layers[0].compile("sgd", "mse")  # has state of an optimizer and metrics of its own
    model.layers[0].optimizer.build(model.layers[0].variables)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(np.zeros((2, 32, 32, 3)), np.zeros(2), verbose=0)
    return model


MODELS = {"branches": branches, "mobilenet": mobilenet, "nested": nested, "trained": trained}
MODELS |= {"deep": lambda: keras.Sequential([keras.Input((32, 32, 3)), keras.Sequential([nested()])])}


def leaves(model: Any) -> Iterator[Any]:
    """Yield the layers of a model that are not models, in Keras' order."""
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]


def check(model: Any, path: Path, ordered: bool = True) -> None:
    """Compare what is read with the model; the order of layers, class by class, where the file keeps it."""
    expected = {f"{layer.name}/{v.name}": np.asarray(v) for layer in leaves(model) for v in layer.weights}
    actual = formats.read_arrays(path)
    assert set(actual) == set(expected)
    for key, array in expected.items():
        assert actual[key].dtype == array.dtype and np.array_equal(actual[key], array), key
    places = {name: i for i, name in enumerate(dict.fromkeys(key.split("/")[0] for key in actual))}
    kinds: dict[type, list[int]] = {}
    for layer in leaves(model):
        if layer.weights and ordered:
            kinds.setdefault(type(layer), []).append(places[layer.name])
    assert all(found == sorted(found) for found in kinds.values())


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    keras.utils.clear_session()
    keras.layers.Conv2D(1, 1)  # takes the first automatic name away
    model = MODELS[request.param]()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=value.shape) for value in model.get_weights()])
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_array_and_its_place(tmp_path: Path, layout: str, model: Any) -> None:
    LAYOUTS[layout](model, tmp_path / layout)
    check(model, tmp_path / layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backbone_frozen_in_part(tmp_path: Path, layout: str) -> None:
    keras.utils.clear_session()
    model = nested(frozen=80)
    LAYOUTS[layout](model, tmp_path / layout)
    # A nested model's weights are listed in the legacy layout as trainable ones and others.
    check(model, tmp_path / layout, ordered=layout.startswith("own"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(tmp_path: Path, layout: str) -> None:
    keras.utils.clear_session()
    layers = [keras.layers.Dense(3, dtype="bfloat16"), keras.layers.Dense(2, dtype="float16")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    LAYOUTS[layout](model, tmp_path / layout)
    check(model, tmp_path / layout)
