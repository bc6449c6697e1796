"""Worlds that a policy acts in: gymnax' environments, with their physics changed as asked."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import require_extra

NAMES = (
    "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Reacher-misc",
    "Swimmer-misc", "PointRobot-misc", "Breakout-MinAtar", "SpaceInvaders-MinAtar", "Asterix-MinAtar",
    "Freeway-MinAtar", "Seaquest-MinAtar", "Catch-bsuite",
)  # fmt: skip
Value = bool | int | float | tuple[float, ...]
Physics = tuple[tuple[str, Value], ...]


class Moved(NamedTuple):
    """What a step of a world gives.

    Attributes:
        observation: to act on next; of a new episode where one has ended.
        state: of the world, likewise.
        reward: of the step.
        terminated: whether the episode came to its own end, after which there is no reward.
        truncated: whether its time was up, after which there would have been more.
        final: observation that the step led to, before a new episode began.
    """

    observation: jax.Array
    state: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final: jax.Array


class World(NamedTuple):
    """A world, as functions.

    Attributes:
        name: of it.
        shape: of an observation.
        actions: choices of a discrete action; 0 where actions are vectors.
        low, high: bounds of each value of a vector action; empty where actions are choices.
        limit: steps of an episode at most.
        reset: key -> (observation, state), the state as a dict of arrays.
        step: (key, state, action) -> ``Moved``; begins a new episode where one ends.
        physics: names and values of what can be changed about it.
    """

    name: str
    shape: tuple[int, ...]
    actions: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    limit: int
    reset: Callable[[jax.Array], tuple[jax.Array, Any]]
    step: Callable[[jax.Array, Any, jax.Array], Moved]
    physics: Physics = ()

    @property
    def spaces(self) -> dict[str, Any]:
        """What a policy must fit, for messages and files."""
        act = {"actions": self.actions} if self.actions else {"low": list(self.low), "high": list(self.high)}
        return {"observation": list(self.shape), **act}


def make(name: str, physics: Mapping[str, Value] | Sequence[tuple[str, Value]] = ()) -> World:
    """Return a world; equal arguments give the same object, so that compiled programs are shared.

    Args:
        name: one of ``NAMES``.
        physics: parameters that differ from the published ones, such as ``{"gravity": 12.0}``.

    Raises:
        UserError: an unknown name, an unknown parameter, or a value of another kind.
    """
    return _make(name, tuple(sorted(dict(physics).items())))


@functools.cache
def _make(name: str, physics: Physics) -> World:
    with require_extra("rl"):
        import gymnax  # takes a second, which pictures and texts need not wait for

    if name not in NAMES:
        raise UserError(f"no world {name!r} (config.rl.env); {nearest(name, NAMES)}")
    environment, params = gymnax.make(name)
    params = changed(params, physics, name)
    space, seen = environment.action_space(params), environment.observation_space(params)
    choices = int(getattr(space, "n", 0))
    low, high = ((), ()) if choices else (_bounds(space.low, space.shape), _bounds(space.high, space.shape))

    like = jax.eval_shape(lambda key: environment.reset(key, params)[1], jax.random.key(0))
    named, structure = jax.tree.flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named]

    def plain(state: Any) -> dict[str, jax.Array]:
        return {key: jnp.asarray(leaf) for key, leaf in zip(names, jax.tree.leaves(state), strict=True)}

    def step(key: jax.Array, state: dict[str, jax.Array], action: jax.Array) -> Moved:
        before = jax.tree.unflatten(structure, [state[name] for name in names])
        observation, after, reward, terminated, truncated, info = environment.step(key, before, action, params)
        ends, final = truncated & ~terminated, info["final_observation"]
        return Moved(observation, plain(after), jnp.asarray(reward, jnp.float32), terminated, ends, final)

    def reset(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        observation, state = environment.reset(key, params)
        return observation, plain(state)

    limit = int(params.max_steps_in_episode)
    values = tuple((key, _plain(getattr(params, key))) for key in parameters(params))
    return World(name, tuple(seen.shape), choices, low, high, limit, reset, step, values)


def parameters(params: Any) -> tuple[str, ...]:
    """Return the names of what can be changed about a world; what follows from others is not among them."""
    return tuple(name for name in params.__dataclass_fields__ if name not in DERIVED)


# What gymnax keeps beside the values that it is made of; CartPole's equations read these.
DERIVED: Mapping[str, Callable[[Any], float]] = {
    "total_mass": lambda p: p.masscart + p.masspole,
    "polemass_length": lambda p: p.masspole * p.length,
}


def changed(params: Any, physics: Physics, name: str = "the world") -> Any:
    """Return the parameters with some values replaced, and all that follows from them.

    Raises:
        UserError: a parameter that is unknown, or a value of another kind than the one it replaces.
    """
    known, new = parameters(params), {}
    for key, value in physics:
        if key not in known:
            raise UserError(f"config.rl.env_params: {name} has no {key!r}; {nearest(key, known)}")
        new[key] = _like(_plain(getattr(params, key)), value, key)
    params = params.replace(**new)
    derived = {key: rule(params) for key, rule in DERIVED.items() if hasattr(params, key)}
    return params.replace(**derived)


def _like(usual: Value, value: Value, key: str) -> Any:
    """Return ``value`` as the kind of parameter that it replaces."""
    if isinstance(usual, tuple):
        if isinstance(value, (tuple, list)) and len(value) == len(usual):
            return jnp.asarray(value, jnp.float32)
    elif isinstance(usual, bool) or isinstance(value, bool):
        if isinstance(usual, bool) and isinstance(value, bool):
            return value
    elif isinstance(value, (int, float)) and type(usual)(value) == value:
        return type(usual)(value)
    raise UserError(f"config.rl.env_params: {key}={value!r} is not like {usual!r}, which it replaces")


def _plain(value: Any) -> Value:
    """Return a parameter as something that can be compared and written down."""
    return value if isinstance(value, (bool, int, float)) else tuple(float(v) for v in value)


def _bounds(values: Any, shape: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(v) for v in jnp.broadcast_to(jnp.asarray(values), shape).ravel())
