"""The training step and the evaluation step: pure, jitted with shardings, cached on what they are made from."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tl_jax.train import sharding
from tl_jax.train.devices import AXIS, mesh, replicated, split
from tl_jax.train.state import TrainState
from tl_jax.transfer import partition
from tl_jax.transfer.optimizer import OptimSpec, make_optimizer
from tl_jax.transfer.partition import Rules
from tl_jax.transfer.regularizers import sam_point


@functools.cache
def make_init(optim: OptimSpec, rules: Rules, sharded: bool = False):
    """Return the jitted function params -> optimizer state of a phase."""
    init = make_optimizer(optim, rules).init
    if sharded:
        return jax.jit(lambda params: sharding.constrain(init(params)))
    return jax.jit(init, out_shardings=replicated())


@functools.cache
def make_train_step(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the jitted step (state, batch, stream key, learning rate) -> (state, row).

    Args:
        loss: of the phase's objective.
        optim: of the phase.
        rules: freeze rules of the phase.
        batch_stats: mode of ``partition.still_norms``.
        sharded: the state is split over the devices.

    The row holds the task's sums and the norms of the trained leaves' gradients and new values. The input state's
    memory is reused. The learning rate is an argument, so that runs which differ in it share the compiled step.
    """
    step, whole = make_step(loss, optim, rules, batch_stats, sharded), replicated()
    return _jitted(step, sharded, split(), whole, whole)


@functools.cache
def make_train_steps(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the jitted loop (state, data, rows (S, B), stream key, learning rates (S,), count) -> (state, rows).

    It takes the first ``count`` of S steps, whose batches are rows of ``data``: {"image": (V * N, ...), "label": (N,)}.
    The count is an argument, so that the same program, and with it the same bits, serves any number of steps.
    """
    step = make_step(loss, optim, rules, batch_stats, sharded)

    def steps(state: TrainState, data: Any, rows: jax.Array, stream: jax.Array, rates: jax.Array, count: jax.Array):
        def batch_of(i):
            row = jax.lax.with_sharding_constraint(rows[i], split())
            labels = data["label"][row % len(data["label"])]
            return {"image": data["image"][row], "label": labels, "mask": jnp.ones(len(row))}

        def body(i, carry):
            state, out = carry
            state, row = step(state, batch_of(i), stream, rates[i])
            return state, jax.tree.map(lambda values, value: values.at[i].set(value), out, row)

        one = jax.eval_shape(lambda: step(state, batch_of(0), stream, rates[0])[1])
        zeros = jax.tree.map(lambda value: jnp.zeros((len(rows), *value.shape), value.dtype), one)
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    return _jitted(steps, sharded, *[replicated()] * 5)


def _jitted(step: Any, sharded: bool, *others: NamedSharding):
    """Jit a function (state, others ...) -> (state, ...) that reuses the memory of the state.

    A state that is split over the devices says so itself as it comes in; ``make_step`` splits the one that goes out.
    """
    state = None if sharded else replicated()
    return jax.jit(step, donate_argnums=0, in_shardings=(state, *others), out_shardings=state)


def make_step(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the step of ``make_train_step`` as it is, with further arguments of the optimizer by name."""
    optimizer = make_optimizer(optim, rules)

    def step(state: TrainState, batch: Any, stream: jax.Array, rate: jax.Array, **more: jax.Array):
        mask = partition.trainable(state.params, rules)
        still = partition.still_norms(mask, state.batch_stats, batch_stats)
        key = jax.random.fold_in(stream, state.step)

        source = sharding.gather(state.source) if sharded else state.source

        def loss_of(params, stats, batch, key):
            params = sharding.gather(params) if sharded else params
            variables = {"params": partition.stop_frozen(params, mask), "batch_stats": stats}
            with partition.running_statistics(still, optim.norm_momentum):
                return loss({**variables, **source}, batch, key)

        gradient = functools.partial(_gradient, loss_of, optim.accumulate, batch, key, state.batch_stats)
        grads, (new_stats, sums) = gradient(state.params)
        if optim.sam:  # metrics and statistics are those of the first pass
            grads, _ = gradient(sam_point(state.params, grads, optim.sam, mask))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, rate=rate, **more)
        # Frozen leaves are passed on, not added to: adding zero would turn -0.0 into 0.0.
        params = jax.tree.map(lambda p, u, trains: p + u if trains else p, state.params, updates, mask)
        row = {
            "sums": sums,
            "grad_norm": optax.tree.norm(partition.only(grads, mask)),
            "param_norm": optax.tree.norm(partition.only(params, mask)),
        }
        new = TrainState(state.step + 1, params, new_stats, opt_state, state.source)
        return sharding.constrain(new) if sharded else new, row

    return step


