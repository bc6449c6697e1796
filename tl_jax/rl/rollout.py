"""Rollouts in parallel environments for training and evaluation, action distributions, and observation statistics.

Training continues from the current states of the environments; evaluation runs whole episodes. Distributions are
categorical or independent normal. Observations are normalized to mean 0 and variance 1 by running statistics.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.models.actor_critic import Policy, PolicyOutput
from tl_jax.rl.envs import Env

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def sample_actions(key: jax.Array, out: PolicyOutput) -> jax.Array:
    """Sample actions: (N,) int for discrete, or (N, A) for continuous actions."""
    if not out.log_std.size:
        return jax.random.categorical(key, out.scores)
    return out.scores + jnp.exp(out.log_std)[None] * jax.random.normal(key, out.scores.shape)


def greedy_actions(out: PolicyOutput) -> jax.Array:
    """Return the most likely actions: (N,) int for discrete, or (N, A) for continuous actions."""
    return out.scores if out.log_std.size else out.scores.argmax(-1)


def log_prob(out: PolicyOutput, actions: jax.Array) -> jax.Array:
    """Return the log probabilities (N,) of actions, in nats; log densities for continuous actions."""
    if not out.log_std.size:
        return jnp.take_along_axis(jax.nn.log_softmax(out.scores), actions[:, None], axis=-1)[:, 0]
    deviation = (actions - out.scores) * jnp.exp(-out.log_std)[None]
    return (-0.5 * deviation**2 - out.log_std[None] - HALF_LOG_TAU).sum(-1)


def entropy(out: PolicyOutput) -> jax.Array:
    """Return the entropies (N,), in nats."""
    if not out.log_std.size:
        logs = jax.nn.log_softmax(out.scores)
        return -(jnp.exp(logs) * logs).sum(-1)
    return jnp.broadcast_to((0.5 + HALF_LOG_TAU + out.log_std).sum(), out.value.shape)


def divergence(p: PolicyOutput, q: PolicyOutput) -> jax.Array:
    """Return KL(p || q) (N,), in nats."""
    if not p.log_std.size:
        log_p, log_q = jax.nn.log_softmax(p.scores), jax.nn.log_softmax(q.scores)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    var_p, var_q = jnp.exp(2 * p.log_std)[None], jnp.exp(2 * q.log_std)[None]
    ratio = (var_p + (p.scores - q.scores) ** 2) / (2 * var_q)
    return (q.log_std[None] - p.log_std[None] + ratio - 0.5).sum(-1)


MAX_NORMALIZED = 10.0  # clipping limit of normalized values
Statistics = dict[str, jax.Array]


def init_statistics(shape: tuple[int, ...]) -> Statistics:
    """Return the initial statistics, which leave observations unchanged."""
    return {"count": jnp.zeros(()), "mean": jnp.zeros(shape), "var": jnp.ones(shape)}


def update_statistics(stats: Statistics, x: jax.Array) -> Statistics:
    """Update the statistics with observations (N, ...) (Chan, Golub and LeVeque 1979)."""
    n, mean, var = float(len(x)), x.mean(0), x.var(0)
    total = stats["count"] + n
    shift = mean - stats["mean"]
    squares = stats["var"] * stats["count"] + var * n + shift**2 * stats["count"] * n / total
    return {"count": total, "mean": stats["mean"] + shift * n / total, "var": squares / total}


def normalize(stats: Any, x: jax.Array) -> jax.Array:
    """Normalize observations (N, ...); without statistics they are unchanged."""
    if not stats:
        return x
    scaled = (x - stats["mean"][None]) * jax.lax.rsqrt(stats["var"][None] + 1e-8)
    return jnp.clip(scaled, -MAX_NORMALIZED, MAX_NORMALIZED)


EnvStates = dict[str, Any]  # of E environments: "state", "observation" (E, ...), "returned" (E,), return so far


class Rollout(NamedTuple):
    """T steps in E environments, all (T, E, ...).

    Attributes:
        observation: observation acted on.
        action: action sampled from the policy.
        log_prob: its log probability, in nats.
        value: value of the observation.
        reward: reward of the environment.
        terminated, truncated: how the episode ended, if it did.
        final_observation: observation after the step, before a new episode starts.
        episode_return: return of the episode that ended; 0 if none did.
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_observation: jax.Array
    episode_return: jax.Array


