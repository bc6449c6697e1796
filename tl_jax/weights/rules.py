"""Conversion tables: which array of a published file goes to which leaf of our tree, and how it is turned."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


def keep(x: np.ndarray) -> np.ndarray:
    """Return the array as it is."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """Dense kernels: PyTorch (out, in) -> (in, out)."""
    return x.T


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
    """Convolution kernels: PyTorch (out, in, H, W) -> (H, W, in, out)."""
    return x.transpose(2, 3, 1, 0)


class Rule(NamedTuple):
    """A regex over the whole source name, the target path it expands to, and what is done to the array."""

    pattern: str
    path: str
    transform: Callable[[np.ndarray], np.ndarray] = keep


class Table(NamedTuple):
    """All rules of one source of one family, and the source names that may be dropped."""

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()


class Converted(NamedTuple):
    """What a table made of a file.

    Attributes:
        leaves: target path -> array.
        origin: target path -> name in the file.
        extra: names in the file that no rule and no ``ignored`` pattern matches.
        clashes: descriptions of names that match several rules, or fall on a leaf already filled.
    """

    leaves: Mapping[str, np.ndarray]
    origin: Mapping[str, str]
    extra: Sequence[str]
    clashes: Sequence[str]


def convert(arrays: Mapping[str, np.ndarray], table: Table) -> Converted:
    """Apply a table to the arrays of a file; nothing is dropped silently and nothing is raised here."""
    leaves: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    extra, clashes = [], []
    for name, array in arrays.items():
        hits = [(m, rule) for rule in table.rules if (m := re.fullmatch(rule.pattern, name))]
        if len(hits) > 1:
            clashes.append(f"{name} matches {len(hits)} rules")
        if not hits:
            if not any(re.fullmatch(pattern, name) for pattern in table.ignored):
                extra.append(name)
            continue
        match, rule = hits[0]
        path = match.expand(rule.path)
        if path in leaves:
            clashes.append(f"{name} and {origin[path]} both fill {path}")
        # A transposition of an array of the wrong rank would raise here; the merge reports its shape instead.
        rank = {oihw_to_hwio: 4, transpose: 2}.get(rule.transform, array.ndim)
        leaves[path] = rule.transform(array) if array.ndim == rank else array
        origin[path] = name
    return Converted(leaves, origin, extra, clashes)
