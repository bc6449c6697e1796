"""Conversion tables of MobileNetV2."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tl_jax.weights import keras
from tl_jax.weights.rules import (
    COUNTERS,
    OWN,
    Rule,
    Shapes,
    Table,
    hwc1_to_hw1c,
    keras_layer,
    keras_norm,
    torch_conv,
    torch_dense,
    torch_norm,
)

DEPTHS, TINY = (1, 2, 3, 4, 3, 3, 1), (1, 2, 1, 1)  # blocks of each stage
_UNITS = ("expand", "depthwise", "project")


def _blocks(depths: Sequence[int]) -> Iterator[tuple[int, int, int, tuple[str, ...]]]:
    """Yield (number from 0 on, stage, block, its units) of every block; the first expands nothing."""
    number = 0
    for stage, depth in enumerate(depths, start=1):
        for block in range(1, depth + 1):
            yield number, stage, block, _UNITS[number == 0 :]
            number += 1


def _keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``block_1_expand``; the published files, ``mobl1_conv_1_expand`` and others, go by order."""
    rules = keras_layer("Conv1", "stem/conv") + keras_norm("bn_Conv1", "stem/bn")
    rules += keras_layer("Conv_1", "final/conv") + keras_norm("Conv_1_bn", "final/bn")
    rules += keras_layer("predictions", "head")
    layers = [("stem/conv", "conv"), ("stem/bn", "norm")]
    for number, stage, block, units in _blocks(depths):
        for unit in units:
            theirs, ours = (
                f"block_{number}_{unit}" if number else f"expanded_conv_{unit}",
                f"stage{stage}/block{block}/{unit}",
            )
            depthwise = unit == "depthwise"
            rules += keras_layer(theirs, f"{ours}/conv", *([hwc1_to_hw1c] if depthwise else []))
            rules += keras_norm(f"{theirs}_BN", f"{ours}/bn")
            layers += [(f"{ours}/conv", "depthwise" if depthwise else "conv"), (f"{ours}/bn", "norm")]
    layers += [("final/conv", "conv"), ("final/bn", "norm"), ("head", "dense")]
    by_order = [Rule(r"(params/.*/depthwise/conv/kernel)", r"\1", hwc1_to_hw1c)]
    by_order.append(OWN._replace(pattern=r"((?:params|batch_stats)/(?!.*/depthwise/conv/kernel).*)"))
    trunk = r"(?:Conv1|bn_Conv1|Conv_1(_bn)?|(expanded_conv|block_\d+)_(expand|depthwise|project)(_BN)?)"
    listed = keras.listed(layers)
    names = keras.names(listed, chain=True, own=f"{trunk}|predictions")
    return Table([*rules, *by_order], names=names, layers=listed, inside=f"{trunk}/.*")


def _torchvision(depths: Sequence[int]) -> Table:
    """torchvision: ``features.1.conv.0.0.weight``, blocks counted through; the last convolution is one more.

    Older files (``features.1.conv.0.weight``) count convolution, BatchNorm and ReLU6 of a block through.
    """
    last = sum(depths) + 1
    rules = torch_conv(r"features\.0\.0", "stem/conv") + torch_norm(r"features\.0\.1", "stem/bn")
    rules += torch_conv(rf"features\.{last}\.0", "final/conv") + torch_norm(rf"features\.{last}\.1", "final/bn")
    rules += torch_dense(r"classifier\.1", "head")
    for number, stage, block, units in _blocks(depths):
        for i, unit in enumerate(units):
            at, ours = rf"features\.{number + 1}\.conv\.", f"stage{stage}/block{block}/{unit}"
            conv, norm = (f"{i}", f"{i + 1}") if unit == "project" else (rf"{i}\.0", rf"{i}\.1")
            rules += torch_conv(at + conv, f"{ours}/conv") + torch_norm(at + norm, f"{ours}/bn")
    return Table(rules, COUNTERS, names=_todays)


def _todays(arrays: Mapping[str, np.ndarray], _: Shapes) -> Mapping[str, str]:
    """Return torchvision's names of today for those of files from before 0.3 and their like."""
    if not any(re.fullmatch(r"features\.\d+\.conv\.[4-7]\..*", name) for name in arrays):
        return {name: name for name in arrays}
    blocks = {m[1] for name in arrays if (m := re.fullmatch(r"features\.(\d+)\.conv\.[67]\..*", name))}

    def todays(match: re.Match[str]) -> str:
        """Return the name of a layer; the last convolution of a block and its BatchNorm stand for themselves."""
        unit, at = divmod(int(match[2]), 3)
        last = 2 if match[1] in blocks else 1
        return f"features.{match[1]}.conv.{unit + at if unit == last else f'{unit}.{at}'}."

    return {name: re.sub(r"^features\.(\d+)\.conv\.(\d)\.", todays, name) for name in arrays}


def _timm(depths: Sequence[int]) -> Table:
    """timm: ``blocks.1.0.conv_pw.weight``, stages and blocks counted from 0."""
    rules = torch_conv("conv_stem", "stem/conv") + torch_norm("bn1", "stem/bn")
    rules += torch_conv("conv_head", "final/conv") + torch_norm("bn2", "final/bn") + torch_dense("classifier", "head")
    for number, stage, block, units in _blocks(depths):
        names = ("conv_pw", "conv_dw", "conv_pwl") if number else ("conv_dw", "conv_pw")
        for i, (unit, name) in enumerate(zip(units, names, strict=True), start=1):
            at, ours = rf"blocks\.{stage - 1}\.{block - 1}\.", f"stage{stage}/block{block}/{unit}"
            rules += torch_conv(at + name, f"{ours}/conv") + torch_norm(f"{at}bn{i}", f"{ours}/bn")
    return Table(rules, COUNTERS)


def tables(depths: Sequence[int]) -> dict[str, Table]:
    """Return the tables by source."""
    return {"keras": _keras(depths), "torchvision": _torchvision(depths), "timm": _timm(depths)}
