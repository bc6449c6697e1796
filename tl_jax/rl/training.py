"""Training as a function of a key: what ``vmap`` repeats for many seeds, and what the training loop takes apart."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tl_jax.models.policy import Policy, variables_of
from tl_jax.rl import normalizer, rollout
from tl_jax.rl.worlds import World
from tl_jax.train.state import TrainState
from tl_jax.transfer import moments


def network(world: World, **options: Any) -> Policy:
    """Return a policy for the actions of a world; ``options`` are further attributes of ``Policy``."""
    return Policy(world.actions or len(world.low), not world.actions, **options)


def initial(world: World, policy: Policy, count: int, normalize: bool, key: jax.Array) -> dict[str, Any]:
    """Return new variables: ``params``, and in ``batch_stats`` the ``worlds`` and where asked for ``observations``."""
    return _initializer(world, policy, count, normalize)(key)


@functools.cache
def _initializer(world: World, policy: Policy, count: int, normalize: bool):
    """Return the jitted function key -> variables: op by op it would take seconds."""

    def variables(key: jax.Array) -> dict[str, Any]:
        drawn, begun = jax.random.split(key)
        stats: dict[str, Any] = {"worlds": rollout.begin(world, count, begun)}
        if normalize:
            stats["observations"] = normalizer.init(world.shape)
        return {**variables_of(policy, world.shape, drawn), "batch_stats": stats}

    return jax.jit(variables)


def begin(variables: Any, optimizer_init: Any, source: Any = None) -> TrainState:
    """Return the state before the first update."""
    kept = {"source": source} if source is not None else {}
    params = variables["params"]
    opt_state = moments.put_in(optimizer_init(params), variables.get("moments", {}))
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], opt_state, kept)
