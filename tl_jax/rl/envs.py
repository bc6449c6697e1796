"""Environments of gymnax, with changed parameters."""

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
ParamValue = bool | int | float | tuple[float, ...]
EnvParams = tuple[tuple[str, ParamValue], ...]


class EnvStep(NamedTuple):
    """Result of an environment step.

    Attributes:
        observation: next observation; that of a new episode if one has ended.
        state: next state, likewise.
        reward: reward of the step.
        terminated: whether the episode ended in a terminal state, with no further rewards.
        truncated: whether the episode ended at the time limit.
        final_observation: observation after the step, before a new episode starts.
    """

    observation: jax.Array
    state: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_observation: jax.Array


class Env(NamedTuple):
    """An environment, as pure functions.

    Attributes:
        name: name of the environment.
        observation_shape: shape of an observation.
        num_actions: number of discrete actions; 0 for continuous actions.
        low, high: bounds of each dimension of a continuous action; empty for discrete actions.
        max_steps: maximum length of an episode.
        reset: key -> (observation, state), where the state is a dict of arrays.
        step: (key, state, action) -> ``EnvStep``; starts a new episode when one ends.
        params: names and values of the changeable parameters.
    """

    name: str
    observation_shape: tuple[int, ...]
    num_actions: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_steps: int
    reset: Callable[[jax.Array], tuple[jax.Array, Any]]
    step: Callable[[jax.Array, Any, jax.Array], EnvStep]
    params: EnvParams = ()

    @property
    def spaces(self) -> dict[str, Any]:
        """The observation and action spaces that a policy must fit, for messages and files."""
        act = {"actions": self.num_actions} if self.num_actions else {"low": list(self.low), "high": list(self.high)}
        return {"observation": list(self.observation_shape), **act}


def make_env(name: str, overrides: Mapping[str, ParamValue] | Sequence[tuple[str, ParamValue]] = ()) -> Env:
    """Return an environment; equal arguments give the same object, so compiled programs are shared.

    Args:
        name: one of ``NAMES``.
        overrides: parameters that differ from the defaults, such as ``{"gravity": 12.0}``.

    Raises:
        UserError: A name or parameter is unknown, or a value has the wrong type.
    """
    return _make_cached(name, tuple(sorted(dict(overrides).items())))


@functools.cache
def _make_cached(name: str, overrides: EnvParams) -> Env:
    with require_extra("rl"):
        import gymnax  # imported here because it takes a second

    if name not in NAMES:
        raise UserError(f"config.rl.env: unknown environment {name!r}; {nearest(name, NAMES)}")
    gym_env, params = gymnax.make(name)
    params = replace_params(params, overrides, name)
    action_space, observation_space = gym_env.action_space(params), gym_env.observation_space(params)
    num_actions = int(getattr(action_space, "n", 0))
    low, high = (
        ((), ())
        if num_actions
        else (_bounds(action_space.low, action_space.shape), _bounds(action_space.high, action_space.shape))
    )

    state_shapes = jax.eval_shape(lambda key: gym_env.reset(key, params)[1], jax.random.key(0))
    paths_and_leaves, treedef = jax.tree.flatten_with_path(state_shapes)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths_and_leaves]

    def to_dict(state: Any) -> dict[str, jax.Array]:
        return {key: jnp.asarray(leaf) for key, leaf in zip(names, jax.tree.leaves(state), strict=True)}

    def step(key: jax.Array, state: dict[str, jax.Array], action: jax.Array) -> EnvStep:
        before = jax.tree.unflatten(treedef, [state[name] for name in names])
        observation, after, reward, terminated, truncated, info = gym_env.step(key, before, action, params)
        ends, final = truncated & ~terminated, info["final_observation"]
        return EnvStep(observation, to_dict(after), jnp.asarray(reward, jnp.float32), terminated, ends, final)

    def reset(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        observation, state = gym_env.reset(key, params)
        return observation, to_dict(state)

    max_steps = int(params.max_steps_in_episode)
    values = tuple((key, _to_python(getattr(params, key))) for key in param_names(params))
    return Env(name, tuple(observation_space.shape), num_actions, low, high, max_steps, reset, step, values)


def param_names(params: Any) -> tuple[str, ...]:
    """Return the names of the changeable parameters of an environment, without derived ones."""
    return tuple(name for name in params.__dataclass_fields__ if name not in DERIVED)


# Derived values that gymnax stores, since CartPole's equations use them.
DERIVED: Mapping[str, Callable[[Any], float]] = {
    "total_mass": lambda p: p.masscart + p.masspole,
    "polemass_length": lambda p: p.masspole * p.length,
}


def replace_params(params: Any, overrides: EnvParams, name: str = "the environment") -> Any:
    """Return the parameters with some values replaced, and derived values updated.

    Raises:
        UserError: A parameter is unknown, or a value has the wrong type.
    """
    known, new = param_names(params), {}
    for key, value in overrides:
        if key not in known:
            raise UserError(f"config.rl.env_params: {name} has no parameter {key!r}; {nearest(key, known)}")
        new[key] = _cast_param(_to_python(getattr(params, key)), value, key)
    params = params.replace(**new)
    derived = {key: rule(params) for key, rule in DERIVED.items() if hasattr(params, key)}
    return params.replace(**derived)


def _cast_param(default: ParamValue, value: ParamValue, key: str) -> Any:
    """Return ``value`` with the type of the parameter that it replaces."""
    if isinstance(default, tuple):
        if isinstance(value, (tuple, list)) and len(value) == len(default):
            return jnp.asarray(value, jnp.float32)
    elif isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(value, (int, float)) and type(default)(value) == value:
        return type(default)(value)
    raise UserError(f"config.rl.env_params: {key}={value!r} has the wrong type; pass a value like {default!r}")


def _to_python(value: Any) -> ParamValue:
    """Return a parameter as a Python value that can be compared and stored."""
    return value if isinstance(value, (bool, int, float)) else tuple(float(v) for v in value)


def _bounds(values: Any, shape: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(v) for v in jnp.broadcast_to(jnp.asarray(values), shape).ravel())
