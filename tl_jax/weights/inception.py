"""Conversion tables of InceptionV3."""

from collections.abc import Sequence

from tl_jax.weights import keras
from tl_jax.weights.rules import COUNTERS, OWN, Table, flat, keras_layer, torch_conv, torch_dense, torch_norm

_POOL = ["branch_pool"]
_DOUBLE = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
_GRID35 = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], _DOUBLE, _POOL]
_TO17 = [["branch3x3"], _DOUBLE]
_GRID17 = [
    ["branch1x1"],
    [f"branch7x7_{i}" for i in (1, 2, 3)],
    [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)],
    _POOL,
]
_TO8 = [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]]
_GRID8 = [
    ["branch1x1"],
    ["branch3x3_1", "branch3x3_2a branch3x3_2b"],  # side by side
    ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a branch3x3dbl_3b"],
    _POOL,
]
Repeats = tuple[int, int, int]  # equal blocks at each size
_STEM = "1a_3x3 2a_3x3 2b_3x3 3b_1x1 4a_3x3".split()


def _blocks(repeats: Repeats) -> list[list[list[str]]]:
    first, second, third = repeats
    return [*[_GRID35] * first, _TO17, *[_GRID17] * second, _TO8, *[_GRID8] * third]


def _made(repeats: Repeats) -> list[str]:
    """Return the units in the order in which Keras makes them."""
    units = [f"stem/conv{i}" for i in (1, 2, 3, 4, 5)]
    for number, branches in enumerate(_blocks(repeats)):
        units += [f"mixed{number}/{unit}" for branch in branches for step in branch for unit in step.split()]
    return units


def _distance(branch: Sequence[str], step: int) -> float:
    """Return how many units lie from a step to the end of its block; a pair ends in a concatenation of its own."""
    return len(branch) - step + (0.5 if " " in branch[-1] else 0.0)


def _listed(repeats: Repeats) -> list[str]:
    """Return the units as Keras lists them: in each block the furthest from its end first."""
    units = [f"stem/conv{i}" for i in (1, 2, 3, 4, 5)]
    for number, branches in enumerate(_blocks(repeats)):
        steps = [(_distance(branch, i), step) for branch in branches for i, step in enumerate(branch)]
        steps.sort(key=lambda item: -item[0])  # stable: branches stay in order
        units += [f"mixed{number}/{unit}" for _, step in steps for unit in step.split()]
    return units


def _keras(repeats: Repeats) -> Table:
    """keras.applications: every layer but the top is named automatically."""
    made = {unit: i for i, unit in enumerate(_made(repeats))}
    layers = [
        keras.Layer(f"{unit}/{leaf}", kind, made[unit])
        for unit in _listed(repeats)
        for leaf, kind in (("conv", "conv"), ("bn", "norm"))
    ]
    layers.append(keras.Layer("head", "dense", 0))
    rules = [*keras_layer("predictions", "head"), OWN]
    return Table(rules, names=keras.names(layers, own="predictions"), layers=layers)


def _torchvision(repeats: Repeats) -> Table:
    """torchvision and timm: ``Mixed_5b.branch1x1.conv.weight``; the auxiliary head may be there or not."""
    units = [(rf"Conv2d_{name}", f"stem/conv{i}") for i, name in enumerate(_STEM, start=1)]
    # The first of the second and third size halves the map.
    blocks = [f"5{c}" for c in "bcd"[: repeats[0]]] + [f"6{c}" for c in "abcde"[: repeats[1] + 1]]
    blocks += [f"7{c}" for c in "abc"[: repeats[2] + 1]]
    units += [(rf"Mixed_{name}\.(\w+)", rf"mixed{i}/\1") for i, name in enumerate(blocks)]
    units += [(rf"AuxLogits\.conv{i}", f"aux/conv{i + 1}") for i in (0, 1)]
    convs = flat(*(torch_conv(rf"{name}\.conv", f"{path}/conv") for name, path in units))
    norms = flat(*(torch_norm(rf"{name}\.bn", f"{path}/bn") for name, path in units))
    return Table([*convs, *norms, *torch_dense("fc", "head"), *torch_dense(r"AuxLogits\.fc", "aux/head")], COUNTERS)


def tables(repeats: Repeats) -> dict[str, Table]:
    """Return the tables by source; timm's names are torchvision's."""
    torch = _torchvision(repeats)
    return {"keras": _keras(repeats), "torchvision": torch, "timm": torch}
