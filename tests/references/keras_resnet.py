"""keras.applications' own ResNet-50 with random weights, its legacy HDF5 file, and its outputs in double precision."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.legacy.saving import legacy_h5_format

ENDPOINTS = {"stem": "pool1_pool", "stage1": "conv2_block3_out", "stage2": "conv3_block4_out"}
ENDPOINTS |= {"stage3": "conv4_block6_out", "stage4": "conv5_block3_out"}


def build(top: bool, seed: int) -> keras.Model:
    """Return ResNet50, (N, H, W, 3) of any size -> logits (N, 1000) or, without ``top``, the last feature map.

    Every variable is drawn from ``seed``, so a reader that swaps or drops any of them changes the outputs.
    """
    model = _empty(top)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(_draw(variable.path, tuple(variable.shape), rng).astype(np.float32))
    return model


def _empty(top: bool) -> keras.Model:
    # Keras refuses input_shape=(None, None, 3) for a model with a top, but not such a tensor.
    inputs = keras.Input((None, None, 3))
    return keras.applications.ResNet50(top, weights=None, input_tensor=inputs, classifier_activation=None)


def _draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw one variable such that activations of unit inputs stay near one through all layers."""
    layer, name = path.split("/")
    if name == "kernel":
        gain = 1.0 if layer == "predictions" else 2.0
        return rng.normal(0, (gain / np.prod(shape[:-1])) ** 0.5, shape)
    if name in ("gamma", "moving_variance"):
        # The last normalisation of a branch keeps it below its shortcut. One channel in 16 varies so little, as in the
        # published weights, that the epsilon of the normalisation decides its scale.
        low, high = (0.1, 0.4) if name == "gamma" and layer.endswith("_3_bn") else (0.5, 1.5)
        values = rng.uniform(low, high, shape)
        values[3::16] *= 3e-3 if name == "gamma" else 1e-6
        return values
    return rng.normal(0, 0.1, shape)  # bias, beta, moving_mean


def save_legacy_h5(model: keras.Model, path: Path) -> None:
    """Write the layout of the published files; Keras 3 has no public way to write it for weights alone."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def outputs(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return endpoints of ``images`` (N, H, W, 3) in float64, ``features``, and ``logits`` where there is a top."""
    top = model.layers[-1].name == "predictions"
    with _float64():
        double = _empty(top)
        double.set_weights(model.get_weights())
        taps = {name: double.get_layer(layer).output for name, layer in ENDPOINTS.items()}
        if top:
            taps["logits"] = double.outputs[0]
        ends = keras.Model(double.inputs[0], taps)(images.astype(np.float64), training=False)
        ends = {name: keras.ops.convert_to_numpy(end) for name, end in ends.items()}
    assert all(end.dtype == np.float64 for end in ends.values())
    return {**ends, "features": ends["stage4"].mean(axis=(1, 2))}


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")  # of inputs
    keras.config.set_dtype_policy("float64")  # of layers
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
