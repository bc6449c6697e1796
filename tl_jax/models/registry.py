"""Models by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from tl_jax.errors import UserError, nearest
from tl_jax.models.resnet import LAYOUTS, ResNet

# name -> (class, fixed arguments). The tiny ones keep every kind of layer of their family, for tests and smoke runs.
MODELS: Mapping[str, tuple[type[nn.Module], Mapping[str, Any]]] = {
    "resnet50": (ResNet, {}),
    "resnet50_tiny": (ResNet, {"depths": (2, 1, 1, 1), "widths": (8, 8, 16, 16)}),
    # CIFAR-style: one 3x3 stem at stride 2 and basic blocks, 0.31 M parameters.
    "resnet8": (
        ResNet,
        {"depths": (1, 1, 1), "widths": (32, 64, 128), "bottleneck": False, "stem_kernel": 3, "layout": "torchvision"},
    ),
}


def names() -> tuple[str, ...]:
    """Return the names that ``create`` knows."""
    return tuple(MODELS)


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Return a linen module whose ``apply(variables, x, train=False)`` gives ``(logits, endpoints)``.

    Args:
        name: one of ``names()``.
        num_classes: K; 0 builds the model without a head, and its first output is ``features`` (N, D).
        **options: attributes of the model class, such as ``layout`` or ``dtype``.

    Raises:
        UserError: unknown name, option or layout.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; {nearest(name, MODELS)}")
    cls, fixed = MODELS[name]
    known = {f.name for f in dataclasses.fields(cls)} - {"parent", "name", "num_classes"}
    for option in options:
        if option not in known:
            raise UserError(f"model {name!r} has no option {option!r}; {nearest(option, known)}")
    layout = options.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"model {name!r} has no layout {layout!r}; {nearest(layout, LAYOUTS)}")
    return cls(num_classes=num_classes, **{**fixed, **options})
