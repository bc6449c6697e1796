"""Normaliser, distributions and rollouts, each against scipy, NumPy or a world with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests.rl import probes
from tl_jax.models.actor_critic import PolicyOutput
from tl_jax.rl import envs, ppo, rollout

pytestmark = pytest.mark.fast
RNG = np.random.default_rng(0)
CHOICES = PolicyOutput(jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), jnp.zeros(0), jnp.zeros(5))
VALUES = PolicyOutput(jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32), jnp.array([-0.5, 0.3]), jnp.zeros(5))
OTHERS = VALUES._replace(scores=VALUES.scores + 0.4, log_std=jnp.array([0.1, 0.0]))


def test_statistics_in_pieces_are_those_of_the_whole():
    x = RNG.normal(3.0, 2.0, (600, 4)).astype(np.float32)
    stats_ = rollout.init_statistics((4,))
    for part in np.split(x, [7, 100, 350]):
        stats_ = rollout.update_statistics(stats_, jnp.asarray(part))
    assert float(stats_["count"]) == 600
    np.testing.assert_allclose(stats_["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats_["var"], x.var(0), rtol=1e-4)
    y = rollout.normalize(stats_, jnp.asarray(x))
    np.testing.assert_allclose(y, (x - x.mean(0)) / x.std(0), atol=1e-3)


def test_statistics_of_nothing_change_nothing():
    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    np.testing.assert_allclose(rollout.normalize(rollout.init_statistics((4,)), x), x, rtol=1e-6)
    assert rollout.normalize({}, x) is x
    assert rollout.normalize(rollout.init_statistics((1,)), jnp.array([[1e6]])) == rollout.MAX_NORMALIZED


def test_choices_are_as_scipy_has_them():
    chances = special.softmax(CHOICES.scores, -1)
    actions = jnp.array([0, 1, 2, 0, 1])
    np.testing.assert_allclose(rollout.log_prob(CHOICES, actions), np.log(chances[range(5), actions]), rtol=1e-5)
    np.testing.assert_allclose(rollout.entropy(CHOICES), stats.entropy(chances, axis=-1), rtol=1e-5)
    other = CHOICES._replace(scores=CHOICES.scores[::-1])
    expected = stats.entropy(chances, special.softmax(other.scores, -1), axis=-1)
    np.testing.assert_allclose(rollout.divergence(CHOICES, other), expected, rtol=1e-4)
    assert (rollout.greedy_actions(CHOICES) == chances.argmax(-1)).all()


def test_values_are_as_scipy_has_them():
    actions = VALUES.scores + 0.7
    deviations = np.exp(VALUES.log_std)
    expected = stats.norm.logpdf(actions, VALUES.scores, deviations).sum(-1)
    np.testing.assert_allclose(rollout.log_prob(VALUES, actions), expected, rtol=1e-5)
    np.testing.assert_allclose(rollout.entropy(VALUES), stats.norm.entropy(scale=deviations).sum(), rtol=1e-5)
    many = rollout.sample_actions(jax.random.key(0), jax.tree.map(lambda x: x, _repeat(VALUES, 20000)))
    drawn = rollout.log_prob(_repeat(VALUES, 20000), many) - rollout.log_prob(_repeat(OTHERS, 20000), many)
    assert rollout.divergence(VALUES, OTHERS)[0] == pytest.approx(float(drawn.mean()), abs=0.03)


def _repeat(out: PolicyOutput, count: int) -> PolicyOutput:
    return PolicyOutput(jnp.repeat(out.scores[:1], count, 0), out.log_std, jnp.zeros(count))


def test_draws_follow_the_chances():
    drawn = rollout.sample_actions(
        jax.random.key(0), PolicyOutput(jnp.repeat(CHOICES.scores[:1], 30000, 0), jnp.zeros(0), 0)
    )
    np.testing.assert_allclose(np.bincount(drawn) / 30000, special.softmax(CHOICES.scores[0]), atol=0.01)


def test_values_are_brought_into_the_bounds_of_the_world():
    world = envs.make_env("Pendulum-v1")
    np.testing.assert_allclose(
        rollout.scale_actions(world, jnp.array([[-3.0], [-0.5], [0.0], [1.0]]))[:, 0], [-2, -1, 0, 2]
    )


def test_what_is_collected_is_what_happened():
    """Two steps an episode, the second is rewarded; three worlds, five steps, begun anew in between."""
    policy = ppo.make_policy(probes.late, widths=(4,))
    variables = ppo.init_variables(probes.late, policy, 3, False, jax.random.key(0))
    begun = variables["carry"]
    worlds_, taken = rollout.collect(probes.late, policy, variables, begun, 5, jax.random.key(1))
    np.testing.assert_array_equal(taken.observation[..., 0], np.tile([[0], [1], [0], [1], [0]], 3))
    np.testing.assert_array_equal(taken.final_observation[..., 0], np.tile([[1], [2], [1], [2], [1]], 3))
    np.testing.assert_array_equal(taken.reward, np.tile([[0], [1], [0], [1], [0]], 3))
    np.testing.assert_array_equal(taken.terminated, np.tile([[False], [True], [False], [True], [False]], 3))
    np.testing.assert_array_equal(taken.episode_return, taken.reward)
    assert not taken.truncated.any() and (worlds_["returned"] == 0).all() and (worlds_["observation"] == 1).all()
    out = rollout.apply_policy(policy, variables, taken.observation[1])
    np.testing.assert_allclose(rollout.log_prob(out, taken.action[1]), taken.log_prob[1], rtol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_an_episode_is_counted_once(greedy):
    policy = ppo.make_policy(probes.endless, widths=(4,))
    variables = ppo.init_variables(probes.endless, policy, 2, False, jax.random.key(0))
    total, length = rollout.run_episodes(
        probes.endless, policy, variables, jax.random.split(jax.random.key(1), 4), greedy
    )
    np.testing.assert_array_equal(total, [5.0] * 4)
    np.testing.assert_array_equal(length, [5] * 4)


def test_episodes_follow_from_their_keys_alone():
    world = envs.make_env("CartPole-v1")
    policy = ppo.make_policy(world, widths=(4,))
    variables = ppo.init_variables(world, policy, 2, True, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 6)
    run = jax.jit(lambda keys: rollout.run_episodes(world, policy, variables, keys, False)[0])
    whole = run(keys)
    np.testing.assert_array_equal(whole[2:4], run(keys[2:4]))
    assert len(np.unique(whole)) > 1
