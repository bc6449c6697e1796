"""Conversion tables of the ResNet family, with and without pre-activation."""

from collections.abc import Iterator, Sequence

from tl_jax.weights import keras
from tl_jax.weights.rules import (
    COUNTERS,
    OWN,
    Rule,
    Table,
    keras_layer,
    keras_norm,
    torch_conv,
    torch_dense,
    torch_norm,
)

_TOP = "(?:probs|predictions)"  # the published file's name (Keras 2), and that of later versions


def _keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``conv2_block1_1_conv/kernel``; block convolutions count from 1, the shortcut is 0."""
    norms = [("([123])_bn", r"bn\1"), ("0_bn", "shortcut_bn")]
    layers = [("stem/conv", "conv"), ("stem/bn", "norm")]
    for block, first in _blocks(depths):
        for unit in ("1", "2", "shortcut", "3") if first else ("1", "2", "3"):  # by distance from the sum
            conv, norm = ("shortcut_conv", "shortcut_bn") if unit == "shortcut" else (f"conv{unit}", f"bn{unit}")
            layers += [(f"{block}/{conv}", "conv"), (f"{block}/{norm}", "norm")]
    return _keras_table(keras_norm("conv1_bn", "stem/bn"), norms, layers)


def _keras_v2(depths: Sequence[int]) -> Table:
    """keras.applications' pre-activation networks: ``conv2_block1_preact_bn/gamma``."""
    norms = [("([12])_bn", r"bn\1"), ("preact_bn", "preact_bn")]
    layers = [("stem/conv", "conv")]
    for block, first in _blocks(depths):
        convs = ("conv1", "conv2", "shortcut_conv", "conv3") if first else ("conv1", "conv2", "conv3")
        layers += [(f"{block}/{conv}", "conv") for conv in convs]
        layers += [(f"{block}/{norm}", "norm") for norm in ("preact_bn", "bn1", "bn2")]
    return _keras_table(keras_norm("post_bn", "final/bn"), norms, [*layers, ("final/bn", "norm")])


def _blocks(depths: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Yield the path of each block, and whether it is the first of its stage, whose shortcut has a convolution."""
    for stage, depth in enumerate(depths, start=1):
        yield from ((f"stage{stage}/block{i}", i == 1) for i in range(1, depth + 1))


def _keras_table(own: list[Rule], norms: Sequence[tuple[str, str]], layers: Sequence[tuple[str, str]]) -> Table:
    """Return the table of a Keras ResNet: its own rules, those of BatchNorms in blocks, the order of its layers."""
    rules = [*own, *keras_layer("conv1_conv", "stem/conv"), *keras_layer(_TOP, "head")]
    for stage in (1, 2, 3, 4):
        block, ours = rf"conv{stage + 1}_block(\d+)", rf"stage{stage}/block\1"
        rules += keras_layer(rf"{block}_([123])_conv", rf"{ours}/conv\2")
        rules += keras_layer(rf"{block}_0_conv", f"{ours}/shortcut_conv")
        for theirs, name in norms:
            rules += keras_norm(f"{block}_{theirs}", f"{ours}/" + name.replace(r"\1", r"\2"))
    listed = keras.listed([*layers, ("head", "dense")])
    return Table([*rules, OWN], names=keras.names(listed), layers=listed, inside=r"(?:conv\d+_|post_bn).*")


def _torchvision() -> Table:
    """torchvision: ``layer1.0.conv1.weight``; blocks count from 0 and ours from 1, so each has its own rules."""
    rules = torch_conv("conv1", "stem/conv") + torch_norm("bn1", "stem/bn") + torch_dense("fc", "head")
    for index in range(36):  # ResNet-152's longest stage
        theirs, ours = rf"layer(\d)\.{index}", rf"stage\1/block{index + 1}"
        rules += torch_conv(rf"{theirs}\.conv(\d)", rf"{ours}/conv\2") + torch_norm(
            rf"{theirs}\.bn(\d)", rf"{ours}/bn\2"
        )
        rules += torch_conv(rf"{theirs}\.downsample\.0", f"{ours}/shortcut_conv")
        rules += torch_norm(rf"{theirs}\.downsample\.1", f"{ours}/shortcut_bn")
    return Table(rules, COUNTERS)


TORCHVISION = _torchvision()


def tables(depths: Sequence[int], bottleneck: bool = True) -> dict[str, Table]:
    """Return the tables by source; timm's names are torchvision's, and Keras has no networks of basic blocks."""
    torch = {"torchvision": TORCHVISION, "timm": TORCHVISION}
    return {"keras": _keras(depths), **torch} if bottleneck else torch


def tables_v2(depths: Sequence[int]) -> dict[str, Table]:
    """Return the tables of the networks with pre-activation by source."""
    return {"keras": _keras_v2(depths)}
