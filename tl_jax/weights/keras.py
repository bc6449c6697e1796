"""Names in Keras' files: one spelling for each weight, and the order of layers where their names say nothing.

Keras itself loads legacy files by order. Here names decide where they mean something. Layers named automatically
(``conv2d_12`` is another layer in each session, and where counting starts at 0 or 1) are told by their order among
those of their kind, which all of Keras' layouts keep, checked by what their numbers say of when they were made.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_WEIGHTS = {"W": "kernel", "b": "bias", "depthwise_kernel": "kernel", "running_mean": "moving_mean"}
_WEIGHTS |= {"running_std": "moving_variance"}  # Keras 1's name; it holds the variance
_LEAVES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
_AUTOMATIC = re.compile(r"(?:conv2d|convolution2d|depthwise_conv2d|batch_?normalization|dense)(?:_(\d+))?")


class Layer(NamedTuple):
    """A layer of ours with weights.

    Attributes:
        path: of its parameters, "stage1/block1/conv1".
        kind: "conv", "depthwise", "norm" or "dense".
        made: place among all layers in the order in which Keras' code makes them.
    """

    path: str
    kind: str
    made: int


def listed(layers: Iterable[tuple[str, str]]) -> list[Layer]:
    """Return layers (path, kind) whose place in the making is their place in the list: names of theirs say nothing."""
    return [Layer(path, kind, i) for i, (path, kind) in enumerate(layers)]


def names(
    layers: Sequence[Layer], chain: bool = False, own: str = r"$^"
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, str]]:
    """Return the function for ``Table.names`` of a Keras family.

    Args:
        layers: in the order of ``model.layers``, that is by distance from the output, the furthest first.
        chain: no two layers run side by side, so that the order is the same whoever wrote the file, and decides
            whatever the layers are called; otherwise it decides for automatic names only.
        own: regex of the layer names that the rules know.

    Returns:
        A function from the arrays of a file to ``{name in the file: name that the rules know}``; by order the latter
        are paths of ours, "params/stem/conv/kernel".
    """

    def rename(arrays: Mapping[str, np.ndarray]) -> Mapping[str, str]:
        spelled = {name: _spell(name) for name in arrays}
        found: dict[str, list[str]] = {}
        for name in arrays:
            found.setdefault(name.rpartition("/")[0], []).append(name)
        unknown = [layer for layer in found if not re.fullmatch(own, layer)]
        nameless = all(_AUTOMATIC.fullmatch(layer) for layer in unknown)
        if not unknown or not (nameless or chain):
            return spelled
        kinds = {layer: _kind({spelled[n]: arrays[n] for n in members}) for layer, members in found.items()}
        return {**spelled, **_by_order(layers, found, kinds, spelled)}

    return rename


def _by_order(
    layers: Sequence[Layer], found: Mapping[str, list[str]], kinds: Mapping[str, str], spelled: Mapping[str, str]
) -> dict[str, str]:
    """Match layers of a kind one by one; a kind of which the file has more or fewer is left alone."""
    out = {}
    for kind in ("conv", "depthwise", "norm", "dense"):
        theirs = [layer for layer in found if kinds[layer] == kind]
        ours = [layer for layer in layers if layer.kind == kind]
        if len(theirs) != len(ours) or not _plausible(theirs, ours):
            continue
        for layer, target in zip(theirs, ours, strict=True):
            for name in found[layer]:
                leaf = spelled[name].rpartition("/")[2]
                room = "batch_stats" if leaf.startswith("moving") else "params"
                out[name] = f"{room}/{target.path}/{_LEAVES.get(leaf, leaf)}"
    return out


def _plausible(theirs: Sequence[str], ours: Sequence[Layer]) -> bool:
    """Tell whether the numbers of automatic names fit the order in which the file has the layers.

    Keras numbers layers as they are made, or, where it saves them nameless, as it lists them. A file in another order,
    sorted by name for one, would put arrays of the right shape in the wrong place.
    """
    numbers = [_AUTOMATIC.fullmatch(name) for name in theirs]
    if not all(numbers):
        return True
    rank = np.argsort(np.argsort([int(m[1] or 0) for m in numbers if m])).tolist()
    made = np.argsort(np.argsort([layer.made for layer in ours])).tolist()
    return rank in (made, list(range(len(rank))))


def _spell(name: str) -> str:
    """Return ``LAYER/WEIGHT`` with today's name of the weight; Keras 1 wrote ``LAYER/LAYER_W_1``."""
    layer, _, weight = name.rpartition("/")
    weight = re.sub(r"_\d+$", "", weight.removeprefix(f"{layer}_"))
    return f"{layer}/{_WEIGHTS.get(weight, weight)}"


def _kind(weights: Mapping[str, np.ndarray]) -> str:
    leaves = {name.rpartition("/")[2]: array for name, array in weights.items()}
    if "moving_mean" in leaves:
        return "norm"
    shape = leaves["kernel"].shape if "kernel" in leaves else ()
    if len(shape) == 4:
        return "depthwise" if shape[3] == 1 < shape[2] else "conv"
    return {2: "dense"}.get(len(shape), "")
