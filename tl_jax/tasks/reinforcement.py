"""Reinforcement learning task: a step is a PPO update, and an example of the test split is an episode.

Several updates run in one call; their number is an argument, so that it needs no further compilation.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.metrics import Batch, Sums, Variables
from tl_jax.models.actor_critic import Policy
from tl_jax.models.options import check_options
from tl_jax.rl import envs, policy_transfer, ppo, rollout
from tl_jax.rl.envs import World
from tl_jax.rl.ppo import PPOConfig, make_update
from tl_jax.rl.rollout import normalized
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.logging import say
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_init
from tl_jax.train.task import Objective, Task
from tl_jax.transfer import freeze
from tl_jax.transfer.freeze import Rules
from tl_jax.transfer.optimizer import OptimSpec, learning_rates
from tl_jax.transfer.phases import Phase
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

MOST_UPDATES = 20  # of one call; an interruption waits for its end


class PolicyStepper:
    """The compiled updates of a phase; attributes and calls as of ``train.step.Stepper``."""

    flops = float("nan")  # XLA counts the body of a loop once, however often it runs

    def __init__(
        self,
        world: World,
        policy: Policy,
        ppo_config: PPOConfig,
        phase: Phase,
        objective: Objective,
        state: TrainState,
        stream: jax.Array,
        first: int,
        most: int = MOST_UPDATES,
    ):
        self.most = min(MOST_UPDATES, most)
        self._phase, self._stream, self._rates = phase, stream, learning_rates(phase.rate)
        still = keeps_statistics(state.params, phase)
        updates = _make_updates(world, policy, ppo_config, phase.optim, phase.rules, still)
        program = sharding.compiled(updates, state, stream, *self._some(first, first))
        self._execute, self.seconds = program.execute, program.seconds

    def advance(self, state: TrainState, first: int, stop: int) -> tuple[TrainState, list[dict[str, Any]]]:
        """Make the updates ``first`` to ``stop`` of the run, at most ``most``; return the state and a row of each."""
        rates = self._rates[first - self._phase.start : stop - self._phase.start]
        state, rows = self._execute(state, self._stream, *self._some(first, stop))
        rows = jax.device_get(rows)
        return state, [{**jax.tree.map(lambda v, i=i: v[i], rows), "lr": rate} for i, rate in enumerate(rates)]

    def unfrozen(self, state: TrainState, whole: Objective) -> tuple[int, float]:
        """Return the bytes of optimizer state, had the phase frozen nothing; FLOPs are not known."""
        init = make_init(self._phase.optim, freeze.RECIPES["all"])
        return tree.nbytes(jax.eval_shape(init, state.params)), self.flops

    def forward(self, state: TrainState, whole: Objective) -> float:
        """Return what is known of the FLOPs of acting: nothing."""
        return self.flops

    def _some(self, first: int, stop: int) -> tuple[jax.Array, jax.Array]:
        """Return the learning rates of a call, and how many of them count."""
        at = np.minimum(np.arange(self.most) + first - self._phase.start, len(self._rates) - 1)
        return sharding.everywhere((self._rates[at], np.int32(stop - first)))


def keeps_statistics(params: Any, phase: Phase) -> bool:
    """Whether the statistics of observations stay as they are: where the first layers do, or where it is asked for.

    Layers that are frozen would see other inputs than those that they were trained on.
    """
    moves = tree.flatten(freeze.trainable(params, phase.rules))
    first = next(name for name in ("conv1", "layer1", "head") if any(path.startswith(f"{name}/") for path in moves))
    frozen = not any(trains for path, trains in moves.items() if path.startswith(f"{first}/"))
    return {"auto": frozen, "frozen": True, "train": False}[phase.batch_stats]


@functools.cache
def _make_updates(world: World, policy: Policy, ppo_config: PPOConfig, optim: OptimSpec, rules: Rules, still: bool):
    """Return the jitted loop (state, stream key, learning rates (S,), count) -> (state, rows of S updates)."""
    update = make_update(world, policy, ppo_config, optim, rules, still)

    def updates(state: TrainState, stream: jax.Array, rates: jax.Array, count: jax.Array):
        def body(i, carry):
            state, out = carry
            state, row = update(state, stream, rates[i])
            return state, jax.tree.map(lambda values, value: values.at[i].set(value), out, row)

        one = jax.eval_shape(lambda: update(state, stream, rates[0])[1])
        zeros = jax.tree.map(lambda value: jnp.zeros((len(rates), *value.shape), value.dtype), one)
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    whole = sharding.replicated()
    return jax.jit(updates, donate_argnums=0, in_shardings=(whole,) * 4, out_shardings=whole)


PARTS = ("validation", "test")  # each has keys of its own, and so its own episodes


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes; it has no data, so that nothing of ``record`` is needed."""
    world = envs.make(config.rl.env, config.rl.env_params)
    policy, made = network(config, world), ppo_config(config)
    sharding.check_batch("rl.episodes", config.rl.episodes)
    start = policy_transfer.load(config.init.path) if config.init.source != "random" else None
    return Task(
        name=f"policy in {world.name}",
        classes=(),
        init=functools.partial(_start, config, world, policy, start),
        loss=_none,
        metrics=make_metrics(world, policy),
        features=functools.partial(_features, policy),
        train_batch=_none,
        eval_batches=functools.partial(_episodes, config.rl.episodes),
        sizes={"train": config.rl.total_timesteps, "validation": config.rl.episodes, "test": config.rl.episodes},
        facts={
            "weights": config.init.path or "random",
            "world": world.name,
            "physics": {name: value for name, value in world.physics},
            "spaces": world.spaces,
            "options": options(policy),
            "tested": "episodes of their own keys, the same for every run",
        },
        parts=policy.stage_names(len(world.shape) == 3),
        score="episode_return",
        stepper=functools.partial(PolicyStepper, world, policy, made),
    )


