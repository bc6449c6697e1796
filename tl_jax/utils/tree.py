"""Leaves of a parameter tree by path, ``stage1/block1/conv1/kernel``, for freeze rules and conversion tables."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tl_jax.utils.errors import UserError

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Return the leaves of a nested dict as ``{"a/b/c": leaf}``, in the order of the tree."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict of ``{"a/b/c": leaf}``, the inverse of ``flatten``."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def label_leaves(tree: Tree, rules: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Label each leaf with the label of the first rule whose regex matches its whole path.

    Args:
        tree: nested dict of arrays.
        rules: pairs (regex, label), tried in order; the regex must match the whole path.

    Returns:
        The same nesting with a label at every leaf.

    Raises:
        UserError: no rule matches some leaves; it lists them.
    """
    labels = {p: next((label for regex, label in rules if re.fullmatch(regex, p)), None) for p in flatten(tree)}
    unmatched = [path for path, label in labels.items() if label is None]
    if unmatched:
        raise UserError(f"no freeze rule matches {', '.join(unmatched)}; add a rule, such as ('.*', LABEL) at the end")
    return unflatten(labels)


def count(tree: Any) -> int:
    """Return the number of values in all leaves (arrays or shape structs)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Return the number of bytes in all leaves (arrays or shape structs)."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
