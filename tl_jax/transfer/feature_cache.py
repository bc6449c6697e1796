"""Outputs of frozen layers are computed once and kept on disk, under a name that is a hash of what they depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tl_jax import tree
from tl_jax.data.pictures import Encoded, Rows, encoded
from tl_jax.models.backbone import FEATURES


def boundary(parts: Sequence[str], head_reads: str, mask: Any, still: frozenset[str], norms: frozenset[str]) -> str:
    """Return the endpoint up to which nothing changes in training.

    Args:
        parts: names of the network's parts from the input on.
        head_reads: what the head needs, ``Backbone.head_reads``.
        mask: tree of the parameters, true where a leaf trains.
        still, norms: paths of the BatchNorm layers that keep their statistics, and of all.

    Returns:
        "features" where all parts are frozen and the head needs no map; else the last part of those that are frozen
        from the input on, but none after the one that the head reads; "" where the first part changes.
    """
    trains = {path for path, moves in tree.flatten(mask).items() if moves} | (norms - still)
    frozen = ""
    for part in parts:
        if any(path.startswith((f"{part}/", f"adapter_{part}/")) for path in trains):
            return frozen
        frozen = part
        if part == head_reads:
            return frozen
    return FEATURES


def digest(*facts: Any) -> str:
    """Return a SHA-256 of arrays, trees of them, and whatever ``json`` can write."""
    sha = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, Encoded):
            sha.update(fact.key.encode())
        elif isinstance(fact, Rows) and encoded(fact):
            sha.update(digest(fact.array, fact.chosen).encode())
        elif hasattr(fact, "__array__"):
            array = np.ascontiguousarray(fact)
            sha.update(f"{array.dtype} {array.shape}".encode())
            sha.update(array)
        elif isinstance(fact, Mapping) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fact)):
            for path, leaf in sorted(tree.flatten(jax.device_get(fact)).items()):
                sha.update(path.encode() + digest(leaf).encode())
        else:
            sha.update(json.dumps(fact, sort_keys=True, default=str).encode())
    return sha.hexdigest()
