"""Proximal policy optimization (PPO) with generalized advantage estimation, one update as a pure function.

PPO: Schulman et al. 2017, arXiv:1707.06347; advantages: Schulman et al. 2016, arXiv:1506.02438. Training is a function
of a key, so ``vmap`` trains many seeds.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl_jax.config.options import Options, option
from tl_jax.models import actor_critic
from tl_jax.models.actor_critic import Policy, PolicyOutput
from tl_jax.rl import rollout
from tl_jax.rl.envs import Env
from tl_jax.rl.rollout import Rollout, apply_policy, collect
from tl_jax.train.state import TrainState
from tl_jax.transfer import freeze, optimizer
from tl_jax.transfer.freeze import Rules
from tl_jax.transfer.optimizer import OptimSpec, make_optimizer


def make_policy(env: Env, **options: Any) -> Policy:
    """Return a policy for the actions of an environment; ``options`` are further attributes of ``Policy``."""
    return Policy(env.num_actions or len(env.low), not env.num_actions, **options)


def init_variables(env: Env, policy: Policy, num_envs: int, normalize: bool, key: jax.Array) -> dict[str, Any]:
    """Return initial variables.

    They are ``params``, optionally the observation statistics ``observations`` in ``batch_stats``, and the environment
    states in ``carry``.
    """
    return _initializer(env, policy, num_envs, normalize)(key)


@functools.cache
def _initializer(env: Env, policy: Policy, num_envs: int, normalize: bool):
    """Return the jitted function key -> variables; without jit it takes seconds."""

    def variables(key: jax.Array) -> dict[str, Any]:
        params_key, env_key = jax.random.split(key)
        stats = {"observations": rollout.init_statistics(env.observation_shape)} if normalize else {}
        variables = actor_critic.init_variables(policy, env.observation_shape, params_key)
        return {**variables, "batch_stats": stats, "carry": rollout.reset_envs(env, num_envs, env_key)}

    return jax.jit(variables)


def init_state(variables: Any, optimizer_init: Any, source: Any = None) -> TrainState:
    """Return the state before the first update."""
    source_variables = {"source": source} if source is not None else {}
    params = variables["params"]
    opt_state = optimizer.set_adam_moments(optimizer_init(params), variables.get("moments", {}))
    step, stats = jnp.zeros((), jnp.int32), variables["batch_stats"]
    return TrainState(step, params, stats, opt_state, source_variables, variables["carry"])


def compute_advantages(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """Return the advantages (T, E) of T steps in E environments; plus ``values`` they are the value targets.

    A terminated episode has no further value. A truncated episode would have continued, so the value of its final
    observation counts, but later steps do not (Pardo et al. 2018, arXiv:1712.00378).

    Args:
        rewards: (T, E).
        values: (T, E) of the observations acted on.
        next_values: (T, E) of the observations after the steps, before a new episode starts.
        terminated, truncated: (T, E) bool, how an episode ended at a step.
        gamma: discount factor.
        gae_lambda: lambda; 0 for one-step differences, 1 for full returns.
    """
    deltas = rewards + gamma * jnp.where(terminated, 0.0, next_values) - values
    decays = gamma * gae_lambda * (1.0 - (terminated | truncated))

    def accumulate(later: jax.Array, delta_and_decay: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, decay = delta_and_decay
        now = delta + decay * later
        return now, now

    _, result = jax.lax.scan(accumulate, jnp.zeros_like(values[0]), (deltas, decays), reverse=True)
    return result


@dataclass(frozen=True)
class PPOConfig(Options):
    """PPO settings.

    Attributes:
        horizon: steps in each environment per update.
        kickstart_updates: number of updates over which the weight of ``kickstart`` decays linearly to 0.
    """

    ppo_epochs: int = option(10, "passes over the collected steps per update", low=1)
    minibatches: int = option(4, "minibatches per pass", low=1)
    gamma: float = option(0.99, "discount factor", low=0.0, high=1.0)
    gae_lambda: float = option(0.95, "lambda of generalized advantage estimation", low=0.0, high=1.0)
    clip: float = option(0.2, "clipping range of the probability ratio", low=0.0)
    value_coef: float = option(0.5, "weight of the value loss", low=0.0)
    entropy_coef: float = option(0.01, "weight of the entropy bonus", low=0.0)
    reward_scale: float = option(1.0, "factor on rewards during training", low=1e-6)
    # Schmitt et al. 2018, arXiv:1803.03835.
    kickstart: float = option(0.0, "weight of the KL divergence from the source policy in the loss", low=0.0)
    horizon: int = 128
    kickstart_updates: int = 0


class Sample(NamedTuple):
    """N steps for the loss, see ``Rollout``; ``target`` is the value target."""

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    target: jax.Array


def make_update(
    env: Env, policy: Policy, config: PPOConfig, optim: OptimSpec, rules: Rules, freeze_statistics: bool = False
):
    """Return the pure function (state, stream key, learning rate) -> (state, row): collect, then optimize.

    ``state.carry`` holds the environment states, and ``state.batch_stats`` the observation statistics, if observations
    are normalized; ``freeze_statistics`` keeps these fixed. The row holds sums and norms as in ``train.step``.
    """
    optimizer = make_optimizer(optim, rules)

    def update(state: TrainState, stream: jax.Array, rate: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        mask = freeze.trainable(state.params, rules)
        rollout_key, minibatch_key = jax.random.split(jax.random.fold_in(stream, state.step))
        env_states, trajectories = collect(env, policy, state.variables, state.carry, config.horizon, rollout_key)
        samples = _make_samples(policy, config, state.variables, trajectories)
        weight = _kickstart_weight(config, state.step)

        def learn(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            sample = jax.tree.map(lambda leaf: leaf[rows], samples)

            def loss_fn(params: Any) -> Any:
                variables = {"params": freeze.stop_frozen(params, mask), "batch_stats": state.batch_stats}
                return ppo_loss(policy, config, variables, sample, state.source.get("source"), weight)

            grads, sums = jax.grad(loss_fn, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params, rate=rate)
            params = jax.tree.map(lambda p, u, trains: p + u if trains else p, params, updates, mask)
            return (params, opt_state), (sums, optax.tree.norm(freeze.trained_leaves(grads, mask)))

        start = (state.params, state.opt_state)
        (params, opt_state), (sums, norms) = jax.lax.scan(
            learn, start, _minibatches(len(samples.target), config, minibatch_key)
        )
        stats = dict(state.batch_stats)
        if "observations" in stats and not freeze_statistics:  # last, so acting and learning use the same statistics
            observations = trajectories.observation.reshape(-1, *env.observation_shape)
            stats["observations"] = rollout.update_statistics(stats["observations"], observations)
        row = {
            "sums": {**jax.tree.map(jnp.sum, sums), "episode_return": _episode_returns(trajectories)},
            "grad_norm": norms.mean(),
            "param_norm": optax.tree.norm(freeze.trained_leaves(params, mask)),
        }
        return TrainState(state.step + 1, params, stats, opt_state, state.source, env_states), row

    return update


def ppo_loss(policy: Policy, config: PPOConfig, variables: Any, sample: Sample, source: Any, weight: jax.Array) -> Any:
    """Return the loss of N steps, and the sums to report.

    Args:
        policy: the network.
        config: clipping ranges and weights.
        variables: variables of the policy.
        sample: N steps.
        source: variables of the source policy for ``kickstart``; None if unused.
        weight: weight of the divergence from it.
    """
    out = apply_policy(policy, variables, sample.observation)
    logs = rollout.log_prob(out, sample.action) - sample.log_prob
    ratio = jnp.exp(logs)
    advantage = (sample.advantage - sample.advantage.mean()) / (sample.advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    terms = {
        "policy_loss": -jnp.minimum(ratio * advantage, clipped * advantage).mean(),
        "value_loss": 0.5 * ((out.value - sample.target) ** 2).mean(),
        "entropy": rollout.entropy(out).mean(),
    }
    total = terms["policy_loss"] + config.value_coef * terms["value_loss"] - config.entropy_coef * terms["entropy"]
    if config.kickstart:
        terms["kickstart"] = rollout.divergence(
            _stop_gradient(apply_policy(policy, source, sample.observation)), out
        ).mean()
        total = total + weight * terms["kickstart"]
    terms |= {
        "loss": total,
        "divergence": (ratio - 1 - logs).mean(),  # Schulman's nonnegative estimate of KL
        "clipped": (jnp.abs(ratio - 1) > config.clip).mean(),
    }
    return total, {name: (value, jnp.ones(())) for name, value in terms.items()}


def _make_samples(policy: Policy, config: PPOConfig, variables: Any, trajectories: Rollout) -> Sample:
    steps, count = trajectories.reward.shape
    final = trajectories.final_observation.reshape(steps * count, *trajectories.final_observation.shape[2:])
    next_values = apply_policy(policy, variables, final).value.reshape(steps, count)
    rewards = trajectories.reward * config.reward_scale
    advantage = compute_advantages(
        rewards,
        trajectories.value,
        next_values,
        trajectories.terminated,
        trajectories.truncated,
        config.gamma,
        config.gae_lambda,
    )
    samples = Sample(
        trajectories.observation, trajectories.action, trajectories.log_prob, advantage, advantage + trajectories.value
    )
    return jax.tree.map(lambda leaf: leaf.reshape(steps * count, *leaf.shape[2:]), samples)


def _minibatches(count: int, config: PPOConfig, key: jax.Array) -> jax.Array:
    """Return the row indices of the minibatches of all passes, in order: (passes * minibatches, N)."""
    low = jnp.uint32(2 ** (count - 1).bit_length() - 1)
    # One sort of random numbers with the row index in the last bits: jax.random.permutation sorts pairs, twice, which
    # took a quarter of CartPole's time on a CPU.
    rows = jnp.arange(count, dtype=jnp.uint32)[None]
    orders = jnp.sort(jax.random.bits(key, (config.ppo_epochs, count)) & ~low | rows) & low
    return orders.reshape(config.ppo_epochs * config.minibatches, count // config.minibatches)


def _kickstart_weight(config: PPOConfig, step: jax.Array) -> jax.Array:
    remaining = 1.0 - step / config.kickstart_updates if config.kickstart_updates else 1.0
    return config.kickstart * jnp.maximum(0.0, remaining)


def _episode_returns(trajectories: Rollout) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the returns of finished episodes, and their number."""
    return trajectories.episode_return.sum(), (trajectories.terminated | trajectories.truncated).sum().astype(
        jnp.float32
    )


def _stop_gradient(out: PolicyOutput) -> PolicyOutput:
    return jax.tree.map(jax.lax.stop_gradient, out)
