"""Reinforcement learning: a step is a PPO update, and an example of a split is an episode.

Several updates run in one call; their number is an argument, so that it needs no further compilation.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import models
from tl_jax.config.options import group, option
from tl_jax.export import model_card, stablehlo
from tl_jax.export.model_card import BundleContents
from tl_jax.metrics import Batch, Sums, Variables
from tl_jax.models import check_options
from tl_jax.models.actor_critic import Policy
from tl_jax.pretrained import formats
from tl_jax.pretrained.catalog import InitConfig
from tl_jax.rl import envs, policy_transfer, ppo, render, rollout
from tl_jax.rl.envs import Env
from tl_jax.rl.ppo import PPOConfig, make_update
from tl_jax.rl.rollout import normalize
from tl_jax.tasks import head_init
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.logging import say, say_written
from tl_jax.train.run_config import RunConfig
from tl_jax.train.state import TrainState, initial_state
from tl_jax.train.step import make_optimizer_init
from tl_jax.train.task import Objective, Task, register_task
from tl_jax.train.workdir import read_summary
from tl_jax.transfer import freeze
from tl_jax.transfer.freeze import Rules
from tl_jax.transfer.optimizer import OptimSpec, adam_moments, learning_rates
from tl_jax.transfer.phases import Phase
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

MAX_UPDATES = 20  # per call; an interruption waits for the end of a call


class PolicyStepper:
    """Compiled updates of a phase, with the interface of ``train.step.Stepper``."""

    flops = float("nan")  # unknown: XLA counts the body of a loop once

    def __init__(
        self,
        env: Env,
        policy: Policy,
        ppo_config: PPOConfig,
        phase: Phase,
        objective: Objective,
        state: TrainState,
        stream: jax.Array,
        first: int,
        max_steps: int = MAX_UPDATES,
    ):
        self.max_steps = min(MAX_UPDATES, max_steps)
        self._phase, self._stream, self._rates = phase, stream, learning_rates(phase.rate)
        freeze_statistics = freezes_statistics(state.params, phase)
        updates = _make_updates(env, policy, ppo_config, phase.optim, phase.rules, freeze_statistics)
        program = sharding.compile_cached(updates, state, stream, *self._call_args(first, first))
        self._execute, self.seconds = program.execute, program.seconds

    def advance(self, state: TrainState, first: int, stop: int) -> tuple[TrainState, list[dict[str, Any]]]:
        """Run updates ``first`` to ``stop``, at most ``max_steps``; return the state and a row for each."""
        rates = self._rates[first - self._phase.start : stop - self._phase.start]
        state, rows = self._execute(state, self._stream, *self._call_args(first, stop))
        rows = jax.device_get(rows)
        return state, [{**jax.tree.map(lambda v, i=i: v[i], rows), "lr": rate} for i, rate in enumerate(rates)]

    def unfrozen_cost(self, state: TrainState, full_objective: Objective) -> tuple[int, float]:
        """Return the optimizer state's bytes if nothing were frozen; FLOPs are unknown (NaN)."""
        init = make_optimizer_init(self._phase.optim, freeze.RECIPES["all"])
        return tree.nbytes(jax.eval_shape(init, state.params)), self.flops

    def forward_flops(self, state: TrainState, full_objective: Objective) -> float:
        """Return NaN: the FLOPs of a rollout are unknown."""
        return self.flops

    def _call_args(self, first: int, stop: int) -> tuple[jax.Array, jax.Array]:
        """Return the learning rates of a call, and the number of valid ones."""
        steps = np.minimum(np.arange(self.max_steps) + first - self._phase.start, len(self._rates) - 1)
        return sharding.replicate((self._rates[steps], np.int32(stop - first)))


def freezes_statistics(params: Any, phase: Phase) -> bool:
    """Return whether the observation statistics are frozen: if the first layers are, or on request.

    Otherwise frozen layers would get inputs on another scale than in training.
    """
    trained = tree.flatten(freeze.trainable(params, phase.rules))
    first_layer = next(
        name for name in ("conv1", "layer1", "head") if any(path.startswith(f"{name}/") for path in trained)
    )
    frozen = not any(trains for path, trains in trained.items() if path.startswith(f"{first_layer}/"))
    return {"auto": frozen, "frozen": True, "train": False}[phase.batch_stats]


