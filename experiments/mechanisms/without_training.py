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

NEIGHBOURS = (1, 3, 5, 10, 20)
Run = Callable[[str, int], Path | None]  # rate, seed -> folder of the finished LP-FT run, None where it diverged


def knn(folder: Path, config: recipe.Config, run: Run, rates: Sequence[str], seeds: Sequence[int]) -> None:
    """Vote among the nearest training examples in the source's features; their number is chosen on validation."""
    config.init.head, config.init.strength = "new", 0.0
    for seed in seeds:
        config.seed = seed
        task = restore.make_task(config)
        variables = task.init(stream_key(seed, "init"))
        sides = {part: _features(task, variables, part) for part in ("train", "validation", "test")}
        (x, y), held_out, test = (sides[part] for part in ("train", "validation", "test"))
        counts = [k for k in NEIGHBOURS if k <= len(y)]
        scores = {k: _share(transferability.knn(x, y, held_out[0], k), held_out[1]) for k in counts}
        best = max(counts, key=lambda k: (scores[k], k))
        train = 1.0 if best == 1 else _share(transferability.knn(x, y, x, best), y)
        found = _share(transferability.knn(x, y, test[0], best), test[1])
        say(f"--- knn, {len(y)} examples, seed {seed}: k = {best}, test accuracy {found:.4f}")
        _write(folder / f"seed{seed}", config, found, train, len(test[1]), neighbours=best)


def soup(folder: Path, config: recipe.Config, run: Run, rates: Sequence[str], seeds: Sequence[int]) -> None:
    """Mix the LP-FT runs at all rates, from one start each seed, as long as validation does not get worse."""
    for seed in seeds:
        there = {rate: path for rate in rates if (path := run(rate, seed))}
        folders = list(there.values())
        restored = [restore.restore(_stored(path), path) for path in folders]
        task = restored[0][0]

        def score(variables: Any, task: Any = task) -> float:
            placed = sharding.replicate(variables)
            return evaluate.evaluate(task, placed, "validation").values["accuracy"]

        mixed, kept = weight_averaging.greedy_soup([end.variables for _, _, end in restored], score)
        mixed = sharding.replicate(mixed)
        found, train = (evaluate.evaluate(task, mixed, part) for part in ("test", "train"))
        used = [list(there)[i] for i in kept]
        say(f"--- soup, seed {seed}: of rates {', '.join(used)}: test accuracy {found.values['accuracy']:.4f}")
        accuracy = found.values["accuracy"]
        more = {"seed": seed, "soup": used, "parameters": read_json(folders[0] / "summary.json")["parameters"]}
        _write(folder / f"seed{seed}", config, accuracy, train.values["accuracy"], found.examples, **more)


MADE = {"knn": knn, "soup": soup}


def best_validation(folder: Path) -> float:
    """Return the validation score at the end of a run, or the best one where the best checkpoint was tested."""
    rows = [parse_row(line, folder / "metrics.jsonl") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["accuracy"] for row in rows if row["split"] == "validation"]
    summary = json.loads((folder / "summary.json").read_text())
    if "wise_ft" in summary:
        return max(summary["wise_ft"]["validation"].values())
    return max(scores) if stored.get_config(str(folder)).eval_checkpoint == "best" else scores[-1]


def _stored(folder: Path) -> recipe.Config:
    from tl_jax.config import stored

    return stored.get_config(str(folder))


def _features(task: Any, variables: Any, part: str) -> tuple[np.ndarray, np.ndarray]:
    labels = [batch["label"][batch["mask"] > 0] for batch in task.eval_batches(part)]
    return evaluate.extract(task.features, variables, task.eval_batches(part)), np.concatenate(labels)


def _share(predicted: Any, labels: np.ndarray) -> float:
    return float((np.asarray(predicted) == labels).mean())


def _write(folder: Path, config: recipe.Config, test: float, train: float, examples: int, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"seed": config.seed, "steps": 0, "metrics": {"accuracy": test}, "train_metrics": {"accuracy": train}}
    summary |= {"parameters": {"trainable": 0}, "examples_evaluated": examples, **more}
    write_json(folder / "summary.json", summary)
