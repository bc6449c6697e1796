"""Takes the steps of a phase: many for each call where the data fit on the device, one by one where they do not."""

from typing import Any

import jax
import numpy as np

from tl_jax import tree
from tl_jax.data.batches import Stream
from tl_jax.data.pictures import encoded
from tl_jax.data.token_batches import TextStream
from tl_jax.task import Objective
from tl_jax.train import devices, sharding
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_forward, make_init, make_train_step, make_train_steps
from tl_jax.transfer import partition
from tl_jax.transfer.optimizer import learning_rates
from tl_jax.transfer.phases import Phase

MOST_STEPS = 64  # of one call; an interruption waits for its end
MOST_BYTES = 2**30  # of training data kept on each device
MOST_SENT = 2**26  # bytes of the batches of one call where the data are not kept on the device
MOST_WORK = 1e9  # FLOPs of a step on a CPU from which on steps are taken one by one; an estimate


class Stepper:
    """The compiled steps of a phase from step ``first`` of the run on, of which nobody asks for more than ``most``.

    Attributes:
        flops: floating-point operations of a step, see ``work.flops``.
        seconds: spent on compiling.
        most: steps that one call may take.
    """

    def __init__(
        self,
        phase: Phase,
        objective: Objective,
        state: TrainState,
        stream: jax.Array,
        first: int,
        most: int = MOST_STEPS,
    ):
        self._phase, self._batch, self._stream = phase, objective.train_batch, stream
        self._rates = learning_rates(phase.rate)
        self._sharded = sharding.is_sharded(state)
        made = objective.loss, phase.optim, phase.rules, phase.batch_stats, self._sharded
        batch = devices.put(self._batch(first))
        call = (state, batch, stream, devices.everywhere(self._rates[0]))
        self._data, self._following, self._read = None, None, (-1, ())
        step = make_train_step(*made)
        self.flops = devices.flops(step, *call)
        # What is in memory is on the device as it is.
        self._near = jax.default_backend() == "cpu" and jax.process_count() == 1
        self._loop, self.most = None, self._most()
        if self.most > 1:
            self.most = min(self.most, most)  # a call gathers the data of that many, however few it takes
            if not self._near:
                stored = {"image": self._batch.images[:], "label": self._batch.labels}
                self._data = devices.everywhere(stored)
            self._loop = devices.compiled(make_train_steps(*made), state, *self._steps(first, first))
            self.seconds = self._loop.seconds
        else:
            self._one = self._each_shape(step, call, first)
            self.seconds = sum(program.seconds for program in self._one.values())

    def advance(self, state: TrainState, first: int, stop: int) -> tuple[TrainState, list[dict[str, Any]]]:
        """Take the steps ``first`` to ``stop`` of the run, at most ``most``; return the state and a row of each."""
        rates = self._rates[first - self._phase.start : stop - self._phase.start]
        if self._loop is None:
            batch = self._next(first)
            execute = self._one[_shapes(batch)].execute
            state, row = execute(state, batch, self._stream, devices.everywhere(rates[0]))
            return state, [{**row, "lr": rates[0]}]
        state, rows = self._loop.execute(state, *self._steps(first, stop))
        if stop < self._phase.stop:
            self._examples(stop)  # are read while those steps are being taken
        rows = jax.device_get(rows)
        return state, [{**jax.tree.map(lambda v, i=i: v[i], rows), "lr": rate} for i, rate in enumerate(rates)]

    def unfrozen(self, state: TrainState, whole: Objective) -> tuple[int, float]:
        """Return bytes of optimizer state and about the FLOPs of a step, had the phase frozen nothing.

        The gradients of weights and of inputs take as many each as the forward pass, the only one that is traced here.

        Args:
            state: at the start of the phase.
            whole: the objective, computed from the examples on.
        """
        shapes = jax.eval_shape(make_init(self._phase.optim, partition.RECIPES["all"]), state.params)
        return tree.nbytes(shapes), 3 * self.forward(state, whole)

    def forward(self, state: TrainState, whole: Objective) -> float:
        """Return the FLOPs of a forward pass from the examples on."""
        forward = make_forward(whole.loss, self._phase.rules, self._phase.batch_stats, self._sharded)
        return devices.flops(forward, state, self._call(whole, state), self._stream)

    def _call(self, whole: Objective, state: TrainState) -> Any:
        return devices.put(whole.train_batch(int(state.step)))

    def _each_shape(self, step: Any, call: tuple[Any, ...], first: int) -> dict[Any, devices.Program]:
        """Compile the step for each shape that batches of this phase have: those of texts differ in length."""
        steps = self._batch.distinct(first, self._phase.stop) if isinstance(self._batch, TextStream) else (first,)
        programs = {}
        for at in steps:
            batch = devices.put(self._batch(at))
            programs[_shapes(batch)] = devices.compiled(step, call[0], batch, *call[2:])
        return programs

    def _next(self, step: int) -> Any:
        """Return the batch of a step; steps are taken in order, and what must be decoded is read ahead."""
        if not isinstance(self._batch, Stream):
            return devices.put(self._batch(step))
        if self._following is None:
            self._following = self._batch.following(step, self._phase.stop, devices.share(self._batch.batch_size))
        return devices.put_share(next(self._following))

    def _steps(self, first: int, stop: int) -> tuple[Any, ...]:
        """Return the arguments of the loop: data, rows, stream key, rates, count."""
        at = np.minimum(np.arange(self.most) + first - self._phase.start, len(self._rates) - 1)
        rates_and_count = devices.everywhere((self._rates[at], np.int32(stop - first)))
        return *self._examples(first), self._stream, *rates_and_count

    def _examples(self, first: int) -> tuple[Any, ...]:
        """Return the data and the rows in them (most, B) of the steps from ``first`` on; the phase's last repeats.

        They are kept until others are asked for.
        """
        if self._read[0] != first:
            self._read = first, self._gathered(first)
        return self._read[1]

    def _gathered(self, first: int) -> tuple[Any, jax.Array]:
        last = self._phase.stop - 1
        rows = np.stack([self._batch.rows(min(step, last)) for step in range(first, first + self.most)])
        if not self._near:
            return self._data, devices.everywhere(rows.astype(np.int32))
        chosen, labels = rows.ravel(), self._batch.labels
        data = {"image": self._batch.images[chosen], "label": labels[chosen % len(labels)]}
        return devices.everywhere((data, np.arange(rows.size, dtype=np.int32).reshape(rows.shape)))

    def _most(self) -> int:
        """Return the steps that a call may take: one where a step is work enough, or the data do not fit."""
        stream, steps = self._batch, min(MOST_STEPS, self._phase.stop - self._phase.start)
        if not isinstance(stream, Stream) or encoded(stream.images):
            return 1
        row = stream.images[:1].nbytes
        if not self._near:
            return steps if len(stream.images) * row <= MOST_BYTES else 1
        return max(1, min(steps, MOST_SENT // (row * stream.batch_size))) if self.flops < MOST_WORK else 1


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))
