"""Training and evaluation steps: pure, jitted with shardings, and cached by their options.

``Stepper`` runs the steps of a phase: many per call if the data fit on the device, else one by one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tl_jax.data.dataset import is_encoded
from tl_jax.data.loader import Stream
from tl_jax.data.tokenize import TextStream
from tl_jax.train import sharding
from tl_jax.train.sharding import AXIS, batch_sharding, mesh, replicated
from tl_jax.train.state import TrainState
from tl_jax.train.task import Objective
from tl_jax.transfer import freeze
from tl_jax.transfer.freeze import Rules
from tl_jax.transfer.optimizer import OptimSpec, learning_rates, make_optimizer
from tl_jax.transfer.phases import Phase
from tl_jax.transfer.regularizers import sam_point
from tl_jax.utils import tree


@functools.cache
def make_optimizer_init(optim: OptimSpec, rules: Rules, sharded: bool = False):
    """Return the jitted function params -> optimizer state of a phase."""
    init = make_optimizer(optim, rules).init
    if sharded:
        return jax.jit(lambda params: sharding.constrain(init(params)))
    return jax.jit(init, out_shardings=replicated())


@functools.cache
def make_train_step(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the jitted step (state, batch, stream key, learning rate) -> (state, row).

    Args:
        loss: loss of the phase's objective.
        optim: optimizer settings of the phase.
        rules: freeze rules of the phase.
        batch_stats: mode of ``freeze.frozen_batch_norms``.
        sharded: whether the state is sharded over the devices.

    The row holds the task's sums and the norms of the trained leaves' gradients and new values. The input state is
    donated. The learning rate is an argument, so runs that differ only in it share the compiled step.
    """
    step, on_all = make_step(loss, optim, rules, batch_stats, sharded), replicated()
    return _jit_step(step, sharded, batch_sharding(), on_all, on_all)


@functools.cache
def make_train_steps(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the jitted loop (state, data, rows (S, B), stream key, learning rates (S,), count) -> (state, rows).

    It runs the first ``count`` of S steps, whose batches are rows of ``data``: "inputs" (V * N, ...), "label" (N,).
    The count is an argument, so one program serves any number of steps with bit-identical results.
    """
    step = make_step(loss, optim, rules, batch_stats, sharded)

    def steps(state: TrainState, data: Any, rows: jax.Array, stream: jax.Array, rates: jax.Array, count: jax.Array):
        def make_batch(i):
            row = jax.lax.with_sharding_constraint(rows[i], batch_sharding())
            labels = data["label"][row % len(data["label"])]
            return {"inputs": data["inputs"][row], "label": labels, "mask": jnp.ones(len(row))}

        def body(i, carry):
            state, out = carry
            state, row = step(state, make_batch(i), stream, rates[i])
            return state, jax.tree.map(lambda values, value: values.at[i].set(value), out, row)

        row_shapes = jax.eval_shape(lambda: step(state, make_batch(0), stream, rates[0])[1])
        zeros = jax.tree.map(lambda value: jnp.zeros((len(rows), *value.shape), value.dtype), row_shapes)
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    return _jit_step(steps, sharded, *[replicated()] * 5)


def _jit_step(step: Any, sharded: bool, *arg_shardings: NamedSharding):
    """Jit a function (state, others ...) -> (state, ...) that donates the state.

    A sharded input state carries its sharding; ``make_step`` shards the output state.
    """
    state = None if sharded else replicated()
    return jax.jit(step, donate_argnums=0, in_shardings=(state, *arg_shardings), out_shardings=state)


def make_step(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the step of ``make_train_step`` without jit; it takes further optimizer arguments by name."""
    optimizer = make_optimizer(optim, rules)

    def step(state: TrainState, batch: Any, stream: jax.Array, rate: jax.Array, **extra_args: jax.Array):
        mask = freeze.trainable(state.params, rules)
        frozen_norms = freeze.frozen_batch_norms(mask, state.batch_stats, batch_stats)
        key = jax.random.fold_in(stream, state.step)

        source = sharding.gather(state.source) if sharded else state.source

        def loss_fn(params, stats, batch, key):
            params = sharding.gather(params) if sharded else params
            variables = {"params": freeze.stop_frozen(params, mask), "batch_stats": stats}
            with freeze.use_running_statistics(frozen_norms, optim.batch_norm_momentum):
                return loss({**variables, **source}, batch, key)

        gradient = functools.partial(_batch_gradient, loss_fn, optim.accumulate, batch, key, state.batch_stats)
        grads, (new_stats, sums) = gradient(state.params)
        if optim.sam:  # metrics and statistics come from the first pass
            grads, _ = gradient(sam_point(state.params, grads, optim.sam, mask))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, rate=rate, **extra_args)
        # Frozen leaves are passed on: adding zero would turn -0.0 into 0.0.
        params = jax.tree.map(lambda p, u, trains: p + u if trains else p, state.params, updates, mask)
        row = {
            "sums": sums,
            "grad_norm": optax.tree.norm(freeze.trained_leaves(grads, mask)),
            "param_norm": optax.tree.norm(freeze.trained_leaves(params, mask)),
        }
        new = TrainState(state.step + 1, params, new_stats, opt_state, state.source, state.carry)
        return sharding.constrain(new) if sharded else new, row

    return step


