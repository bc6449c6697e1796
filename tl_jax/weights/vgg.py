"""Conversion tables of the VGG family."""

from collections.abc import Sequence

from tl_jax.weights import keras
from tl_jax.weights.rules import (
    COUNTERS,
    OWN,
    Rule,
    Table,
    chw_to_hwc,
    keras_layer,
    torch_conv,
    torch_dense,
    torch_norm,
    transpose,
)

VGG16, VGG19, TINY = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4), (1, 1, 2, 1, 1)


def _keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``block1_conv1/kernel``; the published files spell it ``block1_conv1_W_1``."""
    convs = [(i, j) for i, depth in enumerate(depths, start=1) for j in range(1, depth + 1)]
    layers = [(f"stage{i}/conv{j}", "conv") for i, j in convs]
    layers += [(path, "dense") for path in ("fc1", "fc2", "head")]
    rules = keras_layer(r"block(\d)_conv(\d)", r"stage\1/conv\2")
    rules += keras_layer("(fc1|fc2)", r"\1") + keras_layer("predictions", "head")
    names = keras.names(listed := keras.listed(layers), chain=True, own=r"block\d_conv\d|fc1|fc2|predictions")
    return Table([*rules, OWN], names=names, layers=listed, inside=r"block\d+_conv\d+/.*")


def _torchvision(depths: Sequence[int], norm: bool) -> Table:
    """torchvision: ``features.0.weight``, every layer counted; ``classifier.0``, ``.3``, ``.6``."""
    dense = [("classifier.0", "fc1", chw_to_hwc), ("classifier.3", "fc2", transpose)]
    dense.append(("classifier.6", "head", transpose))
    return _torch(depths, norm, dense)


def _timm(depths: Sequence[int], norm: bool) -> Table:
    """timm: the hidden layers are convolutions, (4096, 512, 7, 7) and (4096, 4096, 1, 1)."""
    dense = [("pre_logits.fc1", "fc1", chw_to_hwc), ("pre_logits.fc2", "fc2", transpose)]
    dense.append(("head.fc", "head", transpose))
    return _torch(depths, norm, dense)


def _torch(depths: Sequence[int], norm: bool, dense: Sequence) -> Table:
    rules: list[Rule] = []
    at = 0
    for i, depth in enumerate(depths, start=1):
        for j in range(1, depth + 1):
            rules += torch_conv(rf"features\.{at}", f"stage{i}/conv{j}")
            if norm:
                rules += torch_norm(rf"features\.{at + 1}", f"stage{i}/bn{j}")
            at += 3 if norm else 2  # convolution, BatchNorm, ReLU
        at += 1  # pooling
    for name, path, transform in dense:
        rules += torch_dense(name.replace(".", r"\."), path, transform)
    return Table(rules, COUNTERS)


def tables(depths: Sequence[int], norm: bool) -> dict[str, Table]:
    """Return the tables by source; Keras has no VGG with BatchNorm."""
    own = {} if norm else {"keras": _keras(depths)}
    return {**own, "torchvision": _torchvision(depths, norm), "timm": _timm(depths, norm)}
