"""Pixel scalings by name, shared by pretrained weights and data."""

import sys
from typing import NamedTuple

from tl_jax.utils.registry import Registry


class Scaling(NamedTuple):
    """Scaling of uint8 pixels to network inputs: ``(pixel * scale - mean) / std``, channels in ``order``."""

    order: str  # "rgb" or "bgr"
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


SCALINGS: Registry[Scaling] = Registry("scaling")


def register_scaling(name: str, scaling: Scaling) -> None:
    """Register a scaling for weights and ``config.input.scaling``.

    Raises:
        UserError: another module has registered other numbers under this name.
    """
    if name not in SCALINGS or SCALINGS[name] != scaling:
        SCALINGS.add(name, scaling, sys._getframe(1).f_globals.get("__name__", ""))


# "caffe" and "tf" are the modes of keras.applications.imagenet_utils.preprocess_input, "torch" is torchvision's
# normalization; "unit" (x/255) is used by no published weights and reproduces older experiments.
register_scaling("caffe", Scaling("bgr", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)))
register_scaling("tf", Scaling("rgb", 1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)))
register_scaling("torch", Scaling("rgb", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
register_scaling("unit", Scaling("rgb", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
