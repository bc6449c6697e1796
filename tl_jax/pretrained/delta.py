"""What training changed, as a small file on top of published weights: heads, adapters, statistics, moved leaves."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tl_jax.pretrained import formats
from tl_jax.pretrained.catalog import PretrainedSpec
from tl_jax.transfer import adapters
from tl_jax.transfer.adapters import KINDS, Adapters
from tl_jax.transfer.freeze import ADAPTERS, HEAD
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import TEXT, check_fields, choice, integer, number

# Statistics are small and go together; heads and adapters are drawn from the run's own seed.
NEVER_PUBLISHED = rf"batch_stats/.*|params/({HEAD[0]}|{ADAPTERS})"
_ADAPTERS = {"kind": choice(*KINDS), "rank": integer(0, 100_000), "alpha": number(0, 1e6), "targets": TEXT}
_AGAIN = "export the run again"


def changed(start: tree.Tree, end: tree.Tree) -> dict[str, Any]:
    """Return the leaves of ``end`` that a delta must hold, by path: all but those with the bits of ``start``.

    Statistics, heads and adapters are always among them: the published weights do not have them as the run does.
    """
    before = tree.flatten(start)

    def same(path: str, leaf: Any) -> bool:
        published = path in before and not re.fullmatch(NEVER_PUBLISHED, path)
        return published and np.asarray(before[path]).tobytes() == np.asarray(leaf).tobytes()

    return {path: leaf for path, leaf in tree.flatten(end).items() if not same(path, leaf)}


def save(
    path: Path,
    leaves: Mapping[str, Any],
    spec: PretrainedSpec,
    how: Adapters,
    base: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write a delta.

    Args:
        path: file to write.
        leaves: as ``changed`` returns them.
        spec: of the network that comes out.
        how: the adapters among the leaves.
        base: ``source`` and ``sha256`` of the weights that it goes on top of.
        facts: anything worth keeping.
    """
    about = {**facts, "base": dict(base), "adapters": how._asdict()}
    formats.save(path, tree.unflatten(leaves), spec, about)


def read(path: Path) -> tuple[PretrainedSpec, Mapping[str, Any], dict[str, np.ndarray]]:
    """Return the spec, the facts and the leaves of a delta.

    Raises:
        UserError: no such file, or a file of whole weights.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; --mode=export writes export/delta.safetensors into the folder of a run")
    spec, facts = formats.read_spec(path)
    if not facts.get("base"):
        raise UserError(f"{path} holds whole weights; load it with source='tl_jax' and path=FILE instead")
    how = facts.get("adapters") or {}
    check_fields(how, f"{path}: adapters", _ADAPTERS, _AGAIN)
    if "sha256" not in facts["base"] or not set(how) <= set(_ADAPTERS):
        raise UserError(f"{path}: its facts do not say what it goes on top of; {_AGAIN}")
    return spec, facts, formats.read_native(path)


def apply(variables: tree.Tree, leaves: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the variables of the network with the delta in place and its adapters merged into plain kernels.

    Raises:
        UserError: leaves that do not fit the network.
    """
    flat = dict(tree.flatten(variables))
    if strange := [p for p in leaves if p not in flat and not re.fullmatch(adapters.LOW_RANK, p)]:
        raise UserError(f"{path}: {strange[0]} is no part of these weights; it belongs to another network")
    wrong = [p for p, leaf in leaves.items() if p in flat and flat[p].shape != leaf.shape]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} has another shape than in these weights; it belongs to another network")
    if infinite := [p for p, leaf in leaves.items() if not np.isfinite(leaf.astype(np.float32)).all()]:
        raise UserError(f"{path}: {infinite[0]} holds values that are not finite; {_AGAIN}")
    flat |= {p: jnp.asarray(leaf) for p, leaf in leaves.items()}
    whole = tree.unflatten(flat)
    return {**whole, "params": adapters.merge(whole["params"], Adapters(**(facts.get("adapters") or {})))}
