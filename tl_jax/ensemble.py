"""Ensembles: networks of one configuration trained with consecutive seeds, whose probabilities are averaged.

The log loss of the mean is at most the mean of the log losses (Jensen), and the accuracy is usually higher: deep
ensembles, Lakshminarayanan et al. 2017, arXiv:1612.01474. ``measure`` compares on the test split: the soup of weights
(Wortsman et al. 2022, arXiv:2203.05482), the mean of the probabilities, mirrored views of images, and a temperature
fitted to the mean (Guo et al. 2017, arXiv:1706.04599). Nothing is selected on the test split.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.config import recipe, schema
from tl_jax.metrics import classification
from tl_jax.metrics.classification import Predictions
from tl_jax.metrics.intervals import paired_interval
from tl_jax.restore import fitted_values, restore, task_with_data
from tl_jax.tasks import image_evaluation
from tl_jax.train import sharding, workdir
from tl_jax.train.evaluate import EvalResult, Members, average, evaluate, score
from tl_jax.train.run_config import RunConfig
from tl_jax.train.task import Task
from tl_jax.train.workdir import read_summary
from tl_jax.transfer import adapters
from tl_jax.transfer.weight_averaging import uniform_soup
from tl_jax.utils.errors import UserError

FILE = "ensemble.json"
ONE_VIEW, MIRRORED = 1, 2  # averaged views of an image: itself, or itself and its mirror image
VIEW_NAMES = {MIRRORED: "mirrored views", 10: "ten views"}
SPLITS = ("train", "validation", "test")


class Ensemble(NamedTuple):
    """The networks of an ensemble.

    Attributes:
        task: task of the first network.
        networks: variables of each network.
        steps: training step of each network.
    """

    task: Task
    networks: tuple[Any, ...]
    steps: tuple[int, ...]


class Measured(NamedTuple):
    """Evaluation of an ensemble on the test split.

    Attributes:
        ensemble: its networks.
        result: evaluation of its final predictions.
        held_out: its final predictions on the validation split; None if that is empty.
        calibration: temperature, and calibration error and loss before and after; {} without calibration.
        report: comparison of single networks, soup and ensemble, for ``ensemble.json``.
    """

    ensemble: Ensemble
    result: EvalResult
    held_out: Predictions | None
    calibration: dict[str, float]
    report: dict[str, Any]


class Row(NamedTuple):
    """A way to predict: its name and its test predictions, one entry per network that predicts on its own."""

    name: str
    predictions: Sequence[Predictions]


def runs(config: RunConfig, folder: Path) -> list[tuple[Path, RunConfig]]:
    """Return the folder and the configuration of each network."""
    members = recipe.comparison_runs(config)
    return [(folder / arm / f"seed{seed}", schema.freeze(run)) for arm, seed, run in members]


def open_networks(config: RunConfig, folder: Path, data: bool) -> Ensemble:
    """Load the networks of an ensemble from its folder.

    Args:
        config: configuration of the ensemble.
        folder: folder of the ensemble.
        data: whether the task loads its examples.

    Raises:
        UserError: a network is not trained or was trained on other data than the first, or the folder is of another
            run.
    """
    workdir.check_owner(folder, schema.to_dict(config), schema.unused_fields(config.task))
    members = runs(config, folder)
    restored = [restore(run, path, data=False) for path, run in members]
    _check_same_data([path for path, _ in members])
    task = _first_task(config, folder) if data else restored[0][0]
    states = [state for _, _, state in restored]
    return Ensemble(task, tuple(state.variables for state in states), tuple(int(state.step) for state in states))


def _first_task(config: RunConfig, folder: Path) -> Task:
    """Return the task of the first network with its examples, which all networks share."""
    path, run = runs(config, folder)[0]
    return task_with_data(run, path)


def _check_same_data(folders: Sequence[Path]) -> None:
    """Refuse networks with other splits, or another order of classes, than the first.

    Otherwise a test example of one network could be a training example of another, and outputs of different classes
    would be averaged. Fingerprints of the data do not depend on the order of the classes.
    """
    first, *others = [workdir.stored_facts(folder) for folder in folders]
    for folder, facts in zip(folders[1:], others, strict=True):
        different = [name for name in SPLITS if facts["data_sha256"].get(name) != first["data_sha256"].get(name)]
        different = [f"{name} split" for name in different]
        different += ["order of classes"] if facts["classes"] != first["classes"] else []
        if different:
            raise UserError(
                f"{folder}: the {different[0]} is not that of {folders[0]}; restore the data, delete {folder}, and run "
                "the same command again"
            )


def load(config: RunConfig, folder: Path, data: bool = False) -> tuple[Task, Members, int]:
    """Return the task of an ensemble, its networks with their temperature, and the step of the first network.

    Args:
        config: configuration of the ensemble.
        folder: folder of the ensemble.
        data: whether the task loads its examples.
    """
    ensemble = open_networks(config, folder, data)
    temperature = _load_temperature(config, folder, ensemble) if _calibrates(config) else 1.0
    return ensemble.task, Members(ensemble.networks, temperature), ensemble.steps[0]


def _calibrates(config: RunConfig) -> bool:
    return bool(config.flat().get("calibrate"))


def _load_temperature(config: RunConfig, folder: Path, ensemble: Ensemble) -> float:
    """Return the temperature of a finished ensemble; refit it if it belongs to other checkpoints."""
    summary = read_summary(folder)
    if tuple(summary.get("tested_steps", ())) == ensemble.steps:
        return fitted_values(summary).get("temperature", 1.0)
    held_out = _held_out(_first_task(config, folder), ensemble.networks)
    return classification.fit_temperature(*held_out) if held_out else 1.0


def _predict(task: Task, networks: Sequence[Any], split: str) -> list[Predictions]:
    """Return the predictions of each network on a split."""
    return [evaluate(task, network, split, final=True).evaluation.predictions for network in networks]


def _held_out(task: Task, networks: Sequence[Any]) -> Predictions | None:
    """Return the mean predictions on the validation split; None if it is empty."""
    return average(_predict(task, networks, "validation")) if task.sizes.get("validation") else None


def measure(config: RunConfig, folder: Path) -> Measured:
    """Evaluate a trained ensemble, and the simpler ways to predict it is compared with, on the same examples.

    Args:
        config: configuration of the ensemble.
        folder: folder of the ensemble.
    """
    ensemble = open_networks(config, folder, data=True)
    task, networks, _ = ensemble
    views = getattr(task.config, "test_views", ONE_VIEW)
    tested = {count: _predict(variant, networks, "test") for count, variant in _variants(task, views).items()}
    held_out = _held_out(task, networks)
    temperature = classification.fit_temperature(*held_out) if held_out else None
    calibrates = _calibrates(config) and held_out is not None
    used = temperature if calibrates and temperature else 1.0
    result = score(task, average(tested[views], used))
    calibration = {}
    if calibrates and held_out and sharding.is_first_process():
        calibration = image_evaluation.calibrate(average(tested[views]), held_out, folder)
    rows = _rows(ensemble, tested, views, temperature)
    report = _compare(rows, (task.test_details(result.evaluation.predictions) or {}).get("groups"))
    report |= {
        "temperature": temperature,
        "final": rows[-1].name if calibrates else _name(len(networks), views),
        "networks": [_scores(each) for each in tested[ONE_VIEW]],
        "disagreement": _disagreement(tested[ONE_VIEW]),
        "notes": _notes(ensemble.task.config, [path for path, _ in runs(config, folder)], held_out is None),
    }
    return Measured(ensemble, result, average([held_out], used) if held_out else None, calibration, report)


def _variants(task: Task, views: int) -> dict[int, Task]:
    """Return number of averaged views -> task, for each number that is compared, in increasing order."""
    counts = sorted({ONE_VIEW, MIRRORED, views})
    variants = {count: task if count == views else task.with_views(count) for count in counts}
    return {count: variant for count, variant in variants.items() if variant is not None}


def _rows(
    ensemble: Ensemble, tested: Mapping[int, list[Predictions]], views: int, temperature: float | None
) -> list[Row]:
    """Return the compared ways to predict; the last one is calibrated if there is a temperature.

    Args:
        ensemble: the networks.
        tested: number of views -> test predictions of each network.
        views: number of views of the configuration.
        temperature: fitted to the validation split with ``views``; None for none.
    """
    task = ensemble.task.with_views(ONE_VIEW) or ensemble.task
    count = len(ensemble.networks)
    soup = uniform_soup([_merged(network, task.config) for network in ensemble.networks])
    rows = [
        Row(f"one network, mean of {count}", tested[ONE_VIEW]),
        Row("soup of their weights", _predict(task, [soup], "test")),
    ]
    rows += [Row(_name(count, each), [average(predictions)]) for each, predictions in tested.items()]
    if temperature is None:
        return rows
    name = f"{_name(count, views)}, temperature {temperature:.2f}"
    return [*rows, Row(name, [average(tested[views], temperature)])]


def _name(count: int, views: int) -> str:
    """Return the name of an ensemble of ``count`` networks that each average ``views`` views."""
    return f"ensemble of {count}" + ("" if views == ONE_VIEW else f", {VIEW_NAMES[views]}")


def _merged(variables: Any, config: Any) -> dict[str, Any]:
    """Return variables with low-rank adapters merged into the kernels; averaging the factors would be wrong."""
    return {**variables, "params": adapters.merge(variables["params"], config.adapt)}


def _compare(rows: Sequence[Row], groups: Sequence[int] | None) -> dict[str, Any]:
    """Return the metrics of each row, and its differences to the first, the mean over networks.

    A difference has a 95 % interval from a paired bootstrap over test examples, or over groups of them. The networks
    are fixed, so the interval does not include the variance of training.
    """
    drawn = None if groups is None else np.asarray(groups)
    values = [_example_values(row.predictions) for row in rows]
    compared = [{"name": row.name, **_scores(*row.predictions)} for row in rows]
    for entry, own in zip(compared[1:], values[1:], strict=True):
        entry["difference"] = {name: _difference(own[name] - values[0][name], drawn) for name in own}
    examples = len(rows[0].predictions[0].labels)
    over = f"{examples:,} examples" if drawn is None else f"{len(np.unique(drawn)):,} groups"
    return {"examples": examples, "over": over, "rows": compared}


def _scores(*predictions: Predictions) -> dict[str, Any]:
    """Return accuracy, log loss in nats and expected calibration error, as means over networks."""
    values = {name: float(each.mean()) for name, each in _example_values(predictions).items()}
    return {**values, "ece": float(np.mean([classification.reliability_bins(*each).ece for each in predictions]))}


def _example_values(predictions: Sequence[Predictions]) -> dict[str, np.ndarray]:
    """Return accuracy and log loss in nats of each test example (N,), as means over networks."""
    return {
        "accuracy": np.mean([each.probabilities.argmax(1) == each.labels for each in predictions], axis=0),
        "loss": -np.mean([classification.log_likelihoods(*each) for each in predictions], axis=0),
    }


def _difference(differences: np.ndarray, groups: np.ndarray | None) -> dict[str, float]:
    if groups is not None and len(np.unique(groups)) < 2:
        return {"mean": float(differences.mean())}  # a single group gives no interval
    low, high = paired_interval(differences, groups)
    return {"mean": float(differences.mean()), "low": low, "high": high}


def _disagreement(predictions: Sequence[Predictions]) -> float:
    """Return the share of test examples on which two networks predict different classes, averaged over pairs."""
    pairs = itertools.combinations([each.probabilities.argmax(1) for each in predictions], 2)
    return float(np.mean([(one != other).mean() for one, other in pairs]))


def _notes(config: Any, folders: Sequence[Path], lacks_validation: bool) -> list[str]:
    """Return remarks on the rows."""
    notes, start = [], _random_start(config)
    if len({read_summary(folder).get("parameters_sha256") for folder in folders}) == 1:
        notes.append(
            "all networks are the same, because nothing in their training is random (as with a fitted head "
            "only); train more of the network, or set config.ensemble=0"
        )
    elif start:
        remedy = "; set config.init.head=logistic to start from the same head" if start == "heads" else ""
        notes.append(f"the soup is expected to fail, as the networks started from different random {start}{remedy}")
    if lacks_validation:
        notes.append("no temperature was fitted, as there is no validation split; raise config.data.validation")
    return notes


def _random_start(config: Any) -> str:
    """Return the weights that differ at the start; soups need runs from one start, arXiv:2203.05482."""
    if config.init.source == "random":
        return "weights"
    # Low-rank adapters start at zero, whatever their random factor.
    return "heads" if config.init.head == "new" else "adapters" if config.adapt.kind == "bottleneck" else ""
