"""Mechanisms that are no training run of their own: nearest neighbours, and soups of finished runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax import restore, transferability
from tl_jax.config import recipe, stored
from tl_jax.train import evaluate, sharding
from tl_jax.train.logging import say
from tl_jax.train.state import stream_key
from tl_jax.train.workdir import read_json, write_json
from tl_jax.transfer import weight_averaging
from tl_jax.utils.json_files import parse_row

NEIGHBOR_COUNTS = (1, 3, 5, 10, 20)
# Rate, seed -> folder of the finished LP-FT run, None where it diverged.
RunFunction = Callable[[str, int], Path | None]


def evaluate_knn(
    folder: Path, config: recipe.Config, run: RunFunction, rates: Sequence[str], seeds: Sequence[int]
) -> None:
    """Vote among the nearest training examples in the source's features; their number is chosen on validation."""
    config.init.head, config.init.strength = "new", 0.0
    for seed in seeds:
        config.seed = seed
        task = restore.make_task(config)
        variables = task.init(stream_key(seed, "init"))
        features = {split: _features(task, variables, split) for split in ("train", "validation", "test")}
        (x, y), held_out, test = (features[split] for split in ("train", "validation", "test"))
        counts = [k for k in NEIGHBOR_COUNTS if k <= len(y)]
        scores = {k: _accuracy(transferability.knn(x, y, held_out[0], k), held_out[1]) for k in counts}
        best = max(counts, key=lambda k: (scores[k], k))
        train = 1.0 if best == 1 else _accuracy(transferability.knn(x, y, x, best), y)
        accuracy = _accuracy(transferability.knn(x, y, test[0], best), test[1])
        say(f"--- knn, {len(y)} examples, seed {seed}: k = {best}, test accuracy {accuracy:.4f}")
        _write_summary(folder / f"seed{seed}", config, accuracy, train, len(test[1]), neighbours=best)


def evaluate_soup(
    folder: Path, config: recipe.Config, run: RunFunction, rates: Sequence[str], seeds: Sequence[int]
) -> None:
    """Mix the LP-FT runs at all rates, from one start each seed, as long as validation does not get worse."""
    for seed in seeds:
        folders_by_rate = {rate: path for rate in rates if (path := run(rate, seed))}
        folders = list(folders_by_rate.values())
        restored = [restore.restore(_stored_config(path), path) for path in folders]
        task = restored[0][0]

        def score(variables: Any, task: Any = task) -> float:
            placed = sharding.replicate(variables)
            return evaluate.evaluate(task, placed, "validation").values["accuracy"]

        mixed, chosen = weight_averaging.greedy_soup([end.variables for _, _, end in restored], score)
        mixed = sharding.replicate(mixed)
        tested, train = (evaluate.evaluate(task, mixed, split) for split in ("test", "train"))
        chosen_rates = [list(folders_by_rate)[i] for i in chosen]
        say(f"--- soup, seed {seed}: of rates {', '.join(chosen_rates)}: test accuracy {tested.values['accuracy']:.4f}")
        accuracy = tested.values["accuracy"]
        more = {"seed": seed, "soup": chosen_rates, "parameters": read_json(folders[0] / "summary.json")["parameters"]}
        _write_summary(folder / f"seed{seed}", config, accuracy, train.values["accuracy"], tested.examples, **more)


METHODS = {"knn": evaluate_knn, "soup": evaluate_soup}


def best_validation(folder: Path) -> float:
    """Return the validation score at the end of a run, or the best one where the best checkpoint was tested."""
    rows = [parse_row(line, folder / "metrics.jsonl") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["accuracy"] for row in rows if row["split"] == "validation"]
    summary = json.loads((folder / "summary.json").read_text())
    if "wise_ft" in summary:
        return max(summary["wise_ft"]["validation"].values())
    return max(scores) if stored.get_config(str(folder)).eval_checkpoint == "best" else scores[-1]


def _stored_config(folder: Path) -> recipe.Config:
    from tl_jax.config import stored

    return stored.get_config(str(folder))


def _features(task: Any, variables: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    labels = [batch["label"][batch["mask"] > 0] for batch in task.eval_batches(split)]
    return evaluate.extract(task.features, variables, task.eval_batches(split)), np.concatenate(labels)


def _accuracy(predicted: Any, labels: np.ndarray) -> float:
    return float((np.asarray(predicted) == labels).mean())


def _write_summary(folder: Path, config: recipe.Config, test: float, train: float, examples: int, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"seed": config.seed, "steps": 0, "metrics": {"accuracy": test}, "train_metrics": {"accuracy": train}}
    summary |= {"parameters": {"trainable": 0}, "examples_evaluated": examples, **more}
    write_json(folder / "summary.json", summary)
