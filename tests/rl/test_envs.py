"""Worlds: their spaces, changed physics against the equations of motion, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.rl import envs
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", envs.NAMES)
def test_a_step_gives_what_the_spaces_say(name):
    world = envs.make_env(name)
    action = jnp.int32(0) if world.num_actions else jnp.zeros(len(world.low))
    with jax.numpy_rank_promotion("allow"):  # some of gymnax' equations need it
        observation, state = jax.eval_shape(world.reset, jax.random.key(0))
        moved = jax.eval_shape(world.step, jax.random.key(1), state, action)
    assert observation.shape == moved.observation.shape == moved.final_observation.shape == world.observation_shape
    assert moved.reward.shape == () and moved.reward.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, moved.state) == jax.tree.map(jnp.shape, state)
    assert bool(world.num_actions) != bool(world.low) and len(world.low) == len(world.high)


def acceleration(state, force, gravity=9.8, cart=1.0, pole=0.1, half=0.5):
    """Return the accelerations of cart and pole (Barto, Sutton and Anderson 1983)."""
    sin, cos, total = np.sin(state[2]), np.cos(state[2]), cart + pole
    push = (force + pole * half * state[3] ** 2 * sin) / total
    turn = (gravity * sin - cos * push) / (half * (4 / 3 - pole * cos**2 / total))
    return push - pole * half * turn * cos / total, turn


@pytest.mark.parametrize(
    ("physics", "known"),
    [
        ({}, {}),
        ({"masspole": 1.0}, {"pole": 1.0}),
        ({"length": 1.5}, {"half": 1.5}),
        ({"masscart": 3.0, "gravity": 5.0}, {"cart": 3.0, "gravity": 5.0}),
    ],
)
def test_changed_physics_reach_the_equations_of_motion(physics, known):
    """gymnax keeps the total mass and the pole's mass times length as values of their own."""
    world = envs.make_env("CartPole-v1", physics)
    before, state = world.reset(jax.random.key(0))
    state |= {"theta_dot": jnp.float32(1.5)}
    after = world.step(jax.random.key(1), state, jnp.int32(1)).final_observation
    x, turn = acceleration([0, 0, float(before[2]), 1.5], 10.0, **known)
    np.testing.assert_allclose(after[1] - before[1], 0.02 * x, rtol=1e-4)
    np.testing.assert_allclose(after[3] - 1.5, 0.02 * turn, rtol=1e-4)


def test_equal_worlds_are_one_object():
    first = envs.make_env("CartPole-v1", {"gravity": 12.0, "length": 1.0})
    assert envs.make_env("CartPole-v1", (("length", 1.0), ("gravity", 12.0))) is first
    assert dict(first.params)["gravity"] == 12.0


def test_an_episode_ends_in_its_own_way_or_by_time():
    world = envs.make_env("CartPole-v1", {"max_steps_in_episode": 3})
    _, state = world.reset(jax.random.key(0))
    ends = []
    for i in range(3):
        moved = world.step(jax.random.key(i), state, jnp.int32(i % 2))
        state = moved.state
        ends.append((bool(moved.terminated), bool(moved.truncated)))
    assert ends == [(False, False), (False, False), (False, True)]
    assert not np.allclose(moved.final_observation, moved.observation)  # a new episode has begun
    fallen = state | {"theta": jnp.float32(1.0), "time": 2}  # both at once: it is the fall that counts
    moved = world.step(jax.random.key(9), fallen, jnp.int32(0))
    assert moved.terminated and not moved.truncated


@pytest.mark.parametrize(
    ("name", "physics", "message"),
    [
        ("CartPole", {}, "unknown environment 'CartPole'; .*CartPole-v1"),
        ("CartPole-v1", {"gravty": 9.0}, "has no parameter 'gravty'; .*gravity"),
        ("CartPole-v1", {"total_mass": 2.0}, "has no parameter 'total_mass'"),
        ("CartPole-v1", {"gravity": "heavy"}, "gravity='heavy' has the wrong type; pass a value like 9.8"),
        ("CartPole-v1", {"max_steps_in_episode": 2.5}, "has the wrong type; pass a value like 500"),
        ("Acrobot-v1", {"available_torque": 2.0}, "available_torque=2.0 has the wrong type"),
    ],
)
def test_what_does_not_fit_is_refused(name, physics, message):
    with pytest.raises(UserError, match=message):
        envs.make_env(name, physics)


def test_values_of_several_numbers_can_be_changed():
    assert dict(envs.make_env("Acrobot-v1", {"available_torque": (-2, 0, 2)}).params)["available_torque"] == (-2, 0, 2)