def _batch_gradient(
    loss_fn: Any, num_chunks: int, batch: Any, key: jax.Array, stats: Any, params: Any
) -> tuple[Any, Any]:
    """Return the gradient and (statistics, sums) of a batch, accumulated over chunks to save memory.

    It is the gradient of the mean over the whole batch: ``sums["loss"]`` is divided by the count of the whole batch,
    since chunks may hold different numbers of labelled words or objects. Other terms, such as penalties, are averaged
    over the chunks. BatchNorm, random draws and example pairs see one chunk at a time.
    """
    if num_chunks == 1:
        return jax.grad(loss_fn, has_aux=True)(params, stats, batch, key)

    def split_leaf(leaf):  # strided rows, so each device has the rows of all chunks
        rows = leaf.reshape(len(leaf) // num_chunks, num_chunks, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh(), PartitionSpec(None, AXIS)))

    def count(index_and_chunk):  # independent of the weights, so the compiler drops the network
        i, chunk = index_and_chunk
        return loss_fn(params, stats, chunk, jax.random.fold_in(key, i))[1][1]["loss"][1]

    rows, indices = jax.tree.map(split_leaf, batch), jnp.arange(num_chunks)
    total = jnp.maximum(jax.lax.map(count, (indices, rows)).sum(), 1.0)

    def chunk_loss(params, stats, i, chunk):
        value, (stats, sums) = loss_fn(params, stats, chunk, jax.random.fold_in(key, i))
        loss, count = sums["loss"]
        return loss / total + (value - loss / jnp.maximum(count, 1.0)) / num_chunks, (stats, sums)

    def chunk_gradient(stats, i, chunk):
        grads, (stats, sums) = jax.grad(chunk_loss, has_aux=True)(params, stats, i, chunk)
        return grads, stats, sums

    def body(carry, index_and_chunk):
        grads, stats, sums = chunk_gradient(carry[1], *index_and_chunk)
        return (jax.tree.map(jnp.add, carry[0], grads), stats, jax.tree.map(jnp.add, carry[2], sums)), None

    first = chunk_gradient(stats, indices[0], jax.tree.map(lambda leaf: leaf[0], rows))
    first = jax.tree.map(jnp.asarray, first)
    other_chunks = jax.tree.map(lambda leaf: leaf[1:], (indices, rows))
    (grads, stats, sums), _ = jax.lax.scan(body, first, other_chunks)
    return grads, (stats, sums)


@functools.cache
def make_forward(loss: Any, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the jitted function (state, batch, stream key) -> loss: the forward pass, which freezing cannot save."""

    def forward(state: TrainState, batch: Any, stream: jax.Array):
        frozen_norms = freeze.frozen_batch_norms(freeze.trainable(state.params, rules), state.batch_stats, batch_stats)
        with freeze.use_running_statistics(frozen_norms):
            return loss({**state.variables, **state.source}, batch, jax.random.fold_in(stream, state.step))[0]

    on_all = replicated()
    return jax.jit(forward, in_shardings=(None if sharded else on_all, batch_sharding(), on_all), out_shardings=on_all)


@functools.cache
def make_eval_step(metrics: Any, sharded: bool = False):
    """Return the jitted function (variables, batch) -> sums from ``Task.metrics``."""
    shardings = {"in_shardings": (None if sharded else replicated(), batch_sharding()), "out_shardings": replicated()}
    return jax.jit((lambda v, batch: metrics(sharding.gather(v), batch)) if sharded else metrics, **shardings)


MAX_STEPS = 64  # per call; an interruption waits for the end of a call
MAX_DATA_BYTES = 2**30  # of training data kept on each device
MAX_SENT_BYTES = 2**26  # bytes of the batches of one call if the data are not kept on the device
MAX_LOOP_FLOPS = 1e9  # FLOPs of a step on a CPU from which steps run one by one; an estimate


class Stepper:
    """Compiled training steps of one phase, starting at global step ``first``; at most ``max_steps`` per call.

    Attributes:
        flops: FLOPs of a step, see ``flops.count_flops``.
        seconds: compilation time.
        max_steps: maximum number of steps per call.
    """

    def __init__(
        self,
        phase: Phase,
        objective: Objective,
        state: TrainState,
        stream: jax.Array,
        first: int,
        max_steps: int = MAX_STEPS,
    ):
        self._phase, self._batch, self._stream = phase, objective.train_batch, stream
        self._rates = learning_rates(phase.rate)
        self._sharded = sharding.is_sharded(state)
        step_options = objective.loss, phase.optim, phase.rules, phase.batch_stats, self._sharded
        batch = sharding.shard_batch(self._batch(first))
        step_args = (state, batch, stream, sharding.replicate(self._rates[0]))
        self._data, self._prefetched, self._example_cache = None, None, (-1, ())
        step = make_train_step(*step_options)
        self.flops = sharding.count_flops(step, *step_args)
        # Data in host memory are already on a CPU device.
        self._is_local_cpu = jax.default_backend() == "cpu" and jax.process_count() == 1
        self._loop, self.max_steps = None, self._steps_per_call()
        if self.max_steps > 1:
            # A call gathers the data of max_steps steps, even if it runs fewer.
            self.max_steps = min(self.max_steps, max_steps)
            if not self._is_local_cpu:
                stored = {"inputs": self._batch.inputs[:], "label": self._batch.labels}
                self._data = sharding.replicate(stored)
            self._loop = sharding.compile_cached(make_train_steps(*step_options), state, *self._loop_args(first, first))
            self.seconds = self._loop.seconds
        else:
            self._programs = self._compile_shapes(step, step_args, first)
            self.seconds = sum(program.seconds for program in self._programs.values())

    def advance(self, state: TrainState, first: int, stop: int) -> tuple[TrainState, list[dict[str, Any]]]:
        """Run steps ``first`` to ``stop``, at most ``max_steps``; return the state and a row for each."""
        rates = self._rates[first - self._phase.start : stop - self._phase.start]
        if self._loop is None:
            batch = self._next_batch(first)
            execute = self._programs[_shapes(batch)].execute
            state, row = execute(state, batch, self._stream, sharding.replicate(rates[0]))
            return state, [{**row, "lr": rates[0]}]
        state, rows = self._loop.execute(state, *self._loop_args(first, stop))
        if stop < self._phase.stop:
            self._examples(stop)  # prefetched while the steps run
        rows = jax.device_get(rows)
        return state, [{**jax.tree.map(lambda v, i=i: v[i], rows), "lr": rate} for i, rate in enumerate(rates)]

    def unfrozen_cost(self, state: TrainState, full_objective: Objective) -> tuple[int, float]:
        """Return the optimizer state's bytes and the approximate FLOPs of a step if nothing were frozen.

        The gradients of weights and of inputs cost as much each as the forward pass, which alone is traced here.

        Args:
            state: initial state of the phase.
            full_objective: the objective, computed from the examples.
        """
        shapes = jax.eval_shape(make_optimizer_init(self._phase.optim, freeze.RECIPES["all"]), state.params)
        return tree.nbytes(shapes), 3 * self.forward_flops(state, full_objective)

    def forward_flops(self, state: TrainState, full_objective: Objective) -> float:
        """Return the FLOPs of a forward pass from the examples."""
        forward = make_forward(full_objective.loss, self._phase.rules, self._phase.batch_stats, self._sharded)
        return sharding.count_flops(forward, state, self._full_batch(full_objective, state), self._stream)

    def _full_batch(self, full_objective: Objective, state: TrainState) -> Any:
        return sharding.shard_batch(full_objective.train_batch(int(state.step)))

    def _compile_shapes(self, step: Any, step_args: tuple[Any, ...], first: int) -> dict[Any, sharding.Program]:
        """Compile the step for each batch shape of this phase; texts differ in length."""
        steps = (
            self._batch.steps_by_length(first, self._phase.stop) if isinstance(self._batch, TextStream) else (first,)
        )
        programs = {}
        for i in steps:
            batch = sharding.shard_batch(self._batch(i))
            programs[_shapes(batch)] = sharding.compile_cached(step, step_args[0], batch, *step_args[2:])
        return programs

    def _next_batch(self, step: int) -> Any:
        """Return the batch of a step. Steps are taken in order, so batches that need decoding are prefetched."""
        if not isinstance(self._batch, Stream):
            return sharding.shard_batch(self._batch(step))
        if self._prefetched is None:
            self._prefetched = self._batch.batches(step, self._phase.stop, sharding.local_slice(self._batch.batch_size))
        return sharding.shard_local_batch(next(self._prefetched))

    def _loop_args(self, first: int, stop: int) -> tuple[Any, ...]:
        """Return the arguments of the loop: data, rows, stream key, rates, count."""
        steps = np.minimum(np.arange(self.max_steps) + first - self._phase.start, len(self._rates) - 1)
        rates_and_count = sharding.replicate((self._rates[steps], np.int32(stop - first)))
        return *self._examples(first), self._stream, *rates_and_count

    def _examples(self, first: int) -> tuple[Any, ...]:
        """Return the data and their rows (max_steps, B) for the steps from ``first`` on, padded with the last step.

        The result is cached until another ``first`` is requested.
        """
        if self._example_cache[0] != first:
            self._example_cache = first, self._gather_examples(first)
        return self._example_cache[1]

    def _gather_examples(self, first: int) -> tuple[Any, jax.Array]:
        last = self._phase.stop - 1
        rows = np.stack([self._batch.rows(min(step, last)) for step in range(first, first + self.max_steps)])
        if not self._is_local_cpu:
            return self._data, sharding.replicate(rows.astype(np.int32))
        chosen, labels = rows.ravel(), self._batch.labels
        data = {"inputs": self._batch.inputs[chosen], "label": labels[chosen % len(labels)]}
        return sharding.replicate((data, np.arange(rows.size, dtype=np.int32).reshape(rows.shape)))

    def _steps_per_call(self) -> int:
        """Return the maximum steps per call: one if a step is expensive, or the data do not fit."""
        stream, steps = self._batch, min(MAX_STEPS, self._phase.stop - self._phase.start)
        if not isinstance(stream, Stream) or is_encoded(stream.inputs):
            return 1
        row = stream.inputs[:1].nbytes
        if not self._is_local_cpu:
            return steps if len(stream.inputs) * row <= MAX_DATA_BYTES else 1
        return max(1, min(steps, MAX_SENT_BYTES // (row * stream.batch_size))) if self.flops < MAX_LOOP_FLOPS else 1


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))
