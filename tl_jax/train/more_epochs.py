"""The same run with more epochs: it goes on where the first ended, if that is as if it had been one run."""

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
    """Return with how many epochs the run in a folder ended, if ``config`` is the same with more; else None.

    Nothing is changed yet. With a constant learning rate every step is as it would have been, so the result is that of
    one longer run.

    Args:
        config: nested by groups.
        folder: of the run.

    Raises:
        UserError: more epochs than before, with a learning rate whose course depends on their number.
    """
    old, new = renames.rename_fields(read_json(folder / "config.json"), warn=False), json.loads(json.dumps(config))
    if not old or new.get("arms") or new.get("seeds") or new.get("ensemble"):
        return None
    before, after = _last_epochs(old), _last_epochs(new)
    ended = bool(read_summary(folder)) or _summary_path(folder, before).is_file()  # the latter of a start that was cut
    if not ended or after <= before or _changes(old, new):
        return None
    schedule, warmup = new["optim"]["schedule"], new["optim"]["warmup"]
    if schedule != "constant" or warmup:
        course = schedule if schedule != "constant" else "warm-up"
        raise UserError(
            f"{folder} was trained for {before:g} epochs, and the {course} of its rate depends on their number; "
            f"start another run from it, with another workdir: config.init.path={folder}, or train with "
            "config.optim.schedule=constant config.optim.warmup=0, which can go on"
        )
    return before


def begin(config: Mapping[str, Any], folder: Path, before: float) -> None:
    """Make a finished run one that goes on; its summary is kept as ``summary_N_epochs.json``.

    Args:
        config: nested by groups, with more epochs.
        folder: of the run.
        before: see ``epochs_before``.
    """
    say(
        f"{folder} goes on after epoch {before:g}: the learning rate is constant, so that the result is that of one "
        f"run; the one of {before:g} epochs is kept as {_summary_path(folder, before).name}"
    )
    if config["patience"] or config["eval_checkpoint"] == "best":
        say(f"the evaluation after epoch {before:g} counts among those of validation, as it would not in one run")
    sharding.wait_for_all("more epochs")  # all have read the old files
    if sharding.is_first_process():
        if (folder / workdir.SUMMARY).is_file():
            os.replace(folder / workdir.SUMMARY, _summary_path(folder, before))
        write_json(folder / "config.json", config)
    sharding.wait_for_all("more epochs begun")


def _summary_path(folder: Path, epochs: float) -> Path:
    return folder / f"summary_{epochs:g}_epochs.json"


def _last_epochs(config: Mapping[str, Any]) -> float:
    """Return the epochs of the last phase, or of the whole run if it has no phases."""
    phases = config.get("phases") or ()
    return float((phases[-1] if phases else config).get("epochs") or 0)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in which other fields two configurations differ that decide what is computed."""
    found = workdir.differences(_without_last_epochs(old), _without_last_epochs(new))
    return [difference for difference in found if not difference.startswith(workdir.CHANGEABLE)]


def _without_last_epochs(config: Mapping[str, Any]) -> dict[str, Any]:
    phases = [dict(phase) for phase in config.get("phases") or ()]
    if phases:
        return {**config, "phases": [*phases[:-1], {**phases[-1], "epochs": None}]}
    return {**config, "epochs": None}