def reset_envs(env: Env, num_envs: int, key: jax.Array) -> EnvStates:
    """Reset ``num_envs`` environments."""
    observation, state = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return {"state": state, "observation": observation, "returned": jnp.zeros(num_envs)}


def apply_policy(policy: Policy, variables: Any, observation: jax.Array) -> PolicyOutput:
    """Apply the policy to unnormalized observations (N, ...)."""
    stats = variables["batch_stats"].get("observations", {})
    return policy.apply({"params": variables["params"]}, normalize(stats, observation))[0]


def scale_actions(env: Env, action: jax.Array) -> jax.Array:
    """Map sampled values (N, A) from [-1, 1] to the action bounds of the environment; keep discrete actions."""
    if env.num_actions:
        return action
    low, high = (jnp.asarray(bound)[None] for bound in (env.low, env.high))
    return low + (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)


def collect(env: Env, policy: Policy, variables: Any, env_states: EnvStates, steps: int, key: jax.Array):
    """Run ``steps`` steps; return the new environment states and the ``Rollout``."""

    def act(env_states: EnvStates, key: jax.Array) -> tuple[EnvStates, Rollout]:
        act_key, env_key = jax.random.split(key)
        observation = env_states["observation"]
        out = apply_policy(policy, variables, observation)
        action = sample_actions(act_key, out)
        keys = jax.random.split(env_key, len(observation))
        env_step = jax.vmap(env.step)(keys, env_states["state"], scale_actions(env, action))
        done = env_step.terminated | env_step.truncated
        returned = env_states["returned"] + env_step.reward
        row = Rollout(
            observation, action, log_prob(out, action), out.value, env_step.reward, env_step.terminated,
            env_step.truncated, env_step.final_observation, jnp.where(done, returned, 0.0),
        )  # fmt: skip
        after = {
            "state": env_step.state,
            "observation": env_step.observation,
            "returned": jnp.where(done, 0.0, returned),
        }
        return after, row

    return jax.lax.scan(act, env_states, jax.random.split(key, steps))


def run_episodes(
    env: Env, policy: Policy, variables: Any, keys: jax.Array, greedy: bool
) -> tuple[jax.Array, jax.Array]:
    """Run one episode for each of N keys, greedily or with sampled actions; return the returns and lengths (N,)."""
    pairs = jax.vmap(jax.random.split)(keys)
    observation, state = jax.vmap(env.reset)(pairs[:, 0])

    def alive(carry: Any) -> jax.Array:
        return carry[3].any() & (carry[0] < env.max_steps)

    def act(carry: Any) -> Any:
        t, observation, state, running, total, length = carry
        out = apply_policy(policy, variables, observation)
        step_keys = jax.vmap(lambda pair: jax.random.split(jax.random.fold_in(pair[1], t)))(pairs)
        if greedy:
            action = greedy_actions(out)
        else:
            rows = jax.tree.map(lambda leaf: leaf[:, None], (out.scores, out.value))
            draw = lambda k, scores, value: sample_actions(k, PolicyOutput(scores, out.log_std, value))[0]  # noqa: E731
            action = jax.vmap(draw)(step_keys[:, 0], *rows)
        env_step = jax.vmap(env.step)(step_keys[:, 1], state, scale_actions(env, action))
        total, length = total + running * env_step.reward, length + running
        running = running & ~(env_step.terminated | env_step.truncated)
        return t + 1, env_step.observation, env_step.state, running, total, length

    n = len(keys)
    start = (jnp.int32(0), observation, state, jnp.ones(n, bool), jnp.zeros(n), jnp.zeros(n, jnp.int32))
    _, _, _, _, total, length = jax.lax.while_loop(alive, act, start)
    return total, length
