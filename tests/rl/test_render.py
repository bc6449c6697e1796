"""Episodes as moving pictures: of every world, and what they show."""

import jax
import numpy as np
import pytest
from PIL import Image

from tl_jax.rl import envs, ppo, render, rollout

pytestmark = pytest.mark.fast


def begun(name, **options):
    world = envs.make_env(name)
    policy = ppo.make_policy(world, widths=(4,), **options)
    return world, policy, ppo.init_variables(world, policy, 1, False, jax.random.key(0))


def test_an_episode_is_that_of_an_evaluation():
    world, policy, variables = begun("CartPole-v1")
    key = jax.random.key(3)
    played = render.play_episode(world, policy, variables, key)
    total, length = rollout.run_episodes(world, policy, variables, key[None], greedy=True)
    assert played.episode_return == total[0] == length[0] == len(played.observations) == len(played.states["x"])
    assert abs(played.states["theta"][-1]) > 0.15  # about to fall: the limit is 0.21


@pytest.mark.parametrize("name", envs.NAMES)
def test_every_world_can_be_drawn(name, tmp_path):
    world = envs.make_env(name)
    keys = jax.random.split(jax.random.key(0), 3)
    observations, states = jax.device_get(jax.vmap(world.reset)(keys))
    path = render.write_gif(world, render.Episode(states, observations, 0.0), tmp_path / "new" / "x.gif", max_frames=2)
    with Image.open(path) as picture:
        assert picture.n_frames <= 2 and max(picture.size) == render.SIDE
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1


def test_a_pole_leans_to_where_it_falls():
    physics = dict(envs.make_env("CartPole-v1").params)
    strokes, _ = render.RENDERERS["CartPole-v1"]({"x": 0.0, "theta": 0.5}, physics)
    assert strokes[-1].points[1][0] == pytest.approx(2 * 0.5 * np.sin(0.5))


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-MinAtar"])
def test_a_strip_shows_steps_from_the_first_to_the_last(name, tmp_path):
    world, policy, variables = begun(name)
    played = render.play_episode(world, policy, variables, jax.random.key(0))
    path = render.draw_strip(world, played, "title", tmp_path / "strip.png", max_steps=3)
    frames = render.render_frames(world, played, [0, len(played.observations) - 1])
    assert not np.array_equal(*(np.asarray(frame.convert("RGB")) for frame in frames))
    with Image.open(path) as picture:
        assert (
            picture.width == 660 and 150 < picture.height < 400 and len(np.unique(np.asarray(picture.convert("L")))) > 3
        )


def test_an_observation_in_words():
    assert render.observation_text(np.asarray([0.5, -1.0], np.float32)) == "+0.500\n-1.000"
    cells = np.zeros((10, 10, 2), bool)
    cells[3, 4, 1] = cells[0, 0, 1] = True
    assert render.observation_text(cells) == "10x10x2; cells set\nby channel 0 2"
