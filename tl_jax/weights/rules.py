"""Conversion tables: which array of a published file goes to which leaf of our tree, and how it is turned."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

GRID = 7  # side of the feature map that VGG's fc1 sees


def keep(x: np.ndarray) -> np.ndarray:
    """Return the array as it is."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """Dense kernels: PyTorch (out, in) -> (in, out)."""
    out, channels = x.shape[:2]
    return x.reshape(out, channels).T  # timm has (out, in, 1, 1) in some places


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
    """Convolution kernels: PyTorch (out, in, H, W) -> (H, W, in, out); depthwise (C, 1, H, W) -> (H, W, 1, C)."""
    return x.transpose(2, 3, 1, 0)


def hwc1_to_hw1c(x: np.ndarray) -> np.ndarray:
    """Depthwise kernels: Keras (H, W, C, 1) -> (H, W, 1, C)."""
    return x.transpose(0, 1, 3, 2)


def chw_to_hwc(x: np.ndarray) -> np.ndarray:
    """VGG's first dense kernel: PyTorch flattens the map as (C, H, W), we as (H, W, C); (out, in) -> (in, out)."""
    return x.reshape(len(x), -1, GRID, GRID).transpose(2, 3, 1, 0).reshape(-1, len(x))


# What turns our array back into that of the file.
INVERSES: Mapping[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]] = {
    keep: keep,
    transpose: np.transpose,
    oihw_to_hwio: lambda x: x.transpose(3, 2, 0, 1),
    hwc1_to_hw1c: hwc1_to_hw1c,
    chw_to_hwc: lambda x: x.reshape(GRID, GRID, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
}


class Rule(NamedTuple):
    """A regex over the whole source name, the target path it expands to, and what is done to the array."""

    pattern: str
    path: str
    transform: Callable[[np.ndarray], np.ndarray] = keep


class Table(NamedTuple):
    """All rules of one source of one family.

    Attributes:
        rules: exactly one matches each name.
        ignored: names in the file that may be dropped.
        names: arrays of a file -> for each name in it the one that the rules know; None where they are the same.
        layers: of Keras' tables, see ``keras.names``.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    names: Callable[[Mapping[str, np.ndarray]], Mapping[str, str]] | None = None
    layers: Sequence[Any] = ()


class Converted(NamedTuple):
    """What a table made of a file.

    Attributes:
        leaves: target path -> array.
        origin: target path -> name in the file.
        transforms: target path -> name of what was done to the array.
        extra: names in the file that no rule and no ``ignored`` pattern matches.
        ignored: names in the file that were dropped, as the table says.
        clashes: descriptions of names that match several rules, or fall on a leaf already filled.
    """

    leaves: dict[str, np.ndarray]
    origin: dict[str, str]
    transforms: dict[str, str]
    extra: list[str]
    ignored: list[str]
    clashes: list[str]


# Our own names, as in this project's files and as the order of layers gives them.
OWN = Rule(r"((?:params|batch_stats)/.*)", r"\1")

# (name in the file, path of ours) of the leaves of one BatchNorm, by source.
NORMS = {
    "keras": (
        ("gamma", "params/{}/scale"),
        ("beta", "params/{}/bias"),
        ("moving_mean", "batch_stats/{}/mean"),
        ("moving_variance", "batch_stats/{}/var"),
    ),
    "torch": (
        ("weight", "params/{}/scale"),
        ("bias", "params/{}/bias"),
        ("running_mean", "batch_stats/{}/mean"),
        ("running_var", "batch_stats/{}/var"),
    ),
}
COUNTERS = (r".*\.num_batches_tracked",)  # PyTorch's; no BatchNorm of ours needs them


def keras_layer(name: str, path: str, transform: Callable[[np.ndarray], np.ndarray] = keep) -> list[Rule]:
    """Return the rules of a Keras convolution or dense layer; ``name`` is a regex."""
    return [Rule(f"{name}/kernel", f"params/{path}/kernel", transform), Rule(f"{name}/bias", f"params/{path}/bias")]


def keras_norm(name: str, path: str) -> list[Rule]:
    """Return the rules of a Keras BatchNorm; ``name`` is a regex."""
    return [Rule(f"{name}/{leaf}", ours.format(path)) for leaf, ours in NORMS["keras"]]


def torch_conv(name: str, path: str) -> list[Rule]:
    """Return the rules of a PyTorch convolution; ``name`` is a regex."""
    return [
        Rule(rf"{name}\.weight", f"params/{path}/kernel", oihw_to_hwio),
        Rule(rf"{name}\.bias", f"params/{path}/bias"),
    ]


def torch_dense(name: str, path: str, transform: Callable[[np.ndarray], np.ndarray] = transpose) -> list[Rule]:
    """Return the rules of a PyTorch linear layer; ``name`` is a regex."""
    return [Rule(rf"{name}\.weight", f"params/{path}/kernel", transform), Rule(rf"{name}\.bias", f"params/{path}/bias")]


def torch_norm(name: str, path: str) -> list[Rule]:
    """Return the rules of a PyTorch BatchNorm; ``name`` is a regex."""
    return [Rule(rf"{name}\.{leaf}", ours.format(path)) for leaf, ours in NORMS["torch"]]


def convert(arrays: Mapping[str, np.ndarray], table: Table) -> Converted:
    """Apply a table to the arrays of a file; nothing is dropped silently and nothing is raised here."""
    compiled = [(re.compile(rule.pattern), rule) for rule in table.rules]
    names = table.names(arrays) if table.names else {}
    found = Converted({}, {}, {}, [], [], [])
    for name, array in arrays.items():
        known = names.get(name, name)
        hits = [(m, rule) for pattern, rule in compiled if (m := pattern.fullmatch(known))]
        if len(hits) > 1:
            found.clashes.append(f"{name} matches {len(hits)} rules")
        if not hits:
            dropped = any(re.fullmatch(pattern, known) for pattern in table.ignored)
            (found.ignored if dropped else found.extra).append(name)
            continue
        match, rule = hits[0]
        path = match.expand(rule.path)
        if path in found.leaves:
            found.clashes.append(f"{name} and {found.origin[path]} both fill {path}")
        found.leaves[path] = _apply(rule.transform, array)
        found.origin[path] = name
        found.transforms[path] = rule.transform.__name__
    return found


def _apply(transform: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """Transform an array; one that is not of the shape for it stays as it is, and the merge reports its shape."""
    try:
        return transform(array)
    except ValueError:
        return array


def flat(*groups: Iterable[Rule]) -> list[Rule]:
    """Return the rules of several groups as one list."""
    return [rule for group in groups for rule in group]