def _gradient(loss_of: Any, parts: int, batch: Any, key: jax.Array, stats: Any, params: Any) -> tuple[Any, Any]:
    """Return the gradient and (statistics, sums) of a batch, computed in ``parts`` one after another to save memory.

    It is the gradient of the mean over the whole batch: what ``sums["loss"]`` adds up is divided by the count of the
    whole batch, since parts may hold different numbers of labelled words or of objects. What else is in the loss, such
    as penalties, is the mean over the parts. BatchNorm, draws of a key and pairs of examples see one part at a time.
    """
    if parts == 1:
        return jax.grad(loss_of, has_aux=True)(params, stats, batch, key)

    def cut(leaf):  # every so-manieth row: each device finds the rows of all parts among its own
        rows = leaf.reshape(len(leaf) // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh(), PartitionSpec(None, AXIS)))

    def count(at):  # no weight goes into it, so that the compiler leaves the network out
        i, part = at
        return loss_of(params, stats, part, jax.random.fold_in(key, i))[1][1]["loss"][1]

    rows, numbers = jax.tree.map(cut, batch), jnp.arange(parts)
    total = jnp.maximum(jax.lax.map(count, (numbers, rows)).sum(), 1.0)

    def share(params, stats, i, part):
        value, (stats, sums) = loss_of(params, stats, part, jax.random.fold_in(key, i))
        loss, count = sums["loss"]
        return loss / total + (value - loss / jnp.maximum(count, 1.0)) / parts, (stats, sums)

    def one(stats, i, part):
        grads, (stats, sums) = jax.grad(share, has_aux=True)(params, stats, i, part)
        return grads, stats, sums

    def body(carry, at):
        grads, stats, sums = one(carry[1], *at)
        return (jax.tree.map(jnp.add, carry[0], grads), stats, jax.tree.map(jnp.add, carry[2], sums)), None

    first = one(stats, numbers[0], jax.tree.map(lambda leaf: leaf[0], rows))
    first = jax.tree.map(jnp.asarray, first)
    rest = jax.tree.map(lambda leaf: leaf[1:], (numbers, rows))
    (grads, stats, sums), _ = jax.lax.scan(body, first, rest)
    return grads, (stats, sums)


@functools.cache
def make_forward(loss: Any, rules: Rules, batch_stats: str, sharded: bool = False):
    """Return the jitted function (state, batch, stream key) -> loss: the work that no freezing can save."""

    def forward(state: TrainState, batch: Any, stream: jax.Array):
        still = partition.still_norms(partition.trainable(state.params, rules), state.batch_stats, batch_stats)
        with partition.running_statistics(still):
            return loss({**state.variables, **state.source}, batch, jax.random.fold_in(stream, state.step))[0]

    whole = replicated()
    return jax.jit(forward, in_shardings=(None if sharded else whole, split(), whole), out_shardings=whole)


@functools.cache
def make_eval_step(metrics: Any, sharded: bool = False):
    """Return the jitted function (variables, batch) -> sums, from ``Task.metrics``."""
    shardings = {"in_shardings": (None if sharded else replicated(), split()), "out_shardings": replicated()}
    return jax.jit((lambda v, batch: metrics(sharding.gather(v), batch)) if sharded else metrics, **shardings)
