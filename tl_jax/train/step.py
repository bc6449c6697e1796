"""The training step and the evaluation step: pure, jitted with shardings, cached on what they are made from."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tl_jax.train.devices import replicated, split
from tl_jax.train.state import TrainState
from tl_jax.transfer import partition
from tl_jax.transfer.optimizer import OptimSpec, make_optimizer
from tl_jax.transfer.partition import Rules
from tl_jax.transfer.regularizers import sam_point


@functools.cache
def make_init(optim: OptimSpec, rules: Rules):
    """Return the jitted function params -> optimizer state of a phase."""
    return jax.jit(make_optimizer(optim, rules).init, out_shardings=replicated())


@functools.cache
def make_train_step(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str):
    """Return the jitted step (state, batch, stream key, learning rate) -> (state, row).

    Args:
        loss: of the phase's objective.
        optim: of the phase.
        rules: freeze rules of the phase.
        batch_stats: mode of ``partition.still_norms``.

    The row holds the task's sums and the norms of the trained leaves' gradients and new values. The input state's
    memory is reused. The learning rate is an argument, so that runs which differ in it share the compiled step.
    """
    whole, parts = replicated(), split()
    shardings = {"in_shardings": (whole, parts, whole, whole), "out_shardings": whole}
    return jax.jit(make_step(loss, optim, rules, batch_stats), donate_argnums=0, **shardings)


@functools.cache
def make_train_steps(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str):
    """Return the jitted loop (state, data, rows (S, B), stream key, learning rates (S,), count) -> (state, rows).

    It takes the first ``count`` of S steps, whose batches are rows of ``data``: {"image": (V * N, ...), "label": (N,)}.
    The count is an argument, so that the same program, and with it the same bits, serves any number of steps.
    """
    step = make_step(loss, optim, rules, batch_stats)

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

    whole = replicated()
    return jax.jit(steps, donate_argnums=0, in_shardings=(whole,) * 6, out_shardings=whole)


def make_step(loss: Any, optim: OptimSpec, rules: Rules, batch_stats: str):
    """Return the step of ``make_train_step`` as it is, with further arguments of the optimizer by name."""
    optimizer = make_optimizer(optim, rules)

    def step(state: TrainState, batch: Any, stream: jax.Array, rate: jax.Array, **more: jax.Array):
        mask = partition.trainable(state.params, rules)
        still = partition.still_norms(mask, state.batch_stats, batch_stats)
        key = jax.random.fold_in(stream, state.step)

        def loss_of(params):
            variables = {"params": partition.stop_frozen(params, mask), "batch_stats": state.batch_stats}
            with partition.running_statistics(still, optim.norm_momentum):
                return loss({**variables, **state.source}, batch, key)

        grads, (new_stats, sums) = jax.grad(loss_of, has_aux=True)(state.params)
        if optim.sam:  # metrics and statistics are those of the first pass
            grads, _ = jax.grad(loss_of, has_aux=True)(sam_point(state.params, grads, optim.sam, mask))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, rate=rate, **more)
        # Frozen leaves are passed on, not added to: adding zero would turn -0.0 into 0.0.
        params = jax.tree.map(lambda p, u, trains: p + u if trains else p, state.params, updates, mask)
        row = {
            "sums": sums,
            "grad_norm": optax.tree.norm(partition.only(grads, mask)),
            "param_norm": optax.tree.norm(partition.only(params, mask)),
        }
        return TrainState(state.step + 1, params, new_stats, opt_state, state.source), row

    return step


@functools.cache
def make_forward(loss: Any, rules: Rules, batch_stats: str):
    """Return the jitted function (state, batch, stream key) -> loss: the work that no freezing can save."""

    def forward(state: TrainState, batch: Any, stream: jax.Array):
        still = partition.still_norms(partition.trainable(state.params, rules), state.batch_stats, batch_stats)
        with partition.running_statistics(still):
            return loss({**state.variables, **state.source}, batch, jax.random.fold_in(stream, state.step))[0]

    return jax.jit(forward, in_shardings=(replicated(), split(), replicated()), out_shardings=replicated())


@functools.cache
def make_eval_step(metrics: Any):
    """Return the jitted function (variables, batch) -> sums, from ``Task.metrics``."""
    return jax.jit(metrics, in_shardings=(replicated(), split()), out_shardings=replicated())
