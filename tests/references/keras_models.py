"""keras.applications' own models filled by ``draw``, and their outputs in double precision."""

import functools
from collections.abc import Callable, Mapping

import keras
import numpy as np

from tests.references.draw import draw

apps = keras.applications
MODELS: Mapping[str, Callable[..., keras.Model]] = {
    "vgg16": apps.VGG16,
    "vgg19": apps.VGG19,
    "resnet50": apps.ResNet50,
    "resnet101": apps.ResNet101,
    "resnet152": apps.ResNet152,
    "resnet50v2": apps.ResNet50V2,
    "inception_v3": apps.InceptionV3,
    "mobilenet_v2": apps.MobileNetV2,
    "mobilenet_v2_035": functools.partial(apps.MobileNetV2, alpha=0.35),
    "mobilenet_v2_140": functools.partial(apps.MobileNetV2, alpha=1.4),  # above 1 the last convolution grows too
}

# Blocks in each stage; a stage of Keras' ResNets ends with the output of its last block.
DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3), "resnet50v2": (3, 4, 6, 3)}
MOBILENET = ["expanded_conv_project_BN", *(f"block_{i}_add" for i in (2, 5, 9, 12, 15)), "block_16_project_BN"]


def build(name: str, top: bool, size: tuple[int, int], seed: int) -> keras.Model:
    """Return a model, (N, *size, 3) -> logits (N, 1000) or, without ``top``, the last feature map.

    The size is a part of the model: MobileNetV2 pads by it, and VGG's first dense layer is as large as the map.
    Every variable has the value that ``draw`` gives its name, and automatic names count from 0.
    """
    model = _empty(name, top, size, "float32")
    for variable in model.variables:
        variable.assign(draw(variable.path, tuple(variable.shape), seed))
    return model


def outputs(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return endpoints of ``images`` in float64, ``features``, and ``logits`` where there is a top."""
    top = model.layers[-1].name == "predictions"
    double = _empty(model.name, top, model.input_shape[1:3], "float64")
    double.set_weights(model.get_weights())
    taps = {end: double.get_layer(layer).output for end, layer in endpoints(model.name, top).items()}
    if top:
        taps["logits"] = double.outputs[0]
    ends = keras.Model(double.inputs[0], taps)(images.astype(np.float64), training=False)
    ends = {name: keras.ops.convert_to_numpy(end) for name, end in ends.items()}
    assert all(end.dtype == np.float64 for end in ends.values())
    last = [end for end in ends.values() if end.ndim == 4][-1]
    return {**ends, "features": last.mean(axis=(1, 2))}


def endpoints(name: str, top: bool) -> dict[str, str]:
    """Return our endpoint -> Keras' layer, the last feature map last of all maps."""
    if name.startswith("vgg"):
        dense = {"fc1": "fc1", "fc2": "fc2"} if top else {}
        return {**{f"stage{i}": f"block{i}_pool" for i in range(1, 6)}, **dense}
    if name.startswith("resnet"):
        stages = {f"stage{i}": f"conv{i + 1}_block{last}_out" for i, last in enumerate(DEPTHS[name], start=1)}
        return {"stem": "pool1_pool", **stages, **({"final": "post_relu"} if name.endswith("v2") else {})}
    if name == "inception_v3":
        mixed = {f"mixed{i}": f"mixed{i}" for i in range(11)}
        return {"stem": "max_pooling2d_1", "stage1": "mixed2", "stage2": "mixed7", **mixed, "stage3": "mixed10"}
    stages = {f"stage{i}": layer for i, layer in enumerate(MOBILENET, start=1)}
    return {"stem": "Conv1_relu", **stages, "final": "out_relu"}


def _empty(name: str, top: bool, size: tuple[int, int], dtype: str) -> keras.Model:
    keras.utils.clear_session()  # automatic names count from 0
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)  # of inputs and, from a clear session on, of layers
    try:
        options = {"weights": None, "input_shape": (*size, 3), "classifier_activation": None, "name": name}
        return MODELS[name](include_top=top, **options)
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(before)
