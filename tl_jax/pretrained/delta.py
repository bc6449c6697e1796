"""Deltas: the changes of a training run, as a small file on top of published weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tl_jax.models.registry import PretrainedSpec
from tl_jax.pretrained import formats
from tl_jax.transfer import adapters
from tl_jax.transfer.adapters import KINDS, AdapterConfig
from tl_jax.transfer.freeze import ADAPTERS, HEAD
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import STRING, check_fields, choice, integer, number

DELTA_FILE = "delta.safetensors"
# Statistics are small and belong together; heads and adapters are initialized by the run.
ALWAYS_SAVED = rf"batch_stats/.*|params/({HEAD[0]}|{ADAPTERS})"
_ADAPTERS = {"kind": choice(*KINDS), "rank": integer(0, 100_000), "alpha": number(0, 1e6), "targets": STRING}
_EXPORT_AGAIN = "export the run again"


def changed_leaves(start: tree.Tree, end: tree.Tree) -> dict[str, Any]:
    """Return the leaves of ``end`` for a delta, by path: all but those bit-identical to ``start``.

    Statistics, heads and adapters are always included, since the published weights lack those of the run.
    """
    published = tree.flatten(start)

    def is_unchanged(path: str, leaf: Any) -> bool:
        is_published = path in published and not re.fullmatch(ALWAYS_SAVED, path)
        return is_published and np.asarray(published[path]).tobytes() == np.asarray(leaf).tobytes()

    return {path: leaf for path, leaf in tree.flatten(end).items() if not is_unchanged(path, leaf)}


def save_delta(
    path: Path,
    leaves: Mapping[str, Any],
    spec: PretrainedSpec,
    adapter_config: AdapterConfig,
    base: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write a delta.

    Args:
        path: output file.
        leaves: from ``changed_leaves``.
        spec: spec of the resulting network.
        adapter_config: config of the adapters among the leaves.
        base: ``source`` and ``sha256`` of the base weights.
        facts: further facts to store.
    """
    about = {**facts, "base": dict(base), "adapters": adapter_config.to_dict()}
    formats.save_native(path, tree.unflatten(leaves), spec, about)


def read_delta(path: Path) -> tuple[PretrainedSpec, Mapping[str, Any], dict[str, np.ndarray]]:
    """Return the spec, facts and leaves of a delta.

    Raises:
        UserError: The file is missing, or holds full weights.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; export a run, which writes export/delta.safetensors into its folder")
    spec, facts = formats.read_spec(path)
    if not facts.get("base"):
        raise UserError(f"{path}: holds full weights, not a delta; load it with source='tl_jax' and path=FILE instead")
    adapter_config = facts.get("adapters") or {}
    check_fields(adapter_config, f"{path}: adapters", _ADAPTERS, _EXPORT_AGAIN)
    if "sha256" not in facts["base"] or not set(adapter_config) <= set(_ADAPTERS):
        raise UserError(f"{path}: the facts name no base weights; {_EXPORT_AGAIN}")
    return spec, facts, formats.read_native(path)


def _adapters(facts: Mapping[str, Any]) -> AdapterConfig:
    """Return the adapters described by the facts of a delta; null fields get their defaults."""
    known = facts.get("adapters") or {}
    return AdapterConfig.from_dict({name: value for name, value in known.items() if value is not None})


def apply_delta(
    variables: tree.Tree, leaves: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return the network's variables with the delta applied and its adapters merged into the kernels.

    Raises:
        UserError: The leaves do not fit the network.
    """
    flat = dict(tree.flatten(variables))
    if unknown := [p for p in leaves if p not in flat and not re.fullmatch(adapters.LOW_RANK, p)]:
        raise UserError(f"{path}: {unknown[0]} is not in the base weights; use the network that the delta belongs to")
    mismatched = [p for p, leaf in leaves.items() if p in flat and flat[p].shape != leaf.shape]
    if mismatched:
        raise UserError(
            f"{path}: the shape of {mismatched[0]} differs from the base weights; use the delta's own network"
        )
    if non_finite := [p for p, leaf in leaves.items() if not np.isfinite(leaf.astype(np.float32)).all()]:
        raise UserError(f"{path}: {non_finite[0]} has values that are not finite; {_EXPORT_AGAIN}")
    flat |= {p: jnp.asarray(leaf) for p, leaf in leaves.items()}
    merged = tree.unflatten(flat)
    return {**merged, "params": adapters.merge(merged["params"], _adapters(facts))}
