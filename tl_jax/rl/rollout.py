"""Acting in many worlds at once: for training from where they stand, and whole episodes for evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.models.policy import Output, Policy
from tl_jax.rl import distributions
from tl_jax.rl.normalizer import normalized
from tl_jax.rl.worlds import World

Worlds = dict[str, Any]  # of E worlds: "state", "observation" (E, ...), "returned" (E,) since the episode began


class Collected(NamedTuple):
    """T steps in E worlds, all (T, E, ...).

    Attributes:
        observation: acted on.
        action: taken, as the policy drew it.
        log_prob: of it, in nats.
        value: of the observation.
        reward: that followed, as the world gives it.
        terminated, truncated: how the episode ended, where it did.
        final: observation that the step led to, before a new episode began.
        ended: return of the episode that ended, 0 where none did.
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final: jax.Array
    ended: jax.Array


def begin(world: World, count: int, key: jax.Array) -> Worlds:
    """Return ``count`` worlds at the start of an episode."""
    observation, state = jax.vmap(world.reset)(jax.random.split(key, count))
    return {"state": state, "observation": observation, "returned": jnp.zeros(count)}


def says(policy: Policy, variables: Any, observation: jax.Array) -> Output:
    """Return what the policy says of observations (N, ...) as the world gives them."""
    stats = variables["batch_stats"].get("observations", {})
    return policy.apply({"params": variables["params"]}, normalized(stats, observation))[0]


def bounded(world: World, action: jax.Array) -> jax.Array:
    """Return drawn values (N, A), -1 to 1 of which is what is allowed, as actions of the world; choices as they are."""
    if world.actions:
        return action
    low, high = (jnp.asarray(bound)[None] for bound in (world.low, world.high))
    return low + (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)


def collect(world: World, policy: Policy, variables: Any, worlds: Worlds, steps: int, key: jax.Array):
    """Act for ``steps`` steps; return the worlds as they stand then, and what was ``Collected``."""

    def move(worlds: Worlds, key: jax.Array) -> tuple[Worlds, Collected]:
        act_key, world_key = jax.random.split(key)
        seen = worlds["observation"]
        out = says(policy, variables, seen)
        action = distributions.sample(act_key, out)
        keys = jax.random.split(world_key, len(seen))
        moved = jax.vmap(world.step)(keys, worlds["state"], bounded(world, action))
        done = moved.terminated | moved.truncated
        returned = worlds["returned"] + moved.reward
        row = Collected(
            seen, action, distributions.log_prob(out, action), out.value, moved.reward, moved.terminated,
            moved.truncated, moved.final, jnp.where(done, returned, 0.0),
        )  # fmt: skip
        after = {"state": moved.state, "observation": moved.observation, "returned": jnp.where(done, 0.0, returned)}
        return after, row

    return jax.lax.scan(move, worlds, jax.random.split(key, steps))


def episodes(
    world: World, policy: Policy, variables: Any, keys: jax.Array, greedy: bool
) -> tuple[jax.Array, jax.Array]:
    """Return return and length (N,) of one episode for each of N keys, with the likeliest actions or drawn ones."""
    pairs = jax.vmap(jax.random.split)(keys)
    observation, state = jax.vmap(world.reset)(pairs[:, 0])

    def alive(carry: Any) -> jax.Array:
        return carry[3].any() & (carry[0] < world.limit)

    def move(carry: Any) -> Any:
        t, observation, state, going, total, length = carry
        out = says(policy, variables, observation)
        now = jax.vmap(lambda pair: jax.random.split(jax.random.fold_in(pair[1], t)))(pairs)
        if greedy:
            action = distributions.best(out)
        else:
            rows = jax.tree.map(lambda leaf: leaf[:, None], (out.scores, out.value))
            draw = lambda k, scores, value: distributions.sample(k, Output(scores, out.log_std, value))[0]  # noqa: E731
            action = jax.vmap(draw)(now[:, 0], *rows)
        moved = jax.vmap(world.step)(now[:, 1], state, bounded(world, action))
        total, length = total + going * moved.reward, length + going
        going = going & ~(moved.terminated | moved.truncated)
        return t + 1, moved.observation, moved.state, going, total, length

    n = len(keys)
    start = (jnp.int32(0), observation, state, jnp.ones(n, bool), jnp.zeros(n), jnp.zeros(n, jnp.int32))
    _, _, _, _, total, length = jax.lax.while_loop(alive, move, start)
    return total, length
