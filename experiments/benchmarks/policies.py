"""Benchmark of policy training against Stable-Baselines3: CartPole steps per second, with one seed and with eight.

    python -m experiments.benchmarks.policies

Both train PPO with two towers of 64 and 64 units, 2,048 steps per update and 10 passes over them: with
configs/cartpole_ppo.py (16 environments, 4 minibatches of 512), and with Stable-Baselines3's defaults (one environment,
32 minibatches of 64). In turns, each in its own process. Prints and writes medians over the turns, their ratios, and
the fraction of the matrix product throughput. Needs requirements-bench.txt.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks.turns import Worker, describe_machine, matmul_rate, measure_turns, medians, serve_calls
from tl_jax.utils import command, disk

PEER = flags.DEFINE_enum("peer", "", ["", "tl_jax", "stable_baselines3"], "Run as this library's process; internal.")
SEEDS = flags.DEFINE_integer("seeds", 1, "With --peer: number of seeds.")
NUM_ENVS = flags.DEFINE_integer("num_envs", 16, "With --peer: number of environments.")
MINIBATCHES = flags.DEFINE_integer("minibatches", 4, "With --peer: number of minibatches.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns per library.")
MIN_SECONDS = flags.DEFINE_float("min_seconds", 5.0, "Minimum seconds per turn.")
MANY = flags.DEFINE_integer("many", 8, "Number of seeds trained at once.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/policies.json", "Output file.")
CASES = {"recipe": (16, 4), "defaults of Stable-Baselines3": (1, 32)}  # worlds, minibatches
UPDATE, PASSES, OBSERVATION, WIDTH, ACTIONS = 2048, 10, 4, 64, 2
# Multiplications and additions of one observation in both towers and heads, and how often a step of the world costs
# them: to act, for the value of what follows, and three times (forward, gradients of inputs and of weights) a pass.
FORWARD = 2 * (2 * (OBSERVATION * WIDTH + WIDTH * WIDTH) + WIDTH * (ACTIONS + 1))
FLOPS = FORWARD * (2 + 3 * PASSES)
Calls = Mapping[str, Callable[[int], object]]  # takes the number of updates


def main(_: list[str]) -> None:
    """Answer as a process of a library, or measure, print and write."""
    if PEER.value:
        return serve_calls(_tl_jax if PEER.value == "tl_jax" else _stable_baselines3)
    rate = matmul_rate(2048)
    cases = {name: _compared(name, *case, rate) for name, case in CASES.items()}
    path = Path(RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, json.dumps({**describe_machine(), "matmul_flops": rate, "cases": cases}, indent=1) + "\n")


def _compared(name: str, num_envs: int, minibatches: int, rate: float) -> dict[str, Any]:
    module, case = "experiments.benchmarks.policies", (f"--num_envs={num_envs}", f"--minibatches={minibatches}")
    workers = {
        "one seed": Worker("tl_jax", *case, module=module),
        f"{MANY.value} seeds": Worker("tl_jax", f"--seeds={MANY.value}", *case, module=module),
        "stable_baselines3": Worker("stable_baselines3", *case, module=module),
    }
    seconds = measure_turns(workers, "update", TURNS.value, MIN_SECONDS.value)
    for worker in workers.values():
        worker.close()
    one, many, peer = medians(seconds).values()
    speeds = [UPDATE / one, MANY.value * UPDATE / many, UPDATE / peer]
    rates = dict(zip(workers, speeds, strict=True))
    share, shares = many / one, [value * FLOPS / rate for value in speeds]
    print(f"{name}: " + ", ".join(f"{worker_name} {value:,.0f}" for worker_name, value in rates.items()) + " steps/s")
    one_ratio, many_ratio = speeds[0] / speeds[2], speeds[1] / speeds[2]
    print(f"    one seed {one_ratio:.1f} and {MANY.value} seeds {many_ratio:.1f} times Stable-Baselines3")
    print(f"    {MANY.value} seeds take {share:.2f} times as long as one; share of a matrix product's rate", end=" ")
    print(", ".join(f"{100 * value:.0f} %" for value in shares), flush=True)
    return {
        "seconds": seconds,
        "steps_per_second": rates,
        "ratio": many_ratio,
        "ratio_of_one_seed": one_ratio,
        "time_of_many_over_one": share,
        "share_of_matmul": dict(zip(workers, shares, strict=True)),
    }


def _tl_jax() -> Calls:
    import jax

    from configs import cartpole_ppo
    from experiments.rl_transfer import seeds
    from tl_jax.config import recipe, schema
    from tl_jax.rl import envs, ppo
    from tl_jax.rl.ppo import make_update
    from tl_jax.tasks import reinforcement
    from tl_jax.transfer import phases
    from tl_jax.transfer.optimizer import make_optimizer

    config: Any = schema.freeze(recipe.override(cartpole_ppo.get_config(), _case()))
    env = envs.make_env(config.rl.env)
    network = reinforcement.make_policy(config, env)
    (phase,) = phases.resolve(config, {"train": config.rl.total_timesteps}, network.stage_names(False))
    update = make_update(env, network, reinforcement.make_ppo_config(config), phase.optim, phase.rules)
    init = make_optimizer(phase.optim, phase.rules).init

    def run(state, key, count):
        return jax.lax.fori_loop(0, count, lambda _, state: update(state, key, config.optim.lr)[0], state)

    program = jax.jit(jax.vmap(run, in_axes=(0, 0, None)), donate_argnums=0)
    start = jax.vmap(lambda variables: ppo.init_state(variables, init))(seeds.init_variables(config, env, SEEDS.value))
    keys = seeds.split_groups(seeds.stream_keys(SEEDS.value))
    states = seeds.split_groups(start)

    def updates(count: int) -> None:
        states[:] = seeds.run_parallel(program, [(state, key, count) for state, key in zip(states, keys, strict=True)])

    return {"update": updates}


def _case() -> tuple[tuple[str, Any], ...]:
    return (
        ("rl.num_envs", NUM_ENVS.value),
        ("batch_size", UPDATE),
        ("rl.minibatches", MINIBATCHES.value),
        ("rl.ppo_epochs", PASSES),
    )


def _stable_baselines3() -> Calls:
    import sys

    modules: dict[str, Any] = sys.modules  # pyright: ignore[reportAssignmentType]
    modules["torch.utils.tensorboard"] = None  # it brings TensorFlow, which crashes beside torch; not needed here
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)  # its networks are small; two threads were not tried
    towers = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    shape: dict[str, Any] = {
        "n_steps": UPDATE // NUM_ENVS.value,
        "batch_size": UPDATE // MINIBATCHES.value,
        "n_epochs": PASSES,
    }
    agent = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=NUM_ENVS.value), **shape,
        learning_rate=1e-3, gamma=0.99, gae_lambda=0.95, clip_range=0.2, ent_coef=0.01, vf_coef=0.5,
        max_grad_norm=0.5, policy_kwargs=towers, device="cpu",
    )  # fmt: skip
    return {"update": lambda count: agent.learn(count * UPDATE, reset_num_timesteps=False)}


if __name__ == "__main__":
    command.run(main)
