"""Train many linear heads on the same features at once: seeds x learning rates x weight decays in one program.

    python -m experiments.linear_heads --config=configs/cifar_resnet.py:article --workdir=DIR
    python -m experiments.linear_heads --config=configs/flowers_mobilenet.py:probe --workdir=DIR --rates=1e-3,1e-2

The recipe gives data, network, features, optimizer, schedule and length; everything but the head is frozen, and the
features are computed once. Writes ``heads.csv`` and ``heads.png``: which rate and decay suit the features.
A seed sets the initial head and the order of examples; the splits of the data are those of the recipe's seed.
"""

import csv
import time
from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from experiments.vmapped_heads import Heads, train_heads
from tl_jax import restore
from tl_jax.config import recipe, validate
from tl_jax.report.plots import format_percent, plot_score_curves, t_interval
from tl_jax.train import workdir
from tl_jax.train.logging import say
from tl_jax.train.state import initial_state
from tl_jax.transfer import phases
from tl_jax.utils import command, disk
from tl_jax.utils.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", "configs/flowers_mobilenet.py:probe", "Recipe.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds.")
RATES = flags.DEFINE_list("rates", ["1e-4", "3e-4", "1e-3", "3e-3", "1e-2"], "Learning rates.")
DECAYS = flags.DEFINE_list("decays", ["0"], "Weight decays.")


def main(_: list[str]) -> None:
    """Train, write, draw, tell."""
    logging.set_verbosity(logging.WARNING)
    start = time.monotonic()
    config = recipe.override(CONFIG.value, (("seeds", ()), ("arms", ()), ("phases", ()), ("freeze.recipe", "head")))
    validate.validate(config)
    rates, decays = ([float(value) for value in flag.value] for flag in (RATES, DECAYS))
    task = restore.make_task(config)
    (phase,) = phases.resolve(config, task.sizes, task.stages)
    assert task.cache_features
    features_task = task.cache_features(task, initial_state(task, config.seed).variables, phase)
    if features_task is task:
        raise UserError(
            "the features of this recipe change from epoch to epoch, or there is no room for them: switch its "
            "augmentation off, set --config.cache.views=8, or raise --config.cache.gigabytes"
        )
    counts = f"{len(SEEDS.value)} seeds, {len(rates)} rates, {len(decays)} decays, {phase.stop:,} steps"
    say(f"{task.name}: heads for {counts} ...")
    heads = train_heads(features_task, phase, [int(seed) for seed in SEEDS.value], rates, decays)
    folder = Path(WORKDIR.value).expanduser()
    with workdir.exclusive(folder):
        write_results(heads, rates, decays, task.name, folder)
    say(f"{heads.seconds['compile']:.1f} s compiling, {heads.seconds['train']:.1f} s training, "
        f"{time.monotonic() - start:.1f} s in all")  # fmt: skip


def write_results(heads: Heads, rates: list[float], decays: list[float], name: str, folder: Path) -> None:
    """Write ``heads.csv`` and ``heads.png``; print a line for each rate and decay and the one to take."""
    with disk.atomic_write(folder / "heads.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", "rate", "decay", "validation", "test", "loss"))
        for (s, r, w), test in np.ndenumerate(heads.test):
            numbers = (heads.validation[s, r, w], test, heads.loss[s, r, w])
            writer.writerow((SEEDS.value[s], rates[r], decays[w], *(f"{number:.5g}" for number in numbers)))
    say(f"{'rate':>8} {'decay':>8}   validation      test (mean and 95 % interval over {len(heads.test)} seeds)")
    for (r, w), _ in np.ndenumerate(heads.test[0]):
        accuracies = [_format_interval(split[:, r, w]) for split in (heads.validation, heads.test)]
        say(f"{rates[r]:8g} {decays[w]:8g}   {accuracies[0]:<13} {accuracies[1]}")
    means = heads.validation.mean(0)
    if np.isfinite(means).any():
        r, w = np.unravel_index(np.nanargmax(means), means.shape)
        accuracy = _format_interval(heads.test[:, r, w])
        say(f"best on validation: rate {rates[r]:g}, decay {decays[w]:g}: test {accuracy} %")
    lines = {f"decay {decay:g}": heads.test[:, :, w] for w, decay in enumerate(decays)}
    say(
        f"{folder / 'heads.csv'}, {plot_score_curves(np.asarray(rates), lines, f'heads: {name}', folder / 'heads.png')}"
    )


def _format_interval(values: np.ndarray) -> str:
    mean, half = t_interval(values)
    return format_percent({"mean": mean, "interval95": half})


if __name__ == "__main__":
    command.run(main)
