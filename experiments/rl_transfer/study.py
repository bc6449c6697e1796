"""Measure whether a policy of one task helps in another, and whether the policy recipes learn, over many seeds.

    python -m experiments.rl_transfer.study --workdir=DIR [--suite=cartpole] [--seeds=8]
    python -m experiments.rl_transfer.study --workdir=DIR --smoke                   smoke test, a minute
    python -m experiments.rl_transfer.study --what=recipes --results=PREFIX [--recipes=cartpole,acrobot] [--seeds=8]

``transfer`` is source x target x transferred components x seeds. Each variant has the budget of scratch in the target
and starts from the source policy of the same seed. Writes ``RESULTS.csv`` (a row per seed, with its learning curve),
``.md``, ``_curves.png`` and, if only the physics differ, ``_distance.png``; existing rows are not repeated. The metrics
are those of ``report.py``.

``recipes`` measures whether the recipes learn with every seed, and in how many steps and seconds. A recipe is evaluated
before training, 20 times during it and after it, on 50 greedy episodes that are the same for all seeds. Writes
``RESULTS.csv`` in the same way, ``.md`` and ``.png``.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from configs import cartpole_ppo, minatar_ppo
from experiments import record
from experiments.rl_transfer import report, seeds
from tl_jax.config import recipe
from tl_jax.report import html
from tl_jax.report.plots import t_interval
from tl_jax.rl import envs, policy_transfer
from tl_jax.rl.envs import Env
from tl_jax.tasks import reinforcement as policy_task
from tl_jax.train.logging import say
from tl_jax.utils import command, disk, environment
from tl_jax.utils.errors import UserError, nearest

WHAT = flags.DEFINE_enum("what", "transfer", ["transfer", "recipes"], "Study to run.")
WORKDIR = flags.DEFINE_string("workdir", "", "transfer: folder of the source policies, and of the results by default.")
RESULTS = flags.DEFINE_string("results", "", "Prefix of record, table and figures; in the workdir if empty.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Number of seeds, in one program.")
SUITE = flags.DEFINE_enum("suite", "cartpole", ["cartpole", "minatar"], "transfer: source and targets.")
EVALUATIONS = flags.DEFINE_integer(
    "evaluations", 20, "transfer: evaluations per run, evenly spaced, besides the one before training."
)
EPISODES = flags.DEFINE_integer("episodes", 16, "transfer: episodes per evaluation.")
STEPS = flags.DEFINE_integer("steps", 0, "transfer: steps in the target; 0 for the suite's default.")
WAYS_FLAG = flags.DEFINE_list("ways", [], "transfer: variants to run; empty for all.")
SMOKE = flags.DEFINE_bool("smoke", False, "transfer: smoke test with two seeds, two targets and few steps.")
RECIPES_FLAG = flags.DEFINE_list("recipes", [], "recipes: recipes to run; empty for all.")


class Suite(NamedTuple):
    """A source, and targets: name -> (changes to the recipe); ``steps`` in a target."""

    recipe: Any
    source: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    steps: int
    source_steps: int


def _cartpole(**physics: float) -> dict[str, Any]:
    return {"rl.env_params": tuple(physics.items())}


SUITES = {
    "cartpole": Suite(
        cartpole_ppo,
        {},
        {
            "heavy": _cartpole(masspole=1.0),
            "long": _cartpole(length=1.5),
            "weak": _cartpole(force_mag=5.0),
            "short": _cartpole(length=0.1),
            "reversed": _cartpole(force_mag=-10.0),
        },
        steps=200_000,
        source_steps=300_000,
    ),
    "minatar": Suite(
        minatar_ppo,
        {"rl.env": "SpaceInvaders-MinAtar"},
        {"breakout": {"rl.env": "Breakout-MinAtar"}},
        steps=1_000_000,
        source_steps=1_000_000,
    ),
}


class TransferMethod(NamedTuple):
    """What travels, and how the rest goes on."""

    components: tuple[str, ...]
    recipe: str = "all"
    kickstart: float = 0.0


WAYS = {
    "scratch": TransferMethod(()),
    "trunk": TransferMethod(("trunk", "normalizer")),
    "trunk_policy": TransferMethod(("trunk", "policy", "normalizer")),
    "everything": TransferMethod(policy_transfer.DEFAULT_COMPONENTS),
    "with_optimizer": TransferMethod((*policy_transfer.DEFAULT_COMPONENTS, "optimizer")),
    "frozen_trunk": TransferMethod(policy_transfer.DEFAULT_COMPONENTS, "head"),
    "kickstart": TransferMethod(("normalizer",), kickstart=1.0),
}
# name -> (recipe, its variant, return that counts as learned here)
RECIPES: dict[str, tuple[Any, str, float]] = {
    "cartpole": (cartpole_ppo, "", 475.0),
    "acrobot": (cartpole_ppo, "acrobot", -100.0),
    "pendulum": (cartpole_ppo, "pendulum", -250.0),
    "breakout": (minatar_ppo, "", 10.0),
}
RECIPE_SCHEDULE = seeds.EvalSchedule(number=20, episodes=50)


def main(_: list[str]) -> None:
    """Study what is asked for."""
    logging.set_verbosity(logging.WARNING)
    if WHAT.value == "transfer" and not WORKDIR.value or WHAT.value == "recipes" and not RESULTS.value:
        raise UserError(f"--what={WHAT.value} needs --{'workdir' if WHAT.value == 'transfer' else 'results'}")
    {"transfer": study_transfer, "recipes": study_recipes}[WHAT.value]()


def study_transfer() -> None:
    """Train the sources, then what is still to be trained, then write the report."""
    suite = SUITES[SUITE.value]
    targets, ways = dict(suite.targets), WAYS_FLAG.value or list(WAYS)
    for name in ways:
        if name not in WAYS:
            raise UserError(f"--ways={name}: no such way; {nearest(name, WAYS)}")
    if SMOKE.value:
        flags.FLAGS.seeds, flags.FLAGS.evaluations, flags.FLAGS.episodes = 2, 2, 4
        targets = dict(list(targets.items())[:2])
    prefix = Path(RESULTS.value or Path(WORKDIR.value).expanduser() / f"rl_{SUITE.value}")
    steps = STEPS.value or (8192 if SMOKE.value else suite.steps)
    record.begin_record(
        prefix, {"suite": SUITE.value, "seeds": SEEDS.value, "steps": steps, "episodes": EPISODES.value}
    )
    record.add_facts(
        prefix, commits=record.commit(), devices=jax.devices()[0].device_kind, versions=environment.versions()
    )
    sources = train_sources(suite, 8192 if SMOKE.value else suite.source_steps)
    for target, changes in targets.items():
        config = recipe.override(suite.recipe.get_config(), (*changes.items(), ("rl.total_timesteps", steps)))
        for name in ways:
            rows = record.read_rows(prefix)
            if not any((row["target"], row["way"]) == (target, name) for row in rows):
                say(f"--- {target}, {name}")
                record.write_rows(prefix, [*rows, *measure_way(config, suite, target, name, sources)])
    say(report.write_report(prefix))


def train_sources(suite: Suite, steps: int) -> list[policy_transfer.SourcePolicy]:
    """Return the source policies of all seeds, trained where the workdir does not have them."""
    folder = Path(WORKDIR.value).expanduser() / f"sources_{SUITE.value}_{steps}"
    paths = [folder / f"seed{seed}.safetensors" for seed in range(SEEDS.value)]
    if not all(path.is_file() for path in paths):
        say("--- the source")
        config = recipe.override(suite.recipe.get_config(), (*suite.source.items(), ("rl.total_timesteps", steps)))
        env = envs.make_env(config.rl.env, config.rl.env_params)
        network = policy_task.make_policy(config, env)
        variables, curves = seeds.train_seeds(
            config, env, seeds.init_variables(config, env, SEEDS.value), eval_schedule()
        )
        say(f"source, last evaluation by seed: {' '.join(f'{value:.1f}' for value in curves[:, -1])}")
        for path, policy in zip(paths, seeds.unstack_trees(jax.device_get(variables)), strict=True):
            facts = {"world": env.name, "spaces": env.spaces, "physics": dict(env.params)}
            policy_transfer.save(path, policy, policy_task.policy_options(network), facts, policy["moments"])
    return [policy_transfer.load(path) for path in paths]


def measure_way(
    config: Any, suite: Suite, target: str, name: str, sources: list[policy_transfer.SourcePolicy]
) -> list[dict[str, Any]]:
    """Return a row for each seed of one way into one target."""
    env, way = envs.make_env(config.rl.env, config.rl.env_params), WAYS[name]
    initial = seeds.unstack_trees(seeds.init_variables(config, env, SEEDS.value))
    starts = [
        {**policy, **policy_transfer.load_components(policy, source_policy, way.components, True, env.spaces)[0]}
        for policy, source_policy in zip(initial, sources, strict=True)
    ]
    teacher = None
    if way.kickstart:
        if sources[0].spaces != env.spaces:
            return []
        teachers = [
            policy_transfer.load_components(
                policy, source_policy, policy_transfer.DEFAULT_COMPONENTS, False, env.spaces
            )[0]
            for policy, source_policy in zip(initial, sources, strict=True)
        ]
        teacher = seeds.stack_trees(teachers)
    config = recipe.override(config, (("freeze.recipe", way.recipe), ("rl.kickstart", way.kickstart)))
    _, curves = seeds.train_seeds(config, env, seeds.stack_trees(starts), eval_schedule(), teacher)
    say(f"first {curves[:, 0].mean():.1f}, last {curves[:, -1].mean():.1f} (mean of {len(curves)} seeds)")
    distance = physics_distance(suite, config, env)
    return [
        {
            "target": target,
            "way": name,
            "seed": seed,
            "distance": distance,
            "curve": " ".join(f"{v:.4g}" for v in curve),
        }
        for seed, curve in enumerate(curves)
    ]


def eval_schedule() -> seeds.EvalSchedule:
    """Return how a policy is tested."""
    return seeds.EvalSchedule(EVALUATIONS.value, EPISODES.value)


def physics_distance(suite: Suite, config: Any, env: Env) -> float:
    """Return how far the physics are apart: root of the summed squares of log ratios; NaN between different worlds.

    A sign that differs counts as a ratio of 100.
    """
    source_config = recipe.override(suite.recipe.get_config(), tuple(suite.source.items()))
    if source_config.rl.env != env.name:
        return float("nan")
    source_params: dict[str, Any] = dict(envs.make_env(source_config.rl.env, source_config.rl.env_params).params)
    total = 0.0
    for name, value in env.params:
        if isinstance(value, float) and value != source_params[name]:
            ratio = value / source_params[name]
            total += math.log(ratio if ratio > 0 else 100.0) ** 2
    return math.sqrt(total)


def study_recipes() -> None:
    """Train what has no rows yet, then write the report."""
    names = RECIPES_FLAG.value or list(RECIPES)
    for name in names:
        if name not in RECIPES:
            raise UserError(f"--recipes={name}: no such recipe; {nearest(name, RECIPES)}")
    prefix = Path(RESULTS.value)
    record.begin_record(prefix, {"tests": RECIPE_SCHEDULE._asdict(), "seeds": SEEDS.value})
    record.add_facts(
        prefix, commits=record.commit(), devices=jax.devices()[0].device_kind, versions=environment.versions()
    )
    for name in names:
        rows = record.read_rows(prefix)
        if not any(row["recipe"] == name for row in rows):
            say(f"--- {name}, {SEEDS.value} seeds")
            record.write_rows(prefix, [*rows, *measure_recipe(name)])
    say(write_recipe_report(prefix))


def measure_recipe(name: str) -> list[dict[str, Any]]:
    """Return a row for each seed of a recipe."""
    module, variant, _ = RECIPES[name]
    config = module.get_config(variant)
    env = envs.make_env(config.rl.env, config.rl.env_params)
    start = seeds.init_variables(config, env, SEEDS.value)
    program = seeds.compile_training(config, env, start, RECIPE_SCHEDULE)  # learn finds it again
    begin = time.monotonic()
    _, curves = seeds.train_seeds(config, env, start, RECIPE_SCHEDULE)
    seconds = time.monotonic() - begin
    say(f"compiled in {program.seconds:.0f} s, trained and tested in {seconds:.0f} s: {curves[:, -1].round(1)}")
    shared = {"steps": config.rl.total_timesteps // config.batch_size * config.batch_size, "seconds_all_seeds": seconds}
    return [
        {"recipe": name, "seed": seed, "last": float(curve[-1]), **shared, "curve": " ".join(f"{v:.4g}" for v in curve)}
        for seed, curve in enumerate(curves)
    ]


def write_recipe_report(prefix: Path) -> str:
    """Write ``PREFIX.md`` and ``PREFIX.png``; return the table."""
    rows, lines = record.read_rows(prefix), []
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.4), dpi=110, layout="constrained")
    axes: Any = np.ravel(figure.subplots(1, len(names), squeeze=False))
    for axis, name in zip(axes, names, strict=True):
        selected, goal = [row for row in rows if row["recipe"] == name], RECIPES[name][2]
        last, steps = [float(row["last"]) for row in selected], int(selected[0]["steps"])
        mean, half = t_interval(last)
        reached = sum(value > goal for value in last)
        cells = [f"{mean:.1f}" + (f" ± {half:.1f}" if half else ""), f"{min(last):.1f}", f"{reached} of {len(last)}"]
        lines.append([name, f"{steps:,}", *cells, f"{goal:g}", f"{float(selected[0]['seconds_all_seeds']):.0f}"])
        for row in selected:
            curve = [float(v) for v in row["curve"].split()]
            axis.plot(np.linspace(0, steps, len(curve)), curve, lw=1, alpha=0.8)
        axis.axhline(goal, color="black", lw=0.8, ls="--")
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("steps")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"return, mean of {RECIPE_SCHEDULE.episodes} greedy episodes")
    disk.save_figure(figure, Path(f"{prefix}.png"), colors=128)
    headers = ["recipe", "steps", "return after training", "worst seed", "above the goal", "goal", "seconds, all seeds"]
    text = html.to_markdown(html.Table(headers, lines))
    disk.write_text(
        Path(f"{prefix}.md"), f"{text}\n\nMean and 95 % interval over the seeds; a line of the picture is a seed.\n"
    )
    return text


if __name__ == "__main__":
    command.run(main)
