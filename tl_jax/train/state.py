"""Training state, and random keys derived from the seed and step."""

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

STREAMS = ("init", "train", "views")  # independent random streams; reordering them would change every result


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training.

    Attributes:
        step: int32 scalar, steps since the start of the run (not of the phase).
        params: nested dict of float32 leaves.
        batch_stats: nested dict of BatchNorm statistics, empty for networks without them.
        opt_state: optimizer state of the current phase.
        source: constant data that is not saved, both optional: "source" (data derived from the initial weights, for the
            loss) and "moments" (initial moments of the first optimizer).
        carry: task state passed from step to step, such as environment states; {} for most tasks.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    source: Any = flax.struct.field(default_factory=dict)
    carry: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for ``model.apply``."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """Variables to evaluate: with the moving average of the trained leaves, if the optimizer keeps one."""
        return {"params": averaged_params(self.params, self.opt_state), "batch_stats": self.batch_stats}


def stream_key(seed: int, stream: str) -> jax.Array:
    """Return the key of a random stream; a step uses ``fold_in(stream key, step)``."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))


def initial_state(task: Task, seed: int, sharded: bool = False) -> TrainState:
    """Return the state before training, without optimizer state; replicated, or sharded over the devices."""
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
    if jax.process_count() > 1:  # each process has the same values, for its own devices
        state = sharding.replicate(state)
    # A jitted copy rather than device_put: the step donates the state's buffers, which must not be shared.
    return _make_copy(sharded)(state)


@functools.cache
def _make_copy(sharded: bool):
    copy = functools.partial(jax.tree.map, jnp.copy)
    if sharded:
        return jax.jit(lambda tree: sharding.constrain(copy(tree)))
    return jax.jit(copy, out_shardings=sharding.replicated())


def digest(variables: Any) -> str:
    """Return the SHA-256 over the paths and bytes of all leaves; equal digests mean bit-identical parameters."""
    sha = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(variables).items()):
        sha.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