@functools.cache
def _make_updates(
    env: Env, policy: Policy, ppo_config: PPOConfig, optim: OptimSpec, rules: Rules, freeze_statistics: bool
):
    """Return the jitted loop (state, stream key, learning rates (S,), count) -> (state, rows of S updates)."""
    update = make_update(env, policy, ppo_config, optim, rules, freeze_statistics)

    def updates(state: TrainState, stream: jax.Array, rates: jax.Array, count: jax.Array):
        def body(i, carry):
            state, out = carry
            state, row = update(state, stream, rates[i])
            return state, jax.tree.map(lambda values, value: values.at[i].set(value), out, row)

        row_shapes = jax.eval_shape(lambda: update(state, stream, rates[0])[1])
        zeros = jax.tree.map(lambda value: jnp.zeros((len(rates), *value.shape), value.dtype), row_shapes)
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    on_all = sharding.replicated()
    return jax.jit(updates, donate_argnums=0, in_shardings=(on_all,) * 4, out_shardings=on_all)


@dataclass(frozen=True)
class PolicyInitConfig(InitConfig):
    """Initialization of a policy."""

    load_parts: tuple[str, ...] = option(
        policy_transfer.DEFAULT_COMPONENTS, "components to load from the source policy; add optimizer for its moments"
    )
    allow_shape_mismatch: bool = option(
        False, "randomly initialize leaves that do not fit the new observations or actions, and load the rest"
    )


@dataclass(frozen=True)
class RLConfig(PPOConfig):
    """Environment and PPO settings; ``batch_size`` is the number of environment steps per update."""

    env: str = option("CartPole-v1", "gymnax environment, such as Pendulum-v1 or Breakout-MinAtar")
    env_params: tuple[tuple[str, Any], ...] = option(
        (), "changed environment parameters: pairs (name, value), such as ('gravity', 12.0)"
    )
    total_timesteps: int = option(300_000, "environment steps per epoch, over all environments", low=1)
    num_envs: int = option(16, "number of parallel environments", low=1)
    normalize: bool = option(True, "normalize observations to mean 0 and variance 1")
    kickstart_share: float = option(
        0.5, "fraction of training over which the kickstart weight decays to 0", low=0.0, high=1.0
    )
    episodes: int = option(32, "episodes per evaluation", low=1)


@dataclass(frozen=True)
class PolicyRunConfig(RunConfig):
    """Configuration of a reinforcement learning run."""

    init: PolicyInitConfig = group(PolicyInitConfig)
    rl: RLConfig = group(RLConfig)


SPLITS = ("validation", "test")  # each has its own keys, and so its own episodes


