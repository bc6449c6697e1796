"""What a training step takes and gives back, and the keys that are derived rather than carried."""

import functools
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.train import sharding
from tl_jax.train.task import Task
from tl_jax.transfer.optimizer import averaged_params
from tl_jax.utils import tree

STREAMS = ("init", "train", "views")  # independent uses of randomness; the order is part of every result


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes while training.

    Attributes:
        step: int32 scalar, steps taken since the start of the run (not of the phase).
        params: nested dict of float32 leaves.
        batch_stats: nested dict of BatchNorm statistics, empty for networks without them.
        opt_state: optimizer state of the current phase.
        source: {"source": what the loss needs of the weights at the start} and {"moments": what the first optimizer
            begins with}, or less; never changes, never saved.
        carry: what a task carries from step to step beside the network: the states of environments; {} for most.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    source: Any = flax.struct.field(default_factory=dict)
    carry: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables to evaluate: with the running average of the trained leaves where the optimizer keeps one."""
        return {"params": averaged_params(self.params, self.opt_state), "batch_stats": self.batch_stats}


def stream_key(seed: int, stream: str) -> jax.Array:
    """Return the key of a stream of randomness; a step's own key is ``fold_in(stream key, step)``."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))


def initial_state(task: Task, seed: int, sharded: bool = False) -> TrainState:
    """Return the state before training, without optimizer state, whole on each device or split over them."""
    return initial_states(task, seed, sharded)[0]


def initial_states(task: Task, seed: int, sharded: bool = False) -> tuple[TrainState, TrainState]:
    """Return the state before training, and the one that the first step takes.

    They are the same, unless ``config.init.start_loss`` asks for a weaker head to start from.
    """
    variables = task.init(stream_key(seed, "init"))
    initial = _make_state(variables, sharded)
    if "start_head" not in variables:
        return initial, initial
    params = {**variables["params"], "head": variables["start_head"]}
    return initial, _make_state({**variables, "params": params}, sharded)


def _make_state(variables: Any, sharded: bool) -> TrainState:
    source = {name: variables[name] for name in ("source", "moments") if name in variables}
    stats = variables.get("batch_stats", {})
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], stats, (), source, variables.get("carry", {}))
    if jax.process_count() > 1:  # each has drawn or read the same, for its own devices
        state = sharding.replicate(state)
    # A jitted copy rather than device_put alone: the step reuses the state's memory, which must be no one else's.
    return _make_copy(sharded)(state)


@functools.cache
def _make_copy(sharded: bool):
    copy = functools.partial(jax.tree.map, jnp.copy)
    if sharded:
        return jax.jit(lambda tree: sharding.constrain(copy(tree)))
    return jax.jit(copy, out_shardings=sharding.replicated())


def digest(variables: Any) -> str:
    """Return the SHA-256 over paths and bytes of all leaves: equal digests mean bit-identical parameters."""
    sha = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(variables).items()):
        sha.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
