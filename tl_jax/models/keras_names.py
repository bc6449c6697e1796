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

from tl_jax.models.rules import NO_SHAPES, Shapes

_WEIGHT_NAMES = {"W": "kernel", "b": "bias", "depthwise_kernel": "kernel", "running_mean": "moving_mean"}
_WEIGHT_NAMES |= {"running_std": "moving_variance"}  # Keras 1's name; it holds the variance
_LEAF_NAMES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
KINDS = ("conv", "depthwise", "norm", "dense")
_MAX_EXTRA_LAYERS = 4  # layers of a kind at most that a file has around the network
_AUTOMATIC = re.compile(r"(?:conv2d|convolution2d|depthwise_conv2d|batch_?normalization|dense)(?:_(\d{1,9}))?")


class Layer(NamedTuple):
    """A layer of ours with weights.

    Attributes:
        path: of its parameters, "stage1/block1/conv1".
        kind: "conv", "depthwise", "norm" or "dense".
        creation_index: place among all layers in the order in which Keras' code makes them.
    """

    path: str
    kind: str
    creation_index: int


def make_layers(layers: Iterable[tuple[str, str]]) -> list[Layer]:
    """Return layers (path, kind) whose place in the making is their place in the list: names of theirs say nothing."""
    return [Layer(path, kind, i) for i, (path, kind) in enumerate(layers)]


def make_renamer(
    layers: Sequence[Layer], sequential: bool = False, known_names: str = r"$^"
) -> Callable[..., Mapping[str, str]]:
    """Return the function for ``Table.map_names`` of a Keras family.

    Args:
        layers: in the order of ``model.layers``, that is by distance from the output, the furthest first.
        sequential: no two layers run side by side, so that the order is the same whoever wrote the file, and decides
            whatever the layers are called; otherwise it decides for automatic names only.
        known_names: regex of the layer names that the rules know.

    Returns:
        A function from the arrays of a file and the shapes of our leaves to ``{name in the file: name that the rules
        know}``; by order the latter are paths of ours, "params/stem/conv/kernel".
    """

    def rename(arrays: Mapping[str, np.ndarray], shapes: Shapes = NO_SHAPES) -> Mapping[str, str]:
        normalized = {name: _normalize_name(name) for name in arrays}
        members_of: dict[str, list[str]] = {}
        for name in arrays:
            members_of.setdefault(name.rpartition("/")[0], []).append(name)
        unknown_layers = [layer for layer in members_of if not re.fullmatch(known_names, layer)]
        kinds = {
            layer: _layer_kind({normalized[n]: arrays[n] for n in members}) for layer, members in members_of.items()
        }
        convolutions = [layer for layer in unknown_layers if kinds[layer] in KINDS[:2]]
        automatic_names = convolutions and all(map(_AUTOMATIC.fullmatch, convolutions))
        if not unknown_layers or not (automatic_names or sequential):
            return normalized
        num_named = {
            kind: sum(kinds[layer] == kind for layer in members_of if layer not in unknown_layers) for kind in KINDS
        }
        names = dict(normalized)
        for kind in KINDS:
            ours = [layer for layer in layers if layer.kind == kind]
            if num_named[kind] < len(ours):  # as many as there are in the network are told by their names
                theirs = [layer for layer in members_of if kinds[layer] == kind]
                theirs = [layer for layer in theirs if sequential or _AUTOMATIC.fullmatch(layer)]
                weights = {
                    layer: {normalized[n].rpartition("/")[2]: arrays[n] for n in members_of[layer]} for layer in theirs
                }
                for layer, target in _match_layers(weights, ours, shapes):
                    for name in members_of[layer]:
                        names[name] = _path(target, normalized[name].rpartition("/")[2])
        return names

    return rename


def _path(layer: Layer, leaf: str) -> str:
    return f"{'batch_stats' if leaf.startswith('moving') else 'params'}/{layer.path}/{_LEAF_NAMES.get(leaf, leaf)}"


def _match_layers(
    theirs: Mapping[str, Mapping[str, np.ndarray]], ours: Sequence[Layer], shapes: Shapes
) -> list[tuple[str, Layer]]:
    """Match layers of one kind one by one: all of ours, or the first of them where the file ends early.

    Args:
        theirs: layers of the file, each with its weights, in its order; ``_MAX_EXTRA_LAYERS`` may be none of ours.
        ours: layers of the network.
        shapes: of our leaves by path; without them the numbers of layers must be the same.

    Returns:
        Pairs; none if the two do not go together.
    """
    names = list(theirs)
    if (
        len(names) == len(ours)
        and _numbers_fit(names, ours)
        and (not shapes or _shapes_fit(theirs, names, ours, shapes))
    ):
        return list(zip(names, ours, strict=True))
    if not shapes or not ours or ours[0].kind == "dense":  # of several dense layers none is known to be the head
        return []
    max_count = min(len(names), len(ours))
    for count in range(max_count, max(0, len(names) - _MAX_EXTRA_LAYERS - 1), -1):
        for start in range(len(names) - count + 1):
            candidates, first = names[start : start + count], ours[:count]
            if _shapes_fit(theirs, candidates, first, shapes) and _numbers_fit(candidates, first):
                return list(zip(candidates, first, strict=True))
    return []


def _shapes_fit(
    theirs: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str], ours: Sequence[Layer], shapes: Shapes
) -> bool:
    """Tell whether weights have our shapes, but for the order of axes, and as far as we have shapes for them."""
    for name, layer in zip(names, ours, strict=True):
        for leaf, array in theirs[name].items():
            shape = shapes.get(_path(layer, leaf), array.shape)
            if sorted(array.shape) != sorted(shape):
                return False
    return True


def _numbers_fit(theirs: Sequence[str], ours: Sequence[Layer]) -> bool:
    """Tell whether the numbers of automatic names fit the order in which the file has the layers.

    Keras numbers layers as they are made, or, where it saves them nameless, as it lists them. A file in another order,
    sorted by name for one, would put arrays of the right shape in the wrong place.
    """
    numbers = [_AUTOMATIC.fullmatch(name) for name in theirs]
    if not all(numbers):
        return True
    rank = np.argsort(np.argsort([int(m[1] or 0) for m in numbers if m])).tolist()
    creation_rank = np.argsort(np.argsort([layer.creation_index for layer in ours])).tolist()
    return rank in (creation_rank, list(range(len(rank))))


def _normalize_name(name: str) -> str:
    """Return ``LAYER/WEIGHT`` with today's name of the weight; Keras 1 wrote ``LAYER/LAYER_W_1``."""
    layer, _, weight = name.rpartition("/")
    weight = re.sub(r"_\d+$", "", weight.removeprefix(f"{layer}_"))
    return f"{layer}/{_WEIGHT_NAMES.get(weight, weight)}"


def _layer_kind(weights: Mapping[str, np.ndarray]) -> str:
    leaves = {name.rpartition("/")[2]: array for name, array in weights.items()}
    if "moving_mean" in leaves:
        return "norm"
    shape = leaves["kernel"].shape if "kernel" in leaves else ()
    if len(shape) == 4:
        return "depthwise" if shape[3] == 1 < shape[2] else "conv"
    return {2: "dense"}.get(len(shape), "")
