"""Adam's memory of the gradients, apart from the optimizer that it is in: what another run can go on from."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tl_jax import tree

KINDS = ("mu", "nu")  # running means of the gradients and of their squares


def of(opt_state: Any) -> dict[str, Any]:
    """Return ``{"count": steps, "mu": ..., "nu": ...}`` with the nesting of the parameters; frozen leaves have none.

    It is empty where the optimizer is not Adam.
    """
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(node)]
    if not states:
        return {}
    kept: dict[str, Any] = {"count": states[0].count}
    for kind in KINDS:
        leaves = {path: leaf for state in states for path, leaf in tree.flatten(getattr(state, kind)).items()}
        kept[kind] = tree.unflatten({p: leaf for p, leaf in leaves.items() if not isinstance(leaf, optax.MaskedNode)})
    return kept


def put_in(opt_state: Any, moments: Mapping[str, Any]) -> Any:
    """Return an optimizer state with the moments of its leaves replaced, as copies; as it is where there are none."""
    if not moments:
        return opt_state
    flat = {kind: tree.flatten(moments[kind]) for kind in KINDS}

    def replaced(node: Any) -> Any:
        if not _is_adam(node):
            return node
        new = {
            kind: tree.unflatten(
                {
                    path: leaf if isinstance(leaf, optax.MaskedNode) else jnp.copy(flat[kind][path])
                    for path, leaf in tree.flatten(getattr(node, kind)).items()
                }
            )
            for kind in KINDS
        }
        return node._replace(count=jnp.asarray(moments["count"], node.count.dtype), **new)

    return jax.tree.map(replaced, opt_state, is_leaf=_is_adam)


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
