"""Five worlds with known answers, each of which a wrong piece of a learner fails: values, discounting, policy, both."""

import jax
import jax.numpy as jnp

from tl_jax.rl.envs import Env, EnvStep


def _world(name, actions, limit, observe, reward, terminal=True):
    """Return a world whose state is (step, sign); ``terminal`` says whether its end is one, or the time was up."""

    def reset(key):
        state = (jnp.int32(0), jnp.where(jax.random.bernoulli(key), 1.0, -1.0))
        return observe(state), state

    def step(key, state, action):
        after = (state[0] + 1, state[1])
        done = after[0] >= limit
        began, fresh = reset(key)
        final = observe(after)
        chosen = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, after)
        ends = done & terminal
        return EnvStep(jnp.where(done, began, final), chosen, reward(state, action), ends, done & ~ends, final)

    low, high = ((), ()) if actions else ((-1.0,), (1.0,))
    return Env(name, (1,), actions, low, high, limit, reset, step)


def _time(state):
    return jnp.stack([state[0].astype(jnp.float32)])


def _sign(state):
    return jnp.stack([state[1]])


constant = _world("constant reward", 2, 1, lambda s: jnp.zeros(1), lambda s, a: jnp.float32(1))
by_observation = _world("reward by observation", 2, 1, _sign, lambda s, a: s[1])
late = _world("reward one step late", 2, 2, _time, lambda s, a: (s[0] == 1).astype(jnp.float32))
by_action = _world("reward by action", 2, 1, lambda s: jnp.zeros(1), lambda s, a: jnp.where(a == 1, 1.0, -1.0))
by_both = _world("reward by both", 2, 1, _sign, lambda s, a: jnp.where((a == 1) == (s[1] > 0), 1.0, -1.0))
by_value = _world("reward by a value", 0, 1, _sign, lambda s, a: -((a[0] - 0.5 * s[1]) ** 2))
endless = _world("reward without end, in pieces of 5", 2, 5, lambda s: jnp.zeros(1), lambda s, a: jnp.float32(1), False)


def updates(update, state, stream, rates):
    """Make as many updates as there are rates; return the state and a row of each, stacked."""
    return jax.lax.scan(lambda state, rate: update(state, stream, rate), state, rates)