@register_task("policy")
class Reinforcement(Task):
    """Reinforcement learning: a policy in an environment; an example of a split is an episode."""

    about = "a gymnax environment"
    input_kind = "observations"
    config_class = PolicyRunConfig
    # These need examples, labels or classes.
    unused_fields = (
        "adapt.", "data.", "eval_batch_size", "init.folds", "init.head", "init.layout",
        "init.start_loss", "init.strength", "model.channels",
        "model.dtype", "model.endpoint", "model.num_classes", "optim.accumulate", "optim.batch_norm_momentum",
        "optim.sam", "parallel.", "pretext.", "regularize.", "test_train", "wise_ft",
    )  # fmt: skip
    score = "episode_return"

    def __init__(self, config: Any, record: RunRecord = NEW_RUN):
        """Build the task of ``config``; it has no data."""
        self.config, self.env = config, envs.make_env(config.rl.env, config.rl.env_params)
        self.policy, env = make_policy(config, self.env), self.env
        self.make_stepper = functools.partial(PolicyStepper, env, self.policy, make_ppo_config(config))
        sharding.check_batch("rl.episodes", config.rl.episodes)
        reads_source = config.init.source != "random" and record.reads_weights
        self.source = policy_transfer.load(config.init.path) if reads_source else None
        self.name, self.stages = f"policy in {env.name}", self.policy.stage_names(len(env.observation_shape) == 3)
        self.metrics, self.features = make_metrics(env, self.policy), functools.partial(_features, self.policy)
        episodes = config.rl.episodes
        self.sizes = {"train": config.rl.total_timesteps, "validation": episodes, "test": episodes}
        self.facts = {
            "weights": config.init.path or "random",
            "world": env.name,
            "physics": {name: value for name, value in env.params},
            "spaces": env.spaces,
            "options": policy_options(self.policy),
            "tested": "episodes of their own keys, the same for every run",
        }

    @classmethod
    def is_portable(cls, folder: Path, facts: Mapping[str, Any]) -> bool:
        return True  # the configuration defines the policy

    @classmethod
    def networks(cls) -> tuple[str, ...]:
        return (models.POLICY,)

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        return ("tl_jax", "random")

    @classmethod
    def stage_names(cls, config: Any) -> tuple[str, ...]:
        widths = config.model.options.get("widths", Policy.widths)
        return Policy(1, widths=tuple(widths)).stage_names(image_input=True)

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        is_new = config.init.source == "random"
        return {
            "init.path must be the export of a policy, with config.init.source=tl_jax": (
                is_new == bool(config.init.path)
            ),
            "init.load_parts and init.allow_shape_mismatch need config.init.source=tl_jax": (
                is_new and changed("init.load_parts", "init.allow_shape_mismatch")
            ),
            "rl.kickstart needs a source policy; set config.init.source=tl_jax": is_new and changed("rl.kickstart"),
            "rl.kickstart_share has an effect with config.rl.kickstart only": (
                not config.rl.kickstart and changed("rl.kickstart_share")
            ),
        }

    def init(self, key: jax.Array) -> dict[str, Any]:
        return _init_variables(self.config, self.env, self.policy, self.source, key)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        return _episode_batches(self.config.rl.episodes, split)

    def preview(self, folder: Path) -> list[Path]:
        """Render an episode before training."""
        rollout = self._play(initial_state(self, self.config.seed).variables)
        title = f"{self.name}, before training: {len(rollout.observations)} steps, return {rollout.episode_return:g}"
        return [render.draw_strip(self.env, rollout, title, folder / "preview.png")]

    def play(self, variables: Variables, folder: Path) -> tuple[Path, str]:
        """Run one greedy episode and render it into ``episode.gif``."""
        rollout = self._play(variables)
        path = render.write_gif(self.env, rollout, folder / "episode.gif")
        return path, f"{len(rollout.observations)} steps, return {rollout.episode_return:.1f}"

    def _play(self, variables: Variables) -> render.Episode:
        return render.play_episode(self.env, self.policy, variables, jax.random.key(self.config.seed))

    def export_weights(self, folder: Path, start: TrainState | None, end: TrainState, dtype: str) -> Path:
        """Write ``export/model.safetensors``, which ``init.path`` accepts; always float32, whatever ``dtype`` is."""
        path = folder / "export" / formats.WEIGHTS_FILE
        facts = {name: self.facts[name] for name in ("world", "physics", "spaces")} | {"step": int(end.step)}
        facts |= {"metrics": read_summary(folder).get("metrics", {})}
        adam_state = adam_moments(self.optimizer_state(folder, end))
        policy_transfer.save(path, end.variables, self.facts["options"], facts, adam_state)
        say_written(path)
        return path

    def optimizer_state(self, folder: Path, state: TrainState) -> Any:
        """Return the optimizer state of the checkpoint of ``state``; () before the first step."""
        step = int(state.step)
        phase = next((phase for phase in self.plan() if phase.start < step <= phase.stop), None)
        if phase is None:
            return ()
        template = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules)(state.params))
        checkpoints = Checkpoints(folder / "checkpoints", self, cleanup=False)
        restored = checkpoints.restore(step, template, opt_state=True)
        checkpoints.close()
        return restored.opt_state

    def bundle_variables(self, folder: Path) -> dict[str, Any]:
        variables = _init_variables(self.config, self.env, self.policy, None, jax.random.key(0))
        source = policy_transfer.load(folder)
        components, _ = policy_transfer.load_components(
            variables, source, policy_transfer.DEFAULT_COMPONENTS, False, self.env.spaces
        )
        return {**variables, **components}

    def bundle_contents(self, folder: Path, step: int) -> BundleContents:
        source = policy_transfer.load(folder / formats.WEIGHTS_FILE)
        facts = {"classes": [], "world": source.world, "preprocessing": model_card.describe_policy_input(source.spaces)}
        facts |= {"options": dict(source.options)}
        files = {formats.WEIGHTS_FILE: "weights of tl_jax, with the facts to build the policy"}
        return BundleContents(stablehlo.policy_program(source), facts, "", files, model_card.policy_loader())


