"""PPO on worlds with known answers, and that an update does what freezing, seeds and the source ask of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl_transfer import seeds
from tests.rl import probes
from tl_jax.models.actor_critic import PolicyOutput
from tl_jax.rl import ppo, rollout
from tl_jax.train.state import digest
from tl_jax.transfer.freeze import RECIPES
from tl_jax.transfer.optimizer import OptimSpec, make_optimizer
from tl_jax.utils import tree

pytestmark = pytest.mark.slow
OPTIM = OptimSpec("adam", epsilon=1e-5, clip_norm=0.5)
HOW = ppo.PPOConfig(horizon=16, gamma=0.9)
WORLDS = 16


def trained(world, updates=100, how=HOW, rate=3e-3, recipe="all", normalize=False, optim=OPTIM):
    policy, rules = ppo.make_policy(world, widths=(32,)), RECIPES[recipe]
    update = ppo.make_update(world, policy, how, optim, rules)
    variables = ppo.init_variables(world, policy, WORLDS, normalize, jax.random.key(0))
    state = ppo.init_state(variables, make_optimizer(optim, rules).init)
    run = jax.jit(lambda s, rates: probes.updates(update, s, jax.random.key(1), rates))
    return policy, variables, *run(state, jnp.full(updates, rate))


def says(policy, state, observation) -> PolicyOutput:
    return rollout.apply_policy(policy, state.variables, jnp.asarray(observation, jnp.float32))


def test_values_are_learned():
    policy, _, state, _ = trained(probes.constant)
    assert says(policy, state, [[0.0]]).value == pytest.approx(1.0, abs=0.05)


def test_values_are_learned_by_observation():
    policy, _, state, _ = trained(probes.by_observation)
    assert says(policy, state, [[1.0], [-1.0]]).value == pytest.approx([1.0, -1.0], abs=0.1)


def test_what_comes_later_is_discounted():
    policy, _, state, _ = trained(probes.late)
    assert says(policy, state, [[0.0], [1.0]]).value == pytest.approx([0.9, 1.0], abs=0.05)


def test_the_action_that_pays_is_taken():
    policy, _, state, rows = trained(probes.by_action)
    assert jax.nn.softmax(says(policy, state, [[0.0]]).scores)[0, 1] > 0.95
    total, count = rows["sums"]["episode_return"]
    assert (total / count)[-10:].min() > 0.8


def test_the_action_that_pays_here_is_taken_here():
    policy, _, state, _ = trained(probes.by_both)
    chances = jax.nn.softmax(says(policy, state, [[1.0], [-1.0]]).scores)
    assert chances[0, 1] > 0.95 and chances[1, 0] > 0.95


def test_the_value_that_pays_here_is_taken_here():
    policy, _, state, _ = trained(probes.by_value, updates=200, rate=5e-3)
    out = says(policy, state, [[1.0], [-1.0]])
    np.testing.assert_allclose(out.scores[:, 0], [0.5, -0.5], atol=0.1)
    assert out.log_std[0] < -0.5  # it tries less and less


def test_an_episode_whose_time_is_up_is_worth_what_would_have_come():
    policy, _, state, _ = trained(probes.endless, updates=300)
    assert says(policy, state, [[0.0]]).value == pytest.approx(10.0, rel=0.1)  # 1 / (1 - 0.9), not a sum over 5 steps


def test_a_frozen_trunk_keeps_its_bits():
    optim = dataclasses.replace(OPTIM, weight_decay=0.1)
    _, variables, state, _ = trained(probes.by_both, updates=50, recipe="head", optim=optim)
    before, after = tree.flatten(variables["params"]), tree.flatten(state.params)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if path.startswith("head/")}


def test_seeds_in_one_program_are_those_of_single_runs():
    world, rules = probes.by_both, RECIPES["all"]
    policy = ppo.make_policy(world, widths=(8,))
    update = ppo.make_update(world, policy, HOW, OPTIM, rules)

    def run(variables, seed):
        state = ppo.init_state(variables, make_optimizer(OPTIM, rules).init)
        return probes.updates(update, state, jax.random.key(seed), jnp.full(5, 1e-3))[0].params

    each = [ppo.init_variables(world, policy, WORLDS, True, jax.random.key(seed)) for seed in range(3)]
    many = jax.jit(jax.vmap(run))(seeds.stack_trees(each), jnp.arange(3))
    for seed in range(3):
        alone = jax.jit(run)(each[seed], seed)
        jax.tree.map(lambda a, b, s=seed: np.testing.assert_allclose(a[s], b, rtol=1e-4, atol=1e-5), many, alone)
    assert not np.allclose(many["layer1"]["actor"]["kernel"][0], many["layer1"]["actor"]["kernel"][1])


def test_updates_in_pieces_have_the_bits_of_updates_in_one_go():
    policy, variables, whole, _ = trained(probes.by_both, updates=6, normalize=True)
    rules = RECIPES["all"]
    update = ppo.make_update(probes.by_both, policy, HOW, OPTIM, rules)
    run = jax.jit(lambda s, rates: probes.updates(update, s, jax.random.key(1), rates))
    state = ppo.init_state(variables, make_optimizer(OPTIM, rules).init)
    for _ in range(2):
        state, _ = run(state, jnp.full(3, 3e-3))
    assert digest(state.params) == digest(whole.params)
    assert int(whole.step) == 6 and float(whole.batch_stats["observations"]["count"]) == 6 * 16 * WORLDS


def test_kickstarting_keeps_close_to_the_source():
    world, rules = probes.by_action, RECIPES["all"]
    policy, _, teacher, _ = trained(world)
    start = ppo.init_variables(world, policy, WORLDS, False, jax.random.key(5))
    far = {}
    for weight in (0.0, 1.0):
        how = dataclasses.replace(HOW, kickstart=weight, kickstart_updates=100)
        update = ppo.make_update(world, policy, how, OPTIM, rules)
        source = teacher.variables if weight else None
        state = ppo.init_state(start, make_optimizer(OPTIM, rules).init, source)
        state, _ = jax.jit(lambda s, u=update: probes.updates(u, s, jax.random.key(2), jnp.full(4, 3e-3)))(state)
        far[weight] = float(rollout.divergence(says(policy, teacher, [[0.0]]), says(policy, state, [[0.0]]))[0])
    assert far[1.0] < 0.8 * far[0.0]


def test_the_loss_by_hand():
    """Two choices of equal chance; the ratio is 1, so the policy's loss is minus the mean normalised advantage: 0."""
    world = probes.by_action
    policy = ppo.make_policy(world, widths=(4,))
    variables = ppo.init_variables(world, policy, 2, False, jax.random.key(0))
    variables["params"]["head"] = jax.tree.map(jnp.zeros_like, variables["params"]["head"])
    sample = ppo.Sample(
        jnp.zeros((2, 1)),
        jnp.array([0, 1]),
        jnp.log(jnp.array([0.5, 0.25])),
        jnp.array([1.0, 3.0]),
        jnp.array([1.0, 2.0]),
    )
    total, sums = ppo.ppo_loss(policy, ppo.PPOConfig(entropy_coef=0.1), variables, sample, None, jnp.zeros(()))
    values = {name: float(value) for name, (value, _) in sums.items()}
    # Advantages -1 and 1; ratios 1 and 2, the latter clipped to 1.2: -(-1 + 1.2) / 2 = -0.1.
    assert values["policy_loss"] == pytest.approx(-0.1, abs=1e-5)
    assert values["value_loss"] == pytest.approx(0.5 * (1 + 4) / 2)
    assert values["entropy"] == pytest.approx(np.log(2))
    assert values["clipped"] == 0.5
    assert values["divergence"] == pytest.approx((0 + (2 - 1 - np.log(2))) / 2)
    assert float(total) == pytest.approx(-0.1 + 0.5 * 1.25 - 0.1 * np.log(2), abs=1e-5)
