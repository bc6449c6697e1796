"""Names in Keras' files: one spelling for each weight, and the order of layers where their names say nothing.

Keras itself loads legacy files by order. Here names decide where they mean something. Layers named automatically
(``conv2d_12`` is another layer in each session, and where counting starts at 0 or 1) are told by their order among
those of their kind, which all of Keras' layouts keep, checked by what their numbers say of when they were made.

A file may end early, or have a few layers around the network: an input BatchNorm, a head of the user's. Then the
shapes of our layers tell which of the file's they are.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tl_jax.pretrained.convert import UNKNOWN, Shapes

_WEIGHTS = {"W": "kernel", "b": "bias", "depthwise_kernel": "kernel", "running_mean": "moving_mean"}
_WEIGHTS |= {"running_std": "moving_variance"}  # Keras 1's name; it holds the variance
_LEAVES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
KINDS = ("conv", "depthwise", "norm", "dense")
_BESIDE = 4  # layers of a kind at most that a file has around the network
_AUTOMATIC = re.compile(r"(?:conv2d|convolution2d|depthwise_conv2d|batch_?normalization|dense)(?:_(\d{1,9}))?")


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


def names(layers: Sequence[Layer], chain: bool = False, own: str = r"$^") -> Callable[..., Mapping[str, str]]:
    """Return the function for ``Table.names`` of a Keras family.

    Args:
        layers: in the order of ``model.layers``, that is by distance from the output, the furthest first.
        chain: no two layers run side by side, so that the order is the same whoever wrote the file, and decides
            whatever the layers are called; otherwise it decides for automatic names only.
        own: regex of the layer names that the rules know.

    Returns:
        A function from the arrays of a file and the shapes of our leaves to ``{name in the file: name that the rules
        know}``; by order the latter are paths of ours, "params/stem/conv/kernel".
    """

    def rename(arrays: Mapping[str, np.ndarray], shapes: Shapes = UNKNOWN) -> Mapping[str, str]:
        spelled = {name: _spell(name) for name in arrays}
        found: dict[str, list[str]] = {}
        for name in arrays:
            found.setdefault(name.rpartition("/")[0], []).append(name)
        unknown = [layer for layer in found if not re.fullmatch(own, layer)]
        kinds = {layer: _kind({spelled[n]: arrays[n] for n in members}) for layer, members in found.items()}
        convolutions = [layer for layer in unknown if kinds[layer] in KINDS[:2]]
        nameless = convolutions and all(map(_AUTOMATIC.fullmatch, convolutions))
        if not unknown or not (nameless or chain):
            return spelled
        named = {kind: sum(kinds[layer] == kind for layer in found if layer not in unknown) for kind in KINDS}
        out = dict(spelled)
        for kind in KINDS:
            ours = [layer for layer in layers if layer.kind == kind]
            if named[kind] < len(ours):  # as many as there are in the network are told by their names
                theirs = [layer for layer in found if kinds[layer] == kind]
                theirs = [layer for layer in theirs if chain or _AUTOMATIC.fullmatch(layer)]
                weights = {layer: {spelled[n].rpartition("/")[2]: arrays[n] for n in found[layer]} for layer in theirs}
                for layer, target in _matched(weights, ours, shapes):
                    for name in found[layer]:
                        out[name] = _path(target, spelled[name].rpartition("/")[2])
        return out

    return rename


def _path(layer: Layer, leaf: str) -> str:
    return f"{'batch_stats' if leaf.startswith('moving') else 'params'}/{layer.path}/{_LEAVES.get(leaf, leaf)}"


def _matched(
    theirs: Mapping[str, Mapping[str, np.ndarray]], ours: Sequence[Layer], shapes: Shapes
) -> list[tuple[str, Layer]]:
    """Match layers of one kind one by one: all of ours, or the first of them where the file ends early.

    Args:
        theirs: layers of the file, each with its weights, in its order; up to ``_BESIDE`` may be none of ours.
        ours: layers of the network.
        shapes: of our leaves by path; without them the numbers of layers must be the same.

    Returns:
        Pairs; none if the two do not go together.
    """
    names = list(theirs)
    if len(names) == len(ours) and _plausible(names, ours) and (not shapes or _fit(theirs, names, ours, shapes)):
        return list(zip(names, ours, strict=True))
    if not shapes or not ours or ours[0].kind == "dense":  # of several dense layers none is known to be the head
        return []
    most = min(len(names), len(ours))
    for count in range(most, max(0, len(names) - _BESIDE - 1), -1):
        for start in range(len(names) - count + 1):
            chosen, first = names[start : start + count], ours[:count]
            if _fit(theirs, chosen, first, shapes) and _plausible(chosen, first):
                return list(zip(chosen, first, strict=True))
    return []


def _fit(
    theirs: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str], ours: Sequence[Layer], shapes: Shapes
) -> bool:
    """Tell whether weights have our shapes, but for the order of axes, and as far as we have shapes for them."""
    for name, layer in zip(names, ours, strict=True):
        for leaf, array in theirs[name].items():
            shape = shapes.get(_path(layer, leaf), array.shape)
            if sorted(array.shape) != sorted(shape):
                return False
    return True


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