def make_policy(config: Any, env: Env) -> Policy:
    """Return the policy network of a configuration."""
    options = head_init.model_attributes(config)
    defaults = {field.name: field.default for field in dataclasses.fields(Policy)}
    check_options("policy", {name: value for name, value in options.items() if name in defaults}, defaults)
    try:
        return ppo.make_policy(env, **options)
    except TypeError as e:
        raise UserError(f"config.model.options: {e}; a policy takes widths, channels and activation") from None


@functools.cache
def make_metrics(env: Env, policy: Policy):
    """Return the evaluation function: sums of greedy and sampled returns, and of greedy episode lengths."""

    def metrics(variables: Variables, batch: Batch) -> Sums:
        keys = jax.vmap(lambda split, episode: jax.random.fold_in(jax.random.key(split), episode))(
            batch["part"], batch["episode"]
        )
        mask = batch["mask"]
        total, length = rollout.run_episodes(env, policy, variables, keys, greedy=True)
        sampled, _ = rollout.run_episodes(env, policy, variables, keys, greedy=False)
        values = {"episode_return": total, "episode_return_sampled": sampled, "episode_length": length}
        return {name: ((value * mask).sum(), mask.sum()) for name, value in values.items()}

    return metrics


def make_ppo_config(config: Any) -> PPOConfig:
    """Return the PPO settings. Raises UserError if the sizes are not divisible."""
    rl, horizon = config.rl, config.batch_size // config.rl.num_envs
    if horizon * rl.num_envs != config.batch_size:
        nearest = max(1, round(config.batch_size / rl.num_envs)) * rl.num_envs
        raise UserError(
            f"config.batch_size={config.batch_size} is not a multiple of config.rl.num_envs={rl.num_envs}; "
            f"use {nearest}"
        )
    if config.batch_size % rl.minibatches:
        raise UserError(
            f"config.batch_size={config.batch_size} is not a multiple of config.rl.minibatches={rl.minibatches}; "
            "change one of them"
        )
    updates = max(1, round(rl.kickstart_share * (rl.total_timesteps // config.batch_size)))
    return rl.narrow(PPOConfig, horizon=horizon, kickstart_updates=updates)


def _init_variables(
    config: Any, env: Env, policy: Policy, source_policy: policy_transfer.SourcePolicy | None, key: jax.Array
) -> dict[str, Any]:
    variables = ppo.init_variables(env, policy, config.rl.num_envs, config.rl.normalize, key)
    if not source_policy:
        return variables
    components, not_loaded_leaves = policy_transfer.load_components(
        variables, source_policy, config.init.load_parts, config.init.allow_shape_mismatch, env.spaces
    )
    say(
        f"loaded from {source_policy.world}: all but {', '.join(not_loaded_leaves)}"
        if not_loaded_leaves
        else f"loaded from {source_policy.world}: everything"
    )
    loaded = {**variables, **components}
    if config.rl.kickstart:
        loaded["source"], _ = policy_transfer.load_components(
            variables, source_policy, policy_transfer.DEFAULT_COMPONENTS, False, env.spaces
        )
    return loaded


def _episode_batches(count: int, split: str) -> Iterator[Batch]:
    """Yield one batch with the numbers from which the keys of ``count`` episodes are derived."""
    split_number = np.full(count, 1 + SPLITS.index(split), np.int32)
    yield {"part": split_number, "episode": np.arange(count, dtype=np.int32), "mask": np.ones(count, np.float32)}


def _features(policy: Policy, variables: Variables, batch: Batch) -> jax.Array:
    observation = normalize(variables["batch_stats"].get("observations", {}), batch["observation"])
    return policy.apply({"params": variables["params"]}, observation)[1]["features"]


def policy_options(policy: Policy) -> dict[str, Any]:
    """Return the attributes of a policy that do not depend on its environment, for files."""
    return {name: _to_list(getattr(policy, name)) for name in ("widths", "channels", "activation")}


def _to_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
