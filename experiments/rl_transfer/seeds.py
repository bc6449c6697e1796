"""Train many seeds of a recipe in one compiled program, with evaluations during training."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.config import schema
from tl_jax.models.actor_critic import Policy
from tl_jax.rl import ppo, rollout
from tl_jax.rl.envs import Env
from tl_jax.rl.ppo import PPOConfig, make_update
from tl_jax.tasks import reinforcement as policy_task
from tl_jax.tasks.reinforcement import freezes_statistics
from tl_jax.train import sharding
from tl_jax.transfer import optimizer as optimizer_module
from tl_jax.transfer import phases
from tl_jax.transfer.freeze import Rules
from tl_jax.transfer.optimizer import OptimSpec, RateSpec, learning_rates, make_optimizer


class EvalSchedule(NamedTuple):
    """How often and how well a policy is tested while it learns.

    Attributes:
        number: of evaluations, evenly spaced, besides the one before training.
        episodes: of an evaluation; the same ones each time and for all seeds, greedy.
    """

    number: int = 20
    episodes: int = 16


def init_variables(config: Any, env: Env, seeds: int) -> Any:
    """Return new variables for the seeds 0 to S - 1, stacked along a first axis (S, ...)."""
    network, rl = policy_task.make_policy(config, env), config.rl
    keys = (jax.random.fold_in(jax.random.key(seed), 0) for seed in range(seeds))
    # One after another: in jaxlib 0.10 batched QR factorisations of several kernels can wait for each other for ever.
    return stack_trees([ppo.init_variables(env, network, rl.num_envs, rl.normalize, key) for key in keys])


def train_seeds(
    config: Any, env: Env, start: Any, schedule: EvalSchedule, teacher: Any = None
) -> tuple[Any, np.ndarray]:
    """Train one policy for each seed, all at once.

    Args:
        config: a recipe of one phase with ``task="policy"``; its seed is not read.
        env: to act in.
        start: variables (S, ...) to begin from.
        schedule: made on the way.
        teacher: variables (S, ...) of the policies to keep close to, with ``config.rl.kickstart``.

    Returns:
        The variables (S, ...) after training with the ``moments`` of the optimizer, and mean returns (S, V + 1) of V
        evaluations and the one before them.
    """
    groups = split_groups((start, stream_keys(_num_seeds(start)), teacher))
    results = run_parallel(compile_training(config, env, start, schedule, teacher).execute, groups)
    variables, curves = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)
    return variables, np.asarray(curves)


def split_groups(trees: Any) -> list[Any]:
    """Return trees (S, ...) as the groups (G, ...) of seeds that share a call: all of them, on a CPU one each.

    XLA gives a CPU no more work at once for a batch of small matrix products than for one: eight seeds of CartPole took
    196 ms an update in one call and 117 ms in calls of their own on two cores (JAX 0.10.2).
    """
    size = 1 if jax.default_backend() == "cpu" else _num_seeds(trees)
    return [jax.tree.map(lambda leaf, i=i: leaf[i : i + size], trees) for i in range(0, _num_seeds(trees), size)]


def run_parallel(call: Callable[..., Any], groups: list[Any]) -> list[Any]:
    """Return what a compiled function says of each group of arguments; as many calls run at once as there are cores."""
    with ThreadPoolExecutor(min(len(groups), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda group: jax.block_until_ready(call(*group)), groups))


def compile_training(
    config: Any, env: Env, start: Any, schedule: EvalSchedule, teacher: Any = None
) -> sharding.Program:
    """Compile what ``train_seeds`` calls for each group of seeds, (variables, keys, teacher) -> (variables, curves)."""
    config = schema.freeze(config)
    network, ppo_config = policy_task.make_policy(config, env), policy_task.make_ppo_config(config)
    (phase,) = phases.resolve(
        config, {"train": config.rl.total_timesteps}, network.stage_names(len(env.observation_shape) == 3)
    )
    frozen_statistics = freezes_statistics(jax.tree.map(lambda leaf: leaf[0], start["params"]), phase)
    run = _make_run(env, network, ppo_config, phase.optim, phase.rules, frozen_statistics, phase.rate, schedule)
    return sharding.compile_cached(run, *split_groups((start, stream_keys(_num_seeds(start)), teacher))[0])


@functools.cache
def _make_run(
    env: Env,
    network: Policy,
    ppo_config: PPOConfig,
    optim: OptimSpec,
    rules: Rules,
    frozen_statistics: bool,
    rate: RateSpec,
    schedule: EvalSchedule,
):
    """Return the jitted function; ways to begin that differ in their values alone share it."""
    update = make_update(env, network, ppo_config, optim, rules, frozen_statistics)
    optimizer = make_optimizer(optim, rules)
    rates = learning_rates(rate)
    bounds = np.linspace(0, len(rates), min(schedule.number, len(rates)) + 1).round().astype(np.int32)

    def run(variables: Any, stream: jax.Array, teacher: Any) -> Any:
        lrs, keys = jnp.asarray(rates), jax.random.split(jax.random.key(1), schedule.episodes)

        def evaluate_policy(state: Any) -> jax.Array:
            return rollout.run_episodes(env, network, state.variables, keys, greedy=True)[0].mean()

        def train_part(state: Any, segment: Any) -> Any:
            first, last = segment
            state = jax.lax.fori_loop(first, last, lambda i, state: update(state, stream, lrs[i])[0], state)
            return state, evaluate_policy(state)

        state = ppo.init_state(variables, optimizer.init, teacher)
        initial_return = evaluate_policy(state)
        state, returns = jax.lax.scan(train_part, state, (bounds[:-1], bounds[1:]))
        return {**state.variables, "moments": optimizer_module.adam_moments(state.opt_state)}, jnp.concatenate(
            [initial_return[None], returns]
        )

    return jax.jit(jax.vmap(run))


def stream_keys(seeds: int) -> jax.Array:
    """Return the keys (S,) that all randomness of training comes from."""
    return jnp.stack([jax.random.fold_in(jax.random.key(seed), 1) for seed in range(seeds)])


def stack_trees(trees: list[Any]) -> Any:
    """Return trees with their leaves stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack_trees(stacked: Any) -> list[Any]:
    """Return the trees that ``stack_trees`` had put together."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(_num_seeds(stacked))]


def _num_seeds(trees: Any) -> int:
    return len(jax.tree.leaves(trees)[0])
