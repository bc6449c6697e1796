"""Rendering of episodes as GIFs and image strips."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from tl_jax.models.actor_critic import Policy
from tl_jax.rl import rollout
from tl_jax.rl.envs import Env
from tl_jax.utils import disk

SIDE = 240  # pixels
BACKGROUND, FOREGROUND, ACCENT, GOAL = (255, 255, 255), (40, 40, 40), (200, 90, 30), (60, 140, 70)
# One per channel; no game has more.
COLORS = (
    (90, 160, 230), (240, 200, 70), (230, 90, 80), (110, 200, 120), (190, 120, 220),
    (240, 150, 60), (120, 220, 220), (230, 130, 170), (170, 170, 170), (250, 250, 250),
)  # fmt: skip


class Episode(NamedTuple):
    """An episode of T steps.

    Attributes:
        states: environment states before each step, a dict of arrays (T, ...).
        observations: observations before each step (T, ...).
        episode_return: sum of the rewards.
    """

    states: Mapping[str, np.ndarray]
    observations: np.ndarray
    episode_return: float


class Stroke(NamedTuple):
    """A line through ``points`` (x, y), with y upwards, or a disc at one point; ``width`` has the same units."""

    points: Sequence[tuple[float, float]]
    width: float
    color: tuple[int, int, int] = FOREGROUND


def play_episode(env: Env, policy: Policy, variables: Any, key: jax.Array) -> Episode:
    """Run one episode with the most likely actions."""

    def act(carry: Any, t: jax.Array) -> Any:
        observation, state = carry
        action = rollout.greedy_actions(rollout.apply_policy(policy, variables, observation[None]))
        env_step = env.step(jax.random.fold_in(step_key, t), state, rollout.scale_actions(env, action)[0])
        row = (state, observation, env_step.reward, env_step.terminated | env_step.truncated)
        return (env_step.observation, env_step.state), row

    reset_key, step_key = jax.random.split(key)
    steps = jnp.arange(env.max_steps)
    rows = jax.jit(lambda key: jax.lax.scan(act, env.reset(key), steps)[1])(reset_key)
    states, observations, rewards, done = jax.device_get(rows)
    length = int(done.argmax()) + 1 if done.any() else env.max_steps
    visited = {name: leaf[:length] for name, leaf in states.items()}
    return Episode(visited, observations[:length], float(rewards[:length].sum()))


def write_gif(env: Env, episode: Episode, path: Path, max_frames: int = 400, milliseconds: int = 40) -> Path:
    """Write an episode as a looping GIF.

    Args:
        env: the environment.
        episode: the episode.
        path: output file.
        max_frames: maximum number of frames; a longer episode is truncated.
        milliseconds: duration of a frame.
    """
    frames = render_frames(env, episode, range(min(max_frames, len(episode.observations))))
    with disk.atomic_write(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=True
        )
    return path


def draw_strip(env: Env, episode: Episode, title: str, path: Path, max_steps: int = 6) -> Path:
    """Write evenly spaced steps of an episode as a PNG strip, with the observation of each.

    Args:
        env: the environment.
        episode: the episode.
        title: title of the figure.
        path: output file.
        max_steps: maximum number of steps.
    """
    from matplotlib.figure import Figure  # the object interface needs no display and has no global state

    count = min(max_steps, len(episode.observations))
    steps = [int(t) for t in np.linspace(0, len(episode.observations) - 1, count).round()]
    frames, captions = render_frames(env, episode, steps), [observation_text(episode.observations[t]) for t in steps]
    inches = 2.2 * frames[0].height / frames[0].width + 0.15 * (captions[0].count("\n") + 1) + 0.6
    figure = Figure(figsize=(2.2 * count, inches), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = np.atleast_1d(figure.subplots(1, count))
    for axis, t, frame, text in zip(axes, steps, frames, captions, strict=True):
        axis.imshow(np.asarray(frame.convert("RGB")), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"step {t}", fontsize=9)
        axis.set_xlabel(text, fontsize=8, family="monospace")
    return disk.save_figure(figure, path)


def observation_text(observation: np.ndarray) -> str:
    """Return an observation as text: its values, or for an image its shape and the number of set cells per channel."""
    if observation.ndim == 1:
        return "\n".join(f"{value:+.3f}" for value in observation)
    cells = observation.reshape(*observation.shape[:2], -1)
    shape = "x".join(map(str, observation.shape))
    return f"{shape}; cells set\nby channel " + " ".join(f"{n}" for n in (cells > 0).sum((0, 1)))


def render_frames(env: Env, episode: Episode, steps: Iterable[int]) -> list[Image.Image]:
    """Return images of the given steps of an episode."""
    renderer = RENDERERS.get(env.name)
    if renderer is None:
        return [_draw_cells(episode.observations[t]) for t in steps]
    values = dict(env.params)
    return [_draw_strokes(*renderer({name: leaf[t] for name, leaf in episode.states.items()}, values)) for t in steps]


def _draw_cells(observation: np.ndarray) -> Image.Image:
    """Draw an observation (H, W, C) or (H, W) with a color per channel, later channels on top."""
    cells = observation.reshape(*observation.shape[:2], -1)
    pixels = np.zeros((*cells.shape[:2], 3), np.uint8)
    for k in range(cells.shape[-1]):
        pixels[cells[..., k] > 0] = COLORS[k % len(COLORS)]
    scale = SIDE // max(cells.shape[:2])
    return Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1))


def _draw_strokes(strokes: Sequence[Stroke], box: tuple[float, float, float, float]) -> Image.Image:
    """Draw strokes within the box (left, bottom, right, top)."""
    left, bottom, right, top = box
    scale = SIDE / (right - left)
    height = max(1, round((top - bottom) * scale))
    image = Image.new("RGB", (SIDE, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [((x - left) * scale, height - (y - bottom) * scale) for x, y in stroke.points]
        radius = max(1.0, stroke.width * scale / 2)
        if len(points) > 1:
            pen.line(points, fill=stroke.color, width=round(2 * radius), joint="curve")
        else:
            x, y = points[0]
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=stroke.color)
    return image.quantize(16)


def _cartpole(state: Any, params: Any) -> Any:
    x, angle, length = float(state["x"]), float(state["theta"]), 2 * params["length"]
    tip = (x + length * math.sin(angle), length * math.cos(angle))
    strokes = [
        Stroke([(-2.4, -0.12), (2.4, -0.12)], 0.02),
        Stroke([(x - 0.2, 0.0), (x + 0.2, 0.0)], 0.2),
        Stroke([(x, 0.0), tip], 0.09, ACCENT),
    ]
    return strokes, (-2.6, -0.4, 2.6, max(1.3, 1.1 * length))


def _pendulum(state: Any, params: Any) -> Any:
    angle, length = float(state["theta"]), params["l"]
    tip = (-length * math.sin(angle), length * math.cos(angle))
    reach = 1.2 * length
    return [Stroke([(0.0, 0.0), tip], 0.12 * length, ACCENT), Stroke([(0.0, 0.0)], 0.08 * length)], (
        -reach, -reach, reach, reach,
    )  # fmt: skip


def _acrobot(state: Any, params: Any) -> Any:
    first = float(state["joint_angle1"])
    second = first + float(state["joint_angle2"])
    elbow = (math.sin(first), -math.cos(first))
    hand = (elbow[0] + math.sin(second), elbow[1] - math.cos(second))
    goal = Stroke([(-2.2, 1.0), (2.2, 1.0)], 0.02, GOAL)
    return [goal, Stroke([(0.0, 0.0), elbow], 0.15), Stroke([elbow, hand], 0.13, ACCENT)], (-2.3, -2.3, 2.3, 2.3)


def _mountain_car(state: Any, params: Any) -> Any:
    def hill(x: float) -> tuple[float, float]:
        return x, 0.45 * math.sin(3 * x) + 0.55

    track = np.linspace(params["min_position"], params["max_position"], 60)
    flag, car = hill(params["goal_position"]), hill(float(state["position"]))
    pole = Stroke([flag, (flag[0], flag[1] + 0.15)], 0.02, GOAL)
    car = Stroke([(car[0], car[1] + 0.05)], 0.1, ACCENT)
    return [Stroke([hill(float(x)) for x in track], 0.015), pole, car], (-1.3, 0.0, 0.7, 1.3)


def _point(place: Any) -> tuple[float, float]:
    x, y = np.ravel(place)
    return float(x), float(y)


def _reacher(state: Any, params: Any) -> Any:
    joints, strokes = [(0.0, 0.0)], []
    for angle in np.ravel(state["angles"]):  # absolute angles, as in gymnax
        joints.append((joints[-1][0] + math.cos(angle), joints[-1][1] + math.sin(angle)))
        strokes.append(Stroke(joints[-2:], 0.12, ACCENT))
    reach = len(joints) - 0.5
    goal = Stroke([_point(state["goal_xy"])], 0.2, GOAL)
    return [*strokes, goal], (-reach, -reach, reach, reach)


def _swimmer(state: Any, params: Any) -> Any:
    urchins = [Stroke([_point(xy)], 0.12) for xy in state["urchin_xys"]]
    goal, agent = (_point(state[name]) for name in ("goal_xy", "xy"))
    return [*urchins, Stroke([goal], 0.15, GOAL), Stroke([agent], 0.1, ACCENT)], (-1.5, -1.5, 1.5, 1.5)


def _point_robot(state: Any, params: Any) -> Any:
    goal, agent = (_point(state[name]) for name in ("goal", "pos"))
    return [Stroke([goal], 0.15, GOAL), Stroke([agent], 0.1, ACCENT)], (-1.5, -0.5, 1.5, 1.5)


RENDERERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "CartPole-v1": _cartpole,
    "Acrobot-v1": _acrobot,
    "Pendulum-v1": _pendulum,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "Reacher-misc": _reacher,
    "Swimmer-misc": _swimmer,
    "PointRobot-misc": _point_robot,
}
