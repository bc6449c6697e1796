"""Do the recipes for policies learn, in every seed, and in how many steps and seconds? All seeds in one program.

    python -m experiments.rl_transfer.recipes --results=PREFIX [--recipes=cartpole,acrobot] [--seeds=8]

A recipe is tested before training, 20 times on the way and after it, on 50 greedy episodes that are the same for all
seeds. Writes ``PREFIX.csv`` (a row for each seed, with its learning curve), ``.md`` and ``.png``; rows that are there
are not repeated.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from configs import cartpole_ppo, minatar_ppo
from experiments import record
from experiments.rl_transfer import seeds
from tl_jax import api
from tl_jax.report import html
from tl_jax.report.plots import t_interval
from tl_jax.rl import envs
from tl_jax.train.logging import say
from tl_jax.utils import command, compile_cache, disk
from tl_jax.utils.errors import UserError, nearest

RESULTS = flags.DEFINE_string("results", None, "Prefix of record, table and picture.", required=True)
RECIPES_FLAG = flags.DEFINE_list("recipes", [], "Which recipes; all if empty.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Number of seeds, in one program.")

# name -> (recipe, its variant, return that counts as learned here)
RECIPES: dict[str, tuple[Any, str, float]] = {
    "cartpole": (cartpole_ppo, "", 475.0),
    "acrobot": (cartpole_ppo, "acrobot", -100.0),
    "pendulum": (cartpole_ppo, "pendulum", -250.0),
    "breakout": (minatar_ppo, "", 10.0),
}
EVAL_SCHEDULE = seeds.EvalSchedule(number=20, episodes=50)


def main(_: list[str]) -> None:
    """Train what has no rows yet, then write the report."""
    logging.set_verbosity(logging.WARNING)
    compile_cache.enable()
    names = RECIPES_FLAG.value or list(RECIPES)
    for name in names:
        if name not in RECIPES:
            raise UserError(f"--recipes={name}: no such recipe; {nearest(name, RECIPES)}")
    prefix = Path(RESULTS.value)
    record.begin_record(prefix, {"tests": EVAL_SCHEDULE._asdict(), "seeds": SEEDS.value})
    record.add_facts(prefix, commits=record.commit(), devices=jax.devices()[0].device_kind, versions=api.versions())
    for name in names:
        rows = record.read_rows(prefix)
        if not any(row["recipe"] == name for row in rows):
            say(f"--- {name}, {SEEDS.value} seeds")
            record.write_rows(prefix, [*rows, *measure_recipe(name)])
    say(write_report(prefix))


def measure_recipe(name: str) -> list[dict[str, Any]]:
    """Return a row for each seed of a recipe."""
    recipe, variant, _ = RECIPES[name]
    config = recipe.get_config(variant)
    env = envs.make_env(config.rl.env, config.rl.env_params)
    start = seeds.init_variables(config, env, SEEDS.value)
    program = seeds.compile_training(config, env, start, EVAL_SCHEDULE)  # learn finds it again
    begin = time.monotonic()
    _, curves = seeds.train_seeds(config, env, start, EVAL_SCHEDULE)
    seconds = time.monotonic() - begin
    say(f"compiled in {program.seconds:.0f} s, trained and tested in {seconds:.0f} s: {curves[:, -1].round(1)}")
    shared = {"steps": config.rl.total_timesteps // config.batch_size * config.batch_size, "seconds_all_seeds": seconds}
    return [
        {"recipe": name, "seed": seed, "last": float(curve[-1]), **shared, "curve": " ".join(f"{v:.4g}" for v in curve)}
        for seed, curve in enumerate(curves)
    ]


def write_report(prefix: Path) -> str:
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
    axes[0].set_ylabel(f"return, mean of {EVAL_SCHEDULE.episodes} greedy episodes")
    disk.save_figure(figure, Path(f"{prefix}.png"))
    headers = ["recipe", "steps", "return after training", "worst seed", "above the goal", "goal", "seconds, all seeds"]
    text = html.to_markdown(html.Table(headers, lines))
    disk.write_text(
        Path(f"{prefix}.md"), f"{text}\n\nMean and 95 % interval over the seeds; a line of the picture is a seed.\n"
    )
    return text


if __name__ == "__main__":
    command.run(main)
