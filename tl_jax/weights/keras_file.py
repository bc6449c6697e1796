"""Write a network of ours as the ``.weights.h5`` that ``load_weights`` of Keras 3 reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tl_jax import disk
from tl_jax.weights.inverse import named
from tl_jax.weights.rules import Table

_CLASSES = {"conv": "conv2d", "depthwise": "depthwise_conv2d", "norm": "batch_normalization", "dense": "dense"}


def save(path: Path, variables: Mapping[str, Any], table: Table) -> None:
    """Write ``layers/CLASS_NUMBER/vars/NUMBER``: layers are counted by class, in the order of ``model.layers``.

    The name of each layer stands beside it, where Keras names it at all.

    Args:
        path: file to write, ending in ``.weights.h5``; it is put in place whole or not at all.
        variables: ``{"params": ..., "batch_stats": ...}``.
        table: of the source "keras".
    """
    leaves: dict[str, list] = {}
    for entry in named(variables, table):
        leaves.setdefault(entry.path.split("/", 1)[1].rpartition("/")[0], []).append(entry)
    counts = dict.fromkeys(_CLASSES, 0)
    with disk.replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            for layer in table.layers:
                if layer.path not in leaves:
                    continue
                number, kind = counts[layer.kind], _CLASSES[layer.kind]
                counts[layer.kind] += 1
                group = file.create_group(f"layers/{kind}_{number}" if number else f"layers/{kind}")
                entries = leaves.pop(layer.path)
                if not entries[0].name.startswith("params/"):
                    group.attrs["name"] = entries[0].name.rpartition("/")[0]
                for i, array in enumerate(_numbered({e.path.rpartition("/")[2]: e.array for e in entries})):
                    group[f"vars/{i}"] = array
            if leaves:
                raise ValueError(f"Keras has no layers {', '.join(sorted(leaves))}")


def _numbered(leaves: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the arrays of a layer in Keras' order: a kernel before its bias, a norm's scale before it."""
    order = ("scale", "bias", "mean", "var") if "mean" in leaves else ("kernel", "bias")
    return [leaves[name] for name in order if name in leaves]
