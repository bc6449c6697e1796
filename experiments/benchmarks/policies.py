"""Training of a policy beside Stable-Baselines3: steps of CartPole a second, one seed and eight in one program.

    python -m experiments.benchmarks.policies

Both train PPO by configs/cartpole_ppo.py (two towers of 64 and 64, 16 worlds, 2,048 steps an update, 10 passes in 4
minibatches), without normalising observations, in turns, each in a process of its own. Prints and writes medians over
the turns and their ratios. Needs requirements-bench.txt.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags

from experiments.benchmarks.turns import Worker, machine, measure, medians, serve
from tl_jax import command

PEER = flags.DEFINE_enum("peer", "", ["", "tl_jax", "stable_baselines3"], "Be the process of this library.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Of that process.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns of each.")
LEAST = flags.DEFINE_float("least", 5.0, "Seconds of a turn at least.")
MANY = flags.DEFINE_integer("many", 8, "Seeds in one program.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/policies.json", "Where the numbers go.")
UPDATE = 2048  # steps
Calls = Mapping[str, Callable[[int], object]]  # takes the number of updates


def main(_: list[str]) -> None:
    """Answer as a process of a library, or measure, print and write."""
    if PEER.value:
        return serve(_tl_jax if PEER.value == "tl_jax" else _stable_baselines3)
    module = "experiments.benchmarks.policies"
    workers = {
        "one seed": Worker("tl_jax", module=module),
        f"{MANY.value} seeds": Worker("tl_jax", f"--seeds={MANY.value}", module=module),
        "stable_baselines3": Worker("stable_baselines3", module=module),
    }
    taken = measure(workers, "update", TURNS.value, LEAST.value)
    one, many, peer = medians(taken).values()
    rates = {
        "one seed": UPDATE / one,
        f"{MANY.value} seeds": MANY.value * UPDATE / many,
        "stable_baselines3": UPDATE / peer,
    }
    ratio, share = rates[f"{MANY.value} seeds"] / rates["stable_baselines3"], many / one
    print(", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + " steps/s")
    print(f"{MANY.value} seeds: {ratio:.1f} times Stable-Baselines3, {share:.2f} times as long as one seed")
    found = {"seconds": taken, "steps_per_second": rates, "ratio": ratio, "time_of_many_over_one": share}
    path = Path(RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(), **found}, indent=1) + "\n")


def _tl_jax() -> Calls:
    import jax

    from configs import base, cartpole_ppo
    from tl_jax.rl import training, worlds
    from tl_jax.rl.ppo import make_update
    from tl_jax.tasks import policy, policy_seeds
    from tl_jax.transfer import phases
    from tl_jax.transfer.optimizer import make_optimizer

    config = base.override(cartpole_ppo.get_config(), (("rl.normalize", False),))
    world = worlds.make(config.rl.world)
    network = policy.network(config, world)
    (phase,) = phases.resolve(config, {"train": config.rl.steps}, network.part_names(False))
    update = make_update(world, network, policy.how(config), phase.optim, phase.rules)
    init = make_optimizer(phase.optim, phase.rules).init

    def run(state, key, count):
        return jax.lax.fori_loop(0, count, lambda _, state: update(state, key, config.optim.lr)[0], state)

    program = jax.jit(jax.vmap(run, in_axes=(0, 0, None)), donate_argnums=0)
    start = jax.vmap(lambda variables: training.begin(variables, init))
    kept = [start(policy_seeds.drawn(config, world, SEEDS.value))]
    keys = policy_seeds.stream_keys(SEEDS.value)

    def updates(count: int) -> None:
        kept[0] = jax.block_until_ready(program(kept[0], keys, count))

    return {"update": updates}


def _stable_baselines3() -> Calls:
    import sys

    sys.modules["torch.utils.tensorboard"] = None  # it brings TensorFlow, which crashes beside torch; not needed here
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)  # its networks are small; two threads were not tried
    towers = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    agent = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=16), learning_rate=1e-3, n_steps=UPDATE // 16,
        batch_size=UPDATE // 4, n_epochs=10, gamma=0.99, gae_lambda=0.95, clip_range=0.2, ent_coef=0.01,
        vf_coef=0.5, max_grad_norm=0.5, policy_kwargs=towers, device="cpu",
    )  # fmt: skip
    return {"update": lambda count: agent.learn(count * UPDATE, reset_num_timesteps=False)}


if __name__ == "__main__":
    command.run(main)
