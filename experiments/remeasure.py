"""Recipes run again at the scale of their entries in experiments/expected.json; defines no flags itself."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import expectations
from experiments.expectations import Row
from experiments.recipe import configured
from tl_jax.train.log import say
from tl_jax.waiting import waiting


def verify(names: Sequence[str], known: dict[str, Any], folder: Path, data: Path | None) -> list[Row]:
    """Run the recipes of entries again, below ``folder``; return a row for each figure."""
    rows: list[Row] = []
    for at, name in enumerate(names, 1):
        entry, begin = known[name], time.process_time()
        cost = f"{entry['seconds']:.0f} s of processor time on {entry['hardware']}"
        say(f"{name} ({at} of {len(names)}; it took {cost}) ...")
        if absent := missing(entry, data):
            rows.append(Row(name, verdict="skipped", reason=absent))
            continue
        try:
            with waiting(f"{name}, {at} of {len(names)}"):
                found = measure(name, entry, place(folder, name), data)
        except Exception as error:  # whatever it is, the other recipes are still to be looked at
            first = f"{error}".strip().partition("\n")[0]
            rows.append(Row(name, verdict="failed", reason=f"{type(error).__name__}: {first}"))
            continue
        rows += expectations.compare(name, entry, found, time.process_time() - begin)
    return rows


def missing(entry: dict[str, Any], data: Path | None) -> str:
    """Return what keeps an entry from being run here, "" if nothing does."""
    paths = list(entry.get("needs", {}).values())
    if paths and data is None:
        return f"needs data; pass --data_dir=FOLDER with {', '.join(paths)}"
    absent = [path for path in paths if data and not (data / path).exists()]
    return f"no {absent[0]} in {data}" if absent else ""


def measure(name: str, entry: dict[str, Any], folder: Path, data: Path | None) -> dict[str, Any]:
    """Run a recipe with each seed of its entry; what it prints goes to ``folder/output.txt``.

    Returns:
        ``figures``, name -> a value for each seed, ``examples`` that were tested on, and ``steps``.
    """
    from tl_jax import api
    from tl_jax.train import devices
    from tl_jax.train.workdir import read_json

    changes = {field: tuple(value) if isinstance(value, list) else value for field, value in entry["set"].items()}
    changes |= {field: str(data / path) for field, path in entry.get("needs", {}).items() if data}
    config = configured(name, {**changes, "seeds": tuple(entry["seeds"])})
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            summary = api.run(config, folder)
        finally:
            devices.forget()  # the programs of dozens of recipes are too many for one process
    metric, first, *others = summary["metric"], *summary["arms"]
    values = {arm: row["values"] for arm, row in summary["arms"].items()}
    figures = {f"{arm} {metric}": row for arm, row in values.items()} if others else {metric: values[first]}
    for arm in others:
        gains = [a - b for a, b in zip(values[first], values[arm], strict=True)]
        figures[f"{first} over {arm}, {metric}"] = gains
    if summary["steps"] <= expectations.FEW and "loss" in summary["metrics"]:
        runs = [read_json(folder / first / f"seed{seed}" / "summary.json") for seed in entry["seeds"]]
        figures[f"{first} loss" if others else "loss"] = [run["metrics"]["loss"] for run in runs]
    figures = {figure: [math.nan if v is None else v for v in row] for figure, row in figures.items()}
    return {"figures": figures, "examples": summary["examples_evaluated"], "steps": summary["steps"]}


def place(folder: Path, name: str) -> Path:
    """Return the folder of an entry's runs."""
    return folder / name.replace(":", "_")  # which not every system has in a name
