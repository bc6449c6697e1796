"""Proximal policy optimization (PPO) with generalized advantage estimation, one update as a pure function.

PPO: Schulman et al. 2017, arXiv:1707.06347; advantages: Schulman et al. 2016, arXiv:1506.02438. Training is a function
of a key, so that ``vmap`` runs many seeds.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl_jax.models.actor_critic import Policy, PolicyOutput, init_variables
from tl_jax.rl import rollout
from tl_jax.rl.envs import World
from tl_jax.rl.rollout import Collected, collect, says
from tl_jax.train.state import TrainState
from tl_jax.transfer import freeze, optimizer
from tl_jax.transfer.freeze import Rules
from tl_jax.transfer.optimizer import OptimSpec, make_optimizer


def network(world: World, **options: Any) -> Policy:
    """Return a policy for the actions of a world; ``options`` are further attributes of ``Policy``."""
    return Policy(world.actions or len(world.low), not world.actions, **options)


def initial(world: World, policy: Policy, count: int, normalize: bool, key: jax.Array) -> dict[str, Any]:
    """Return new variables: ``params``, and in ``batch_stats`` the ``worlds`` and where asked for ``observations``."""
    return _initializer(world, policy, count, normalize)(key)


@functools.cache
def _initializer(world: World, policy: Policy, count: int, normalize: bool):
    """Return the jitted function key -> variables: op by op it would take seconds."""

    def variables(key: jax.Array) -> dict[str, Any]:
        drawn, begun = jax.random.split(key)
        stats: dict[str, Any] = {"worlds": rollout.begin(world, count, begun)}
        if normalize:
            stats["observations"] = rollout.init(world.shape)
        return {**init_variables(policy, world.shape, drawn), "batch_stats": stats}

    return jax.jit(variables)


def begin(variables: Any, optimizer_init: Any, source: Any = None) -> TrainState:
    """Return the state before the first update."""
    kept = {"source": source} if source is not None else {}
    params = variables["params"]
    opt_state = optimizer.put_in(optimizer_init(params), variables.get("moments", {}))
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], opt_state, kept)


def advantages(
    rewards: jax.Array,
    values: jax.Array,
    following: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """Return the advantages (T, E) of the actions of T steps in E worlds; with ``values`` added, the values' targets.

    An episode that terminates is worth nothing more; one that is truncated would have gone on, so the value of the
    observation it led to still counts, and only the sum over later steps ends (Pardo et al. 2018, arXiv:1712.00378).

    Args:
        rewards: (T, E).
        values: (T, E) of the observations that were acted on.
        following: (T, E) values of the observations that the steps led to, before a new episode began.
        terminated, truncated: (T, E) bool, how an episode ended at a step.
        gamma: gamma.
        gae_lambda: lambda; 0 for one-step differences, 1 for whole returns.
    """
    deltas = rewards + gamma * jnp.where(terminated, 0.0, following) - values
    carries = gamma * gae_lambda * (1.0 - (terminated | truncated))

    def back(later: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, carry = at
        now = delta + carry * later
        return now, now

    _, found = jax.lax.scan(back, jnp.zeros_like(values[0]), (deltas, carries), reverse=True)
    return found


class PPOConfig(NamedTuple):
    """How an update is made.

    Attributes:
        horizon: steps in each world between two updates.
        ppo_epochs: passes over what was collected.
        minibatches: steps of the optimizer in a pass.
        gamma: gamma.
        gae_lambda: lambda of the advantages.
        clip: how far the probability of an action may move, as a share, before its gradient ends.
        value_coef: of the value's squared error.
        entropy_coef: weight of the policy's entropy, which keeps it trying.
        reward_scale: factor on rewards while training.
        kickstart: weight of the divergence from the source's policy (Schmitt et al. 2018, arXiv:1803.03835).
        kickstart_updates: after how many updates that weight has fallen to 0; linearly.
    """

    horizon: int = 128
    ppo_epochs: int = 4
    minibatches: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    reward_scale: float = 1.0
    kickstart: float = 0.0
    kickstart_updates: int = 0


class Sample(NamedTuple):
    """What the loss needs of N steps: see ``Collected``; ``target`` is what the value should be."""

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    target: jax.Array


def make_update(world: World, policy: Policy, config: PPOConfig, optim: OptimSpec, rules: Rules, still: bool = False):
    """Return the pure function (state, stream key, learning rate) -> (state, row): collect, then optimize.

    ``state.batch_stats`` holds the ``worlds`` and, where observations are normalised, the statistics ``observations``,
    which ``still`` keeps as they are. The row holds sums and norms as those of ``train.step``.
    """
    optimizer = make_optimizer(optim, rules)

    def update(state: TrainState, stream: jax.Array, rate: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        mask = freeze.trainable(state.params, rules)
        acting, learning = jax.random.split(jax.random.fold_in(stream, state.step))
        worlds, taken = collect(world, policy, state.variables, state.batch_stats["worlds"], config.horizon, acting)
        whole = _sample(policy, config, state.variables, taken)
        weight = _kickstart(config, state.step)

        def learn(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            sample = jax.tree.map(lambda leaf: leaf[rows], whole)

            def loss_of(params: Any) -> Any:
                seen = {"params": freeze.stop_frozen(params, mask), "batch_stats": state.batch_stats}
                return loss(policy, config, seen, sample, state.source.get("source"), weight)

            grads, sums = jax.grad(loss_of, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params, rate=rate)
            params = jax.tree.map(lambda p, u, trains: p + u if trains else p, params, updates, mask)
            return (params, opt_state), (sums, optax.tree.norm(freeze.only(grads, mask)))

        start = (state.params, state.opt_state)
        (params, opt_state), (sums, norms) = jax.lax.scan(
            learn, start, _minibatches(len(whole.target), config, learning)
        )
        stats = {**state.batch_stats, "worlds": worlds}
        if "observations" in stats and not still:  # afterwards: what acted and what learned saw the same
            seen = taken.observation.reshape(-1, *world.shape)
            stats["observations"] = rollout.seen(stats["observations"], seen)
        row = {
            "sums": {**jax.tree.map(jnp.sum, sums), "episode_return": _ended(taken)},
            "grad_norm": norms.mean(),
            "param_norm": optax.tree.norm(freeze.only(params, mask)),
        }
        return TrainState(state.step + 1, params, stats, opt_state, state.source), row

    return update


def loss(policy: Policy, config: PPOConfig, variables: Any, sample: Sample, source: Any, weight: jax.Array) -> Any:
    """Return the loss of N steps, and the sums that are reported.

    Args:
        policy: the network.
        config: clips and weights.
        variables: of the policy.
        sample: N steps.
        source: variables of the policy that is kept close to, None where there is none.
        weight: of the divergence from it.
    """
    out = says(policy, variables, sample.observation)
    logs = rollout.log_prob(out, sample.action) - sample.log_prob
    ratio = jnp.exp(logs)
    gain = (sample.advantage - sample.advantage.mean()) / (sample.advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    parts = {
        "policy_loss": -jnp.minimum(ratio * gain, clipped * gain).mean(),
        "value_loss": 0.5 * ((out.value - sample.target) ** 2).mean(),
        "entropy": rollout.entropy(out).mean(),
    }
    total = parts["policy_loss"] + config.value_coef * parts["value_loss"] - config.entropy_coef * parts["entropy"]
    if config.kickstart:
        parts["kickstart"] = rollout.divergence(_still(says(policy, source, sample.observation)), out).mean()
        total = total + weight * parts["kickstart"]
    parts |= {
        "loss": total,
        "divergence": (ratio - 1 - logs).mean(),  # Schulman's estimate of KL, never negative
        "clipped": (jnp.abs(ratio - 1) > config.clip).mean(),
    }
    return total, {name: (value, jnp.ones(())) for name, value in parts.items()}


def _sample(policy: Policy, config: PPOConfig, variables: Any, taken: Collected) -> Sample:
    steps, count = taken.reward.shape
    final = taken.final.reshape(steps * count, *taken.final.shape[2:])
    following = says(policy, variables, final).value.reshape(steps, count)
    rewards = taken.reward * config.reward_scale
    gain = advantages(
        rewards, taken.value, following, taken.terminated, taken.truncated, config.gamma, config.gae_lambda
    )
    whole = Sample(taken.observation, taken.action, taken.log_prob, gain, gain + taken.value)
    return jax.tree.map(lambda leaf: leaf.reshape(steps * count, *leaf.shape[2:]), whole)


def _minibatches(count: int, config: PPOConfig, key: jax.Array) -> jax.Array:
    """Return the rows of the minibatches of all epochs, one after another: (epochs * minibatches, N)."""
    low = jnp.uint32(2 ** (count - 1).bit_length() - 1)
    # One sort of random numbers whose last bits are the rows: jax.random.permutation sorts pairs, twice, which took a
    # quarter of CartPole's time on a CPU.
    rows = jnp.arange(count, dtype=jnp.uint32)[None]
    orders = jnp.sort(jax.random.bits(key, (config.ppo_epochs, count)) & ~low | rows) & low
    return orders.reshape(config.ppo_epochs * config.minibatches, count // config.minibatches)


def _kickstart(config: PPOConfig, step: jax.Array) -> jax.Array:
    left = 1.0 - step / config.kickstart_updates if config.kickstart_updates else 1.0
    return config.kickstart * jnp.maximum(0.0, left)


def _ended(taken: Collected) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the returns of the episodes that ended, and their number."""
    return taken.ended.sum(), (taken.terminated | taken.truncated).sum().astype(jnp.float32)


def _still(out: PolicyOutput) -> PolicyOutput:
    return jax.tree.map(jax.lax.stop_gradient, out)
