"""Names in Keras' files: one spelling per weight, and the order of layers if their names carry no meaning.

Keras itself loads legacy files by order. Here meaningful names take precedence. Automatic names are ambiguous:
``conv2d_12`` is another layer in each session, and counting starts at 0 or 1. Such layers are identified by their order
among those of their kind, which all of Keras' layouts preserve, and checked against the creation order that their
numbers imply.

A file may end early, or have a few layers around the network: an input BatchNorm, or the user's head. Then the shapes
of our layers identify those in the file.
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
_MAX_EXTRA_LAYERS = 4  # maximum number of layers per kind around the network
_AUTOMATIC = re.compile(r"(?:conv2d|convolution2d|depthwise_conv2d|batch_?normalization|dense)(?:_(\d{1,9}))?")


class Layer(NamedTuple):
    """One of our layers with weights.

    Attributes:
        path: path of its parameters, "stage1/block1/conv1".
        kind: "conv", "depthwise", "norm" or "dense".
        creation_index: position in the order in which Keras creates the layers.
    """

    path: str
    kind: str
    creation_index: int


def make_layers(layers: Iterable[tuple[str, str]]) -> list[Layer]:
    """Return layers (path, kind) whose creation order is that of the list, for networks with meaningful names."""
    return [Layer(path, kind, i) for i, (path, kind) in enumerate(layers)]


def make_renamer(
    layers: Sequence[Layer], sequential: bool = False, known_names: str = r"$^"
) -> Callable[..., Mapping[str, str]]:
    """Return the function for ``Table.map_names`` of a Keras family.

    Args:
        layers: in the order of ``model.layers``, that is, by descending distance from the output.
        sequential: no layers run in parallel, so the order is the same in every file and identifies the layers whatever
            their names; otherwise it is used for automatic names only.
        known_names: regex of the layer names in the rules.

    Returns:
        A function from the arrays of a file and the shapes of our leaves to ``{name in the file: name in the rules}``.
        Names identified by order become our paths, "params/stem/conv/kernel".
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
            if num_named[kind] < len(ours):  # otherwise names identify all of them
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
    """Match layers of one kind: all of ours, or the first of them if the file ends early.

    Args:
        theirs: layers of the file with their weights, in order; up to ``_MAX_EXTRA_LAYERS`` may be extra.
        ours: layers of the network.
        shapes: shapes of our leaves by path; without them the numbers of layers must be equal.

    Returns:
        Pairs; empty if they do not match.
    """
    names = list(theirs)
    if (
        len(names) == len(ours)
        and _numbers_fit(names, ours)
        and (not shapes or _shapes_fit(theirs, names, ours, shapes))
    ):
        return list(zip(names, ours, strict=True))
    if not shapes or not ours or ours[0].kind == "dense":  # it is unknown which dense layer is the head
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
    """Return whether weights have our shapes, up to the order of axes, if the shapes are known."""
    for name, layer in zip(names, ours, strict=True):
        for leaf, array in theirs[name].items():
            shape = shapes.get(_path(layer, leaf), array.shape)
            if sorted(array.shape) != sorted(shape):
                return False
    return True


def _numbers_fit(theirs: Sequence[str], ours: Sequence[Layer]) -> bool:
    """Return whether the numbers in automatic names are consistent with the order of the layers in the file.

    Keras numbers layers in creation order, or, if it saves them without names, in listed order. A file in another
    order, for example sorted by name, would put arrays of the right shape in the wrong place.
    """
    numbers = [_AUTOMATIC.fullmatch(name) for name in theirs]
    if not all(numbers):
        return True
    rank = np.argsort(np.argsort([int(m[1] or 0) for m in numbers if m])).tolist()
    creation_rank = np.argsort(np.argsort([layer.creation_index for layer in ours])).tolist()
    return rank in (creation_rank, list(range(len(rank))))


def _normalize_name(name: str) -> str:
    """Return ``LAYER/WEIGHT`` with the weight's current name; Keras 1 wrote ``LAYER/LAYER_W_1``."""
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
