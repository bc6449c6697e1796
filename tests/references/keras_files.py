"""The layouts in which Keras' weights are found: those that Keras 3 writes, and older ones made from its models."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.legacy.saving import legacy_h5_format

# Layer name and (weight name, value) of each of its variables, in the order of a file.
Layers = list[tuple[str, list[tuple[str, np.ndarray]]]]


def save_legacy(model: keras.Model, path: Path) -> None:
    """Write weights alone in the legacy HDF5 layout; Keras 3 has no public way to do this."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def save_tf_keras(model: keras.Model, path: Path) -> None:
    """Write what tf.keras 2 does: names end in ``:0``, depthwise kernels are ``depthwise_kernel``."""
    _write(path, _renamed(model, lambda layer: layer), version="2.15.0", top_level=True)


def save_later(model: keras.Model, path: Path) -> None:
    """Write what tf.keras 2 does for the second model of a session: automatic names count on, InceptionV3's from 94."""
    _write(path, _renamed(model, lambda layer: _shift(layer, 94)), version="2.15.0", top_level=True)


def save_published(model: keras.Model, path: Path) -> None:
    """Write the dialect of the file that Keras publishes for this model."""
    if model.name.startswith("vgg"):
        _write_keras_1(path, model)
    elif model.name.startswith("resnet"):
        _write(path, _renamed(model, lambda layer: {"predictions": "probs"}.get(layer, layer)), version="2.2.4")
    elif model.name.startswith("inception"):
        _write(path, _renamed(model, lambda layer: _shift(layer, 1)), version="2.0.0")
    else:
        _write(path, _renamed(model, _published_mobilenet), version="2.1.5")


LAYOUTS: Mapping[str, tuple[str, Callable[[keras.Model, Path], Any]]] = {  # name -> (suffix, writer)
    "legacy": (".h5", save_legacy),
    "whole": (".h5", lambda model, path: model.save(path)),
    "weights": (".weights.h5", lambda model, path: model.save_weights(path)),
    "archive": (".keras", lambda model, path: model.save(path)),
    "tf_keras": (".h5", save_tf_keras),
    "later": (".h5", save_later),
    "published": (".h5", save_published),
}


def save(model: keras.Model, folder: Path, layout: str) -> Path:
    """Write a file of one of ``LAYOUTS`` and return its path."""
    suffix, write = LAYOUTS[layout]
    path = folder / f"{model.name}_{layout}{suffix}"
    write(model, path)
    return path


def _renamed(model: keras.Model, rename: Callable[[str], str]) -> Layers:
    """Return the layers in Keras' order, under new names and with the weight names of Keras 2."""
    layers: Layers = []
    for layer in model.layers:
        name = rename(layer.name)
        # Keras 2 kept moving statistics after all that is trained.
        variables = layer.trainable_variables + layer.non_trainable_variables
        leaves = [(_leaf(layer, variable.name), np.asarray(variable)) for variable in variables]
        layers.append((name, [(f"{name}/{leaf}:0", value) for leaf, value in leaves]))
    return layers


def _leaf(layer: keras.Layer, name: str) -> str:
    return "depthwise_kernel" if isinstance(layer, keras.layers.DepthwiseConv2D) and name == "kernel" else name


def _shift(layer: str, by: int) -> str:
    """Count automatic names on by ``by``: Keras 3 calls the first layer of a kind conv2d, the next conv2d_1."""
    match = re.fullmatch(r"([a-z]+(?:_[a-z]+|\d+d)*)(?:_(\d+))?", layer)
    if match is None or match[1] not in ("conv2d", "batch_normalization", "activation", "input_layer"):
        return layer
    return f"{match[1]}_{int(match[2] or 0) + by}"


def _published_mobilenet(layer: str) -> str:
    layer = layer.replace("expanded_conv", "block_0")
    if match := re.fullmatch(r"block_(\d+)_(expand|depthwise|project)(_BN)?", layer):
        i, kind, norm = match.groups()
        return f"bn{i}_conv_{i}_bn_{kind}" if norm else f"mobl{i}_conv_{i}_{kind}"
    return {"predictions": "Logits"}.get(layer, layer)


def _write(path: Path, layers: Layers, version: str, top_level: bool = False) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = _text([name for name, _ in layers])
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["keras_version"] = np.bytes_(version)
        for name, weights in layers:
            _write_group(file.create_group(name), weights)
        if top_level:
            _write_group(file.create_group("top_level_model_weights"), [])


def _write_keras_1(path: Path, model: keras.Model) -> None:
    """Write the files of VGG from 2016, whose arrays lie at ``/block1_conv1/block1_conv1_W_1:0``."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = _text([layer.name for layer in model.layers])
        for layer in model.layers:
            names = [f"{layer.name}_{kind}_1:0" for kind in "Wb"]
            values = [np.asarray(variable) for variable in layer.variables]
            _write_group(file.create_group(layer.name), list(zip(names, values, strict=False)))


def _write_group(group: h5py.Group, weights: Sequence[tuple[str, np.ndarray]]) -> None:
    group.attrs["weight_names"] = _text([name for name, _ in weights])
    for name, value in weights:
        group[name] = value


def _text(names: list[str]) -> np.ndarray:
    """Return names as text of fixed length, as h5py 2 wrote them; an empty list is one of floats."""
    return np.asarray([name.encode() for name in names])
