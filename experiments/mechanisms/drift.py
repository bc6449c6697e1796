"""Measure how fine-tuning changes a network: relative weight change and feature similarity (CKA) per stage.

    python -m experiments.mechanisms.drift --workdir=DIR --per_class=20 [--results=PREFIX]

DIR is that of experiments/mechanisms/study.py; each method is represented by its run with the first seed at the chosen
rate. For each stage: the norm of the change over the initial norm (all leaves of the stage, adapters merged), and
linear CKA (arXiv:1905.00414) between the initial and final spatial averages of its map, on the test images. Both are
relative to the run's initial weights, which are random for ``scratch``.
"""

import csv
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from tl_jax import restore, transferability
from tl_jax.config import schema, stored
from tl_jax.tasks import image_network, image_task
from tl_jax.tasks.losses import Network
from tl_jax.train import evaluate
from tl_jax.train.logging import say
from tl_jax.transfer import adapters
from tl_jax.utils import command, disk, tree

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of the command; not on import, so that the functions can be called beside other flags."""
    flags.DEFINE_string("workdir", None, "Folder of the study.", required=True)
    flags.DEFINE_integer("per_class", 20, "Examples per class of the analyzed runs.")
    flags.DEFINE_string("results", "", "Prefix of table and figure; in the workdir if empty.")


class Drift(NamedTuple):
    """What became of one part of a network."""

    mechanism: str
    part: str
    weight_distance: float
    cka: float


def main(_: list[str]) -> None:
    """Measure every finished mechanism and draw the result."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(FLAGS.workdir).expanduser()
    drifts: list[Drift] = []
    for path in sorted(folder.glob(f"*/per_class{FLAGS.per_class}/choice.json")):
        choice = json.loads(path.read_text())
        run = path.parent / f"rate{choice['rate']}" / f"seed{choice['seeds'][0]}"
        if (run / "checkpoints").is_dir() and json.loads((run / "summary.json").read_text())["steps"]:
            say(f"--- {choice['mechanism']}")
            drifts += measure_drift(choice["mechanism"], run)
    prefix = FLAGS.results or str(folder / "drift")
    with disk.atomic_write(Path(f"{prefix}.csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Drift._fields)
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in drifts)
    say(f"{prefix}.csv, {plot_drift(drifts, Path(f'{prefix}.png'))}")


def measure_drift(name: str, folder: Path) -> list[Drift]:
    """Return the drift of each part between the start and the end of a run."""
    config = schema.freeze(stored.get_config(str(folder)))
    task, start, end = restore.restore(config, folder, weights=True)
    adapt_config = config.adapt
    network = load_run_network(config, task.facts["input"])
    before, after = (adapters.merge(state.params, adapt_config) for state in (start, end))
    pooled = [pooled_features(network, state.variables, task) for state in (start, end)]
    return [
        Drift(
            name,
            part,
            relative_change(before[part], after[part]),
            transferability.linear_cka(pooled[0][part], pooled[1][part]),
        )
        for part in task.stages
        if part in before
    ]


def load_run_network(config: Any, inputs: Mapping[str, Any]) -> Network:
    """Return the network of a run; its weights do not matter here."""
    loaded = (
        image_network.random_network(config, 0)
        if config.init.source == "random"
        else image_network.load_network(config)
    )
    return Network(
        loaded.model.clone(num_classes=0),
        image_task.Inputs(**inputs),
        config.adapt,
    )


@functools.cache
def make_pooled(net: Network, names: tuple[str, ...]):
    """Return the function (variables, batch) -> averages over positions of the named maps, side by side (N, D)."""

    def pooled(variables, batch):
        endpoints = net.predict(variables, batch["inputs"])[1]
        return jnp.concatenate([endpoints[name].astype(jnp.float32).mean((1, 2)) for name in names], axis=1)

    return pooled


def pooled_features(network: Network, variables: Any, task: Any) -> dict[str, np.ndarray]:
    """Return the averages over positions (N, C) of every part's map on the test pictures."""
    names = tuple(task.stages)
    rows = evaluate.extract(make_pooled(network, names), variables, task.eval_batches("test"))
    batch = next(task.eval_batches("test"))
    shapes = jax.eval_shape(lambda: network.predict(variables, batch["inputs"])[1])
    ends = np.cumsum([shapes[name].shape[-1] for name in names])
    return dict(zip(names, np.split(rows, ends[:-1], axis=1), strict=True))


def relative_change(before: Any, after: Any) -> float:
    """Return the norm of the change of a part over its norm at the start."""
    old, new = tree.flatten(before), tree.flatten(after)
    change = sum(float(np.square(np.asarray(new[path]) - np.asarray(leaf)).sum()) for path, leaf in old.items())
    return (change / sum(float(np.square(np.asarray(leaf)).sum()) for leaf in old.values())) ** 0.5


def plot_drift(drifts: Sequence[Drift], path: Path) -> Path:
    """Draw both measures, mechanisms down and parts across, as two coloured tables with their numbers.

    Weights move by a hundredth of a percent here and by half of their size there: their colours are logarithmic.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    names, stages = (list(dict.fromkeys(getattr(row, key) for row in drifts)) for key in ("mechanism", "part"))
    figure = Figure(figsize=(4 + 1.1 * len(stages), 1.5 + 0.27 * len(names)), dpi=110, layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    measures = (
        ("weight_distance", "change of the weights, % of their norm", "Reds", LogNorm(0.01, 100), 100, "{:.2g}"),
        ("cka", "linear CKA with the start", "Blues_r", Normalize(0, 1), 1, "{:.2f}"),
    )
    for axis, (key, title, colormap, scale, unit, template) in zip(axes, measures, strict=True):
        values = np.full((len(names), len(stages)), np.nan)
        for row in drifts:
            values[names.index(row.mechanism), stages.index(row.part)] = unit * getattr(row, key)
        axis.imshow(np.clip(values, scale.vmin, scale.vmax), aspect="auto", cmap=colormap, norm=scale)
        for (i, j), value in np.ndenumerate(values):
            is_dark = value > 5 if key == "weight_distance" else value < 0.4
            color = "white" if is_dark else "black"
            axis.text(j, i, template.format(value), ha="center", va="center", fontsize=6, color=color)
        axis.set_xticks(range(len(stages)), stages, rotation=45, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(title, fontsize=10)
    return disk.save_figure(figure, path, colors=128)


if __name__ == "__main__":
    define_flags()
    command.run(main)
