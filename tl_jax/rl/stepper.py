"""Takes the updates of a phase for the training loop: many in a call, whose number is an argument."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import tree
from tl_jax.models.policy import Policy
from tl_jax.rl.ppo import How, make_update
from tl_jax.rl.worlds import World
from tl_jax.task import Objective
from tl_jax.train import devices
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_init
from tl_jax.transfer import partition
from tl_jax.transfer.optimizer import OptimSpec, learning_rates
from tl_jax.transfer.partition import Rules
from tl_jax.transfer.phases import Phase

MOST_UPDATES = 20  # of one call; an interruption waits for its end


class PolicyStepper:
    """The compiled updates of a phase; attributes and calls as of ``train.stepper.Stepper``."""

    flops = float("nan")  # XLA counts the body of a loop once, however often it runs

    def __init__(
        self,
        world: World,
        policy: Policy,
        how: How,
        phase: Phase,
        objective: Objective,
        state: TrainState,
        stream: jax.Array,
        first: int,
        most: int = MOST_UPDATES,
    ):
        self.most = min(MOST_UPDATES, most)
        self._phase, self._stream, self._rates = phase, stream, learning_rates(phase.rate)
        still = keeps_statistics(state.params, phase)
        updates = _make_updates(world, policy, how, phase.optim, phase.rules, still)
        program = devices.compiled(updates, state, stream, *self._some(first, first))
        self._execute, self.seconds = program.execute, program.seconds

    def advance(self, state: TrainState, first: int, stop: int) -> tuple[TrainState, list[dict[str, Any]]]:
        """Make the updates ``first`` to ``stop`` of the run, at most ``most``; return the state and a row of each."""
        rates = self._rates[first - self._phase.start : stop - self._phase.start]
        state, rows = self._execute(state, self._stream, *self._some(first, stop))
        rows = jax.device_get(rows)
        return state, [{**jax.tree.map(lambda v, i=i: v[i], rows), "lr": rate} for i, rate in enumerate(rates)]

    def unfrozen(self, state: TrainState, whole: Objective) -> tuple[int, float]:
        """Return the bytes of optimizer state, had the phase frozen nothing; FLOPs are not known."""
        init = make_init(self._phase.optim, partition.RECIPES["all"])
        return tree.nbytes(jax.eval_shape(init, state.params)), self.flops

    def forward(self, state: TrainState, whole: Objective) -> float:
        """Return what is known of the FLOPs of acting: nothing."""
        return self.flops

    def _some(self, first: int, stop: int) -> tuple[jax.Array, jax.Array]:
        """Return the learning rates of a call, and how many of them count."""
        at = np.minimum(np.arange(self.most) + first - self._phase.start, len(self._rates) - 1)
        return devices.everywhere((self._rates[at], np.int32(stop - first)))


def keeps_statistics(params: Any, phase: Phase) -> bool:
    """Whether the statistics of observations stay as they are: where the first layers do, or where it is asked for.

    Layers that are frozen would see other inputs than those that they were trained on.
    """
    moves = tree.flatten(partition.trainable(params, phase.rules))
    first = next(name for name in ("conv1", "layer1", "head") if any(path.startswith(f"{name}/") for path in moves))
    frozen = not any(trains for path, trains in moves.items() if path.startswith(f"{first}/"))
    return {"auto": frozen, "frozen": True, "train": False}[phase.batch_stats]


@functools.cache
def _make_updates(world: World, policy: Policy, how: How, optim: OptimSpec, rules: Rules, still: bool):
    """Return the jitted loop (state, stream key, learning rates (S,), count) -> (state, rows of S updates)."""
    update = make_update(world, policy, how, optim, rules, still)

    def updates(state: TrainState, stream: jax.Array, rates: jax.Array, count: jax.Array):
        def body(i, carry):
            state, out = carry
            state, row = update(state, stream, rates[i])
            return state, jax.tree.map(lambda values, value: values.at[i].set(value), out, row)

        one = jax.eval_shape(lambda: update(state, stream, rates[0])[1])
        zeros = jax.tree.map(lambda value: jnp.zeros((len(rates), *value.shape), value.dtype), one)
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    whole = devices.replicated()
    return jax.jit(updates, donate_argnums=0, in_shardings=(whole,) * 4, out_shardings=whole)
