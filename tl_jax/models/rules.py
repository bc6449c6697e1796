"""Conversion tables: rules that map names and layouts in other libraries' files to a network's parameters.

A table belongs to a network and a source of weights; it is in the network's file, see ``registry.register_model``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

GRID = 7  # side of the input map of VGG's fc1


def keep(x: np.ndarray) -> np.ndarray:
    """Return the array unchanged."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """Dense kernels: PyTorch (out, in) -> (in, out)."""
    out, channels = x.shape[:2]
    return x.reshape(out, channels).T  # timm sometimes uses (out, in, 1, 1)


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
    """Convolution kernels: PyTorch (out, in, H, W) -> (H, W, in, out); depthwise (C, 1, H, W) -> (H, W, 1, C)."""
    return x.transpose(2, 3, 1, 0)


def hwc1_to_hw1c(x: np.ndarray) -> np.ndarray:
    """Depthwise kernels: Keras (H, W, C, 1) -> (H, W, 1, C)."""
    return x.transpose(0, 1, 3, 2)


def chw_to_hwc(x: np.ndarray) -> np.ndarray:
    """VGG's first dense kernel: PyTorch flattens the map as (C, H, W), we as (H, W, C); (out, in) -> (in, out)."""
    return x.reshape(len(x), -1, GRID, GRID).transpose(2, 3, 1, 0).reshape(-1, len(x))


def to_token(x: np.ndarray) -> np.ndarray:
    """Class tokens of transformers: (D,) -> (1, 1, D)."""
    return x.reshape(1, 1, len(x))


def to_tokens(x: np.ndarray) -> np.ndarray:
    """Positions of transformers: (L, D) -> (1, L, D)."""
    return x.reshape(1, *x.shape)


def ravel(x: np.ndarray) -> np.ndarray:
    """Factors of channels: (C,), torchvision's (C, 1, 1) or Hugging Face's (1, 1, 1, C) -> (C,), as in timm."""
    return x.reshape(-1)


# Inverse transforms: from our array to that of the file.
INVERSES: Mapping[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]] = {
    keep: keep,
    transpose: np.transpose,
    oihw_to_hwio: lambda x: x.transpose(3, 2, 0, 1),
    hwc1_to_hw1c: hwc1_to_hw1c,
    to_token: np.ravel,
    ravel: keep,
    to_tokens: lambda x: x[0],
    chw_to_hwc: lambda x: x.reshape(GRID, GRID, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
}


Shapes = Mapping[str, tuple[int, ...]]  # of our leaves, by path
NO_SHAPES: Shapes = MappingProxyType({})


class Rule(NamedTuple):
    """A regex over the full source name, its replacement, the target path, and the transform of the array."""

    pattern: str
    path: str
    transform: Callable[[np.ndarray], np.ndarray] = keep


class Split(NamedTuple):
    """An array of a file that holds several of ours, one after another along its first axis.

    Attributes:
        pattern: regex over the name in the file.
        names: replacements that give the names of the parts, which the rules use.
    """

    pattern: str
    names: tuple[str, ...]


class Table(NamedTuple):
    """All rules of one source of one family.

    Attributes:
        rules: exactly one matches each name.
        ignored: names in the file that may be dropped.
        map_names: (arrays of a file, shapes of our leaves) -> {name in the file: name in the rules}; None if they are
            equal.
        layers: for Keras' tables, see ``keras_names.make_renamer``.
        trunk_pattern: regex of names in the file that belong to the trunk, whether or not a rule matches them; empty if
            all names with the prefixes of the trunk do.
        splits: arrays that are split before the rules apply.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    map_names: Callable[[Mapping[str, np.ndarray], Shapes], Mapping[str, str]] | None = None
    layers: Sequence[Any] = ()
    trunk_pattern: str = ""
    splits: Sequence[Split] = ()


def split_arrays(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Return the arrays of a file, those split that hold several of ours; one that cannot be split stays whole."""
    parts: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        match, names = next(
            ((m, split.names) for split in table.splits if (m := re.fullmatch(split.pattern, name))), (None, ())
        )
        if match and array.ndim and len(array) % len(names) == 0:
            pieces = np.split(array, len(names))
            parts |= {match.expand(new): piece for new, piece in zip(names, pieces, strict=True)}
        else:
            parts[name] = array
    return parts


# Our own names, as in our files and as derived from the order of layers.
NATIVE_RULE = Rule(r"((?:params|batch_stats)/.*)", r"\1")

# (name in the file, our path) of the leaves of one BatchNorm, by source.
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
COUNTERS = (r".*\.num_batches_tracked",)  # PyTorch's; our BatchNorm does not use them


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


def torch_layer_norm(name: str, path: str) -> list[Rule]:
    """Return the rules of a PyTorch layer norm; ``name`` is a regex."""
    return [Rule(rf"{name}\.weight", f"params/{path}/scale"), Rule(rf"{name}\.bias", f"params/{path}/bias")]


def flatten_rules(*groups: Iterable[Rule]) -> list[Rule]:
    """Return the rules of several groups as one list."""
    return [rule for group in groups for rule in group]
