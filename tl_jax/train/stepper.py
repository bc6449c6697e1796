"""Takes the steps of a phase: many for each call where the data fit on the device, one by one where they do not."""

from typing import Any

import jax
import numpy as np

from tl_jax.data.batches import Stream
from tl_jax.task import Objective
from tl_jax.train import devices
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_train_step, make_train_steps
from tl_jax.transfer.optimizer import learning_rates
from tl_jax.transfer.phases import Phase

MOST_STEPS = 64  # of one call; an interruption waits for its end
MOST_BYTES = 2**30  # of training data kept on each device
MOST_WORK = 1e9  # FLOPs of a step on a CPU from which on steps are taken one by one; an estimate


class Stepper:
    """The compiled steps of a phase from step ``first`` of the run on.

    Attributes:
        flops: floating-point operations of a step, as XLA counts them before it optimises.
        seconds: spent on compiling.
        most: steps that one call may take.
    """

    def __init__(self, phase: Phase, objective: Objective, state: TrainState, stream: jax.Array, first: int):
        self._phase, self._batch, self._stream = phase, objective.train_batch, stream
        self._rates = learning_rates(phase.rate)
        made = objective.loss, phase.optim, phase.rules, phase.batch_stats
        batch = devices.put(self._batch(first))
        call = (state, batch, stream, devices.scalar(self._rates[0]))
        self.most, self._data = 1, None
        step = make_train_step(*made)
        self.flops = devices.flops(step, *call)
        if self._fits() and (jax.default_backend() != "cpu" or self.flops < MOST_WORK):
            stored = {"image": self._batch.images[:], "label": self._batch.labels}
            self._data = jax.device_put(stored, devices.replicated())
            self.most = min(MOST_STEPS, phase.stop - phase.start)
            self._loop = devices.compiled(make_train_steps(*made), state, *self._steps(first, first))
            self.seconds = self._loop.seconds
        else:
            self._one = devices.compiled(step, *call)
            self.seconds = self._one.seconds

    def advance(self, state: TrainState, first: int, stop: int) -> tuple[TrainState, list[dict[str, Any]]]:
        """Take the steps ``first`` to ``stop`` of the run, at most ``most``; return the state and a row of each."""
        rates = self._rates[first - self._phase.start : stop - self._phase.start]
        if self._data is None:
            batch = devices.put(self._batch(first))
            state, row = self._one.execute(state, batch, self._stream, devices.scalar(rates[0]))
            return state, [{**row, "lr": rates[0]}]
        state, rows = self._loop.execute(state, *self._steps(first, stop))
        rows = jax.device_get(rows)
        return state, [{**jax.tree.map(lambda v, i=i: v[i], rows), "lr": rate} for i, rate in enumerate(rates)]

    def _steps(self, first: int, stop: int) -> tuple[Any, ...]:
        """Return the arguments of the loop: data, rows, stream key, rates, count."""
        count = stop - first
        rows = [self._batch.rows(min(step, max(first, stop - 1))) for step in range(first, first + self.most)]
        at = np.minimum(np.arange(self.most) + first - self._phase.start, len(self._rates) - 1)
        sent = (np.stack(rows).astype(np.int32), self._rates[at], np.int32(count))
        rows, rates, count = jax.device_put(sent, devices.replicated())
        return self._data, rows, self._stream, rates, count

    def _fits(self) -> bool:
        """Whether batches are rows of arrays that are small enough."""
        stream = self._batch
        return isinstance(stream, Stream) and len(stream.images) * stream.images[:1].nbytes <= MOST_BYTES
