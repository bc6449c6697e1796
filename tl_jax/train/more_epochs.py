"""More epochs for a finished run: it continues if the result equals that of one longer run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_jax.config import renames
from tl_jax.train import sharding, workdir
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json, read_summary, write_json
from tl_jax.utils.errors import UserError


def epochs_before(config: Mapping[str, Any], folder: Path) -> float | None:
    """Return the epochs of the finished run in a folder if ``config`` only adds epochs; else None.

    Nothing is written. With a constant learning rate every step stays the same, so the result equals that of one
    longer run.

    Args:
        config: nested by groups.
        folder: folder of the run.

    Raises:
        UserError: Epochs were added, but the learning-rate schedule depends on their number.
    """
    old, new = renames.rename_fields(read_json(folder / "config.json"), warn=False), json.loads(json.dumps(config))
    if not old or new.get("arms") or new.get("seeds") or new.get("ensemble"):
        return None
    before, after = _last_epochs(old), _last_epochs(new)
    ended = bool(read_summary(folder)) or _summary_path(folder, before).is_file()  # the latter if ``begin`` was cut off
    if not ended or after <= before or _changes(old, new):
        return None
    schedule, warmup = new["optim"]["schedule"], new["optim"]["warmup"]
    if schedule != "constant" or warmup:
        course = schedule if schedule != "constant" else "warm-up"
        raise UserError(
            f"{folder}: trained for {before:g} epochs, and its {course} depends on their number; start a new run from "
            f"it in another workdir with config.init.path={folder}. To continue runs, train with "
            "config.optim.schedule=constant config.optim.warmup=0"
        )
    return before


def begin(config: Mapping[str, Any], folder: Path, before: float) -> None:
    """Reopen a finished run for more epochs; its summary is kept as ``summary_N_epochs.json``.

    Args:
        config: nested by groups, with more epochs.
        folder: folder of the run.
        before: see ``epochs_before``.
    """
    say(
        f"{folder}: continuing after epoch {before:g}. The learning rate is constant, so the result is that of one "
        f"run; the summary after {before:g} epochs is kept as {_summary_path(folder, before).name}"
    )
    if config["patience"] or config["eval_checkpoint"] == "best":
        say(f"the evaluation after epoch {before:g} counts as a validation, which one longer run would not have")
    sharding.wait_for_all("more epochs")  # until all have read the old files
    if sharding.is_first_process():
        if (folder / workdir.SUMMARY).is_file():
            os.replace(folder / workdir.SUMMARY, _summary_path(folder, before))
        write_json(folder / "config.json", config)
    sharding.wait_for_all("more epochs begun")


def _summary_path(folder: Path, epochs: float) -> Path:
    return folder / f"summary_{epochs:g}_epochs.json"


def _last_epochs(config: Mapping[str, Any]) -> float:
    """Return the epochs of the last phase, or of the run if it has no phases."""
    phases = config.get("phases") or ()
    return float((phases[-1] if phases else config).get("epochs") or 0)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences in other fields that affect the computation."""
    found = workdir.differences(_without_last_epochs(old), _without_last_epochs(new))
    return [difference for difference in found if not difference.startswith(workdir.CHANGEABLE)]


def _without_last_epochs(config: Mapping[str, Any]) -> dict[str, Any]:
    phases = [dict(phase) for phase in config.get("phases") or ()]
    if phases:
        return {**config, "phases": [*phases[:-1], {**phases[-1], "epochs": None}]}
    return {**config, "epochs": None}