def network(config: Any, world: World) -> Policy:
    """Return the network of a configuration."""
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()}
    plain = {field.name: field.default for field in dataclasses.fields(Policy)}
    check_options("policy", {name: value for name, value in given.items() if name in plain}, plain)
    try:
        return ppo.network(world, **given)
    except TypeError as e:
        raise UserError(f"config.model.options: {e}; a policy has widths, channels and activation") from None


@functools.cache
def make_metrics(world: World, policy: Policy):
    """Return the evaluation function: sums of the returns of greedy and of sampled episodes, and greedy lengths."""

    def metrics(variables: Variables, batch: Batch) -> Sums:
        keys = jax.vmap(lambda part, at: jax.random.fold_in(jax.random.key(part), at))(batch["part"], batch["episode"])
        mask = batch["mask"]
        total, length = rollout.episodes(world, policy, variables, keys, greedy=True)
        sampled, _ = rollout.episodes(world, policy, variables, keys, greedy=False)
        values = {"episode_return": total, "episode_return_sampled": sampled, "episode_length": length}
        return {name: ((value * mask).sum(), mask.sum()) for name, value in values.items()}

    return metrics


def ppo_config(config: Any) -> PPOConfig:
    """Return the settings of PPO; a UserError names sizes that do not divide."""
    rl, horizon = config.rl.to_dict(), config.batch_size // config.rl.num_envs
    if horizon * rl["num_envs"] != config.batch_size:
        near = max(1, round(config.batch_size / rl["num_envs"])) * rl["num_envs"]
        raise UserError(
            f"config.batch_size={config.batch_size} is no multiple of config.rl.num_envs={rl['num_envs']}; {near} is"
        )
    if config.batch_size % rl["minibatches"]:
        raise UserError(
            f"config.batch_size={config.batch_size} is no multiple of config.rl.minibatches={rl['minibatches']}"
        )
    updates = config.rl.total_timesteps // config.batch_size
    return PPOConfig(
        horizon=horizon,
        kickstart_updates=max(1, round(rl["kickstart_share"] * updates)),
        **{name: rl[name] for name in PPOConfig._fields if name in rl},
    )


def _start(
    config: Any, world: World, policy: Policy, start: policy_transfer.Source | None, key: jax.Array
) -> dict[str, Any]:
    variables = ppo.initial(world, policy, config.rl.num_envs, config.rl.normalize, key)
    if not start:
        return variables
    whole, new = policy_transfer.put_in(
        variables, start, config.init.load_parts, config.init.allow_shape_mismatch, world.spaces
    )
    say(f"from {start.world}: all but {', '.join(new)}" if new else f"from {start.world}: everything")
    if config.rl.kickstart:
        teacher, left = policy_transfer.put_in(variables, start, policy_transfer.TAKE, False, world.spaces)
        whole["source"] = teacher
    return whole


def _episodes(count: int, part: str) -> Iterator[Batch]:
    """Yield one batch: the numbers that the keys of ``count`` episodes are made of."""
    number = np.full(count, 1 + PARTS.index(part), np.int32)
    yield {"part": number, "episode": np.arange(count, dtype=np.int32), "mask": np.ones(count, np.float32)}


def _features(policy: Policy, variables: Variables, batch: Batch) -> jax.Array:
    seen = normalized(variables["batch_stats"].get("observations", {}), batch["observation"])
    return policy.apply({"params": variables["params"]}, seen)[1]["features"]


def options(policy: Policy) -> dict[str, Any]:
    """Return the attributes of a policy that its world does not decide, for files."""
    return {name: _listed(getattr(policy, name)) for name in ("widths", "channels", "activation")}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _none(*_: Any) -> Any:
    raise TypeError("a policy learns from what it does, see Task.stepper; it has no batches and no loss of its own")
