"""The task of acting in a world: a step is a PPO update, and an example of the test part is an episode."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tl_jax.errors import UserError
from tl_jax.models.options import check
from tl_jax.models.policy import Policy
from tl_jax.rl import rollout, source, training, worlds
from tl_jax.rl.normalizer import normalized
from tl_jax.rl.ppo import How
from tl_jax.rl.stepper import PolicyStepper
from tl_jax.rl.worlds import World
from tl_jax.task import Task
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import devices
from tl_jax.train.log import say
from tl_jax.verdict import Batch, Sums, Variables

PARTS = ("validation", "test")  # each has keys of its own, and so its own episodes


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes; it has no data, so that nothing of ``record`` is needed."""
    world = worlds.make(config.rl.world, config.rl.physics)
    policy, made = network(config, world), how(config)
    devices.check_batch("rl.episodes", config.rl.episodes)
    start = source.load(config.init.path) if config.init.source != "random" else None
    return Task(
        name=f"policy in {world.name}",
        classes=(),
        init=functools.partial(_start, config, world, policy, start),
        loss=_none,
        metrics=make_metrics(world, policy),
        features=functools.partial(_features, policy),
        train_batch=_none,
        eval_batches=functools.partial(_episodes, config.rl.episodes),
        sizes={"train": config.rl.steps, "validation": config.rl.episodes, "test": config.rl.episodes},
        facts={
            "weights": config.init.path or "random",
            "world": world.name,
            "physics": {name: value for name, value in world.physics},
            "spaces": world.spaces,
            "options": options(policy),
            "tested": "episodes of their own keys, the same for every run",
        },
        parts=policy.part_names(len(world.shape) == 3),
        score="episode_return",
        stepper=functools.partial(PolicyStepper, world, policy, made),
    )


def network(config: Any, world: World) -> Policy:
    """Return the network of a configuration."""
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()}
    plain = {field.name: field.default for field in dataclasses.fields(Policy)}
    check("policy", {name: value for name, value in given.items() if name in plain}, plain)
    try:
        return training.network(world, **given)
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


def how(config: Any) -> How:
    """Return how an update is made; a UserError names sizes that do not divide."""
    rl, horizon = config.rl.to_dict(), config.batch_size // config.rl.worlds
    if horizon * rl["worlds"] != config.batch_size:
        near = max(1, round(config.batch_size / rl["worlds"])) * rl["worlds"]
        raise UserError(
            f"config.batch_size={config.batch_size} is no multiple of config.rl.worlds={rl['worlds']}; {near} is"
        )
    if config.batch_size % rl["minibatches"]:
        raise UserError(
            f"config.batch_size={config.batch_size} is no multiple of config.rl.minibatches={rl['minibatches']}"
        )
    updates = config.rl.steps // config.batch_size
    return How(
        horizon=horizon,
        epochs=rl["passes"],
        kickstart_updates=max(1, round(rl["kickstart_share"] * updates)),
        **{name: rl[name] for name in How._fields if name in rl},
    )


def _start(config: Any, world: World, policy: Policy, start: source.Source | None, key: jax.Array) -> dict[str, Any]:
    variables = training.initial(world, policy, config.rl.worlds, config.rl.normalize, key)
    if not start:
        return variables
    whole, new = source.put_in(variables, start, config.init.take, config.init.surgery, world.spaces)
    say(f"from {start.world}: all but {', '.join(new)}" if new else f"from {start.world}: everything")
    if config.rl.kickstart:
        teacher, left = source.put_in(variables, start, source.TAKE, False, world.spaces)
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
