"""Restore the task and the trained state of a run, or of an export, from its folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.config import recipe, schema, stored, validate
from tl_jax.data.registry import DATASETS
from tl_jax.models.registry import MODELS
from tl_jax.pretrained import formats
from tl_jax.tasks.probe_strength import PROBES
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding, workdir
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.run_config import RunConfig
from tl_jax.train.state import TrainState, initial_state
from tl_jax.train.task import TASKS, Task
from tl_jax.train.workdir import read_summary
from tl_jax.transfer.regularizers import REGULARIZERS
from tl_jax.transfer.weight_averaging import interpolate
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

MIXTURE = "mixture"  # folder of the wise_ft checkpoint, interpolated between first and last weights
RUN_FOLDER = "run"  # folder of a bundle with files of its run
RUN_FILES = {
    "config.json": "configuration of the run, for load_learner",
    "facts.json": "what it was trained on and from; of tagged texts also the words with marks in them",
    "summary.json": "what was measured",
}


def make_task(config: recipe.Config, record: RunRecord = NEW_RUN) -> Task:
    """Return the task of a configuration; ``record`` holds the known facts of its run."""
    return TASKS[config.task](schema.freeze(config), record)


def own_modules(config: RunConfig) -> dict[str, list[str]]:
    """Return ``modules``, the modules outside tl_jax that registered components of a configuration; {} for none."""
    penalties = [name for name, *_ in config.regularize.penalties]
    entries = [(TASKS, config.task), (MODELS, config.model.name), *((REGULARIZERS, name) for name in penalties)]
    task = TASKS[config.task]
    entries += [(DATASETS[task.data_inputs], task.data_name(config))] if task.data_inputs else []
    modules = {registry.module(name) for registry, name in entries if name in registry}
    own = sorted(name for name in modules if name.partition(".")[0] != "tl_jax")
    return {"modules": own} if own else {}


def check_batches(config: RunConfig) -> None:
    """Refuse batch sizes that are not divisible by the number of devices."""
    sharding.check_batch("batch_size", config.batch_size, config.optim.accumulate)
    sharding.check_batch("eval_batch_size", config.eval_batch_size)


def set_changeable(config: recipe.Config, fields: Mapping[str, Any]) -> None:
    """Set fields that may differ from those of training; raise a UserError for others."""
    for path, value in fields.items():
        schema.set_field(config, path, value)
        if not f"config.{path}".startswith(workdir.CHANGEABLE):
            allowed = ", ".join(name.removeprefix("config.") for name in workdir.CHANGEABLE)
            raise UserError(f"{path}: fixed when the run was trained; only {allowed} may change")


def open_bundle(folder: Path, fields: Mapping[str, Any]) -> tuple[RunConfig, Task, Any, int]:
    """Return the configuration, the task without examples, the trained variables and the step of an export.

    Args:
        folder: folder of the bundle.
        fields: see ``set_changeable``.

    Raises:
        UserError: the folder is no bundle, the bundle has another version, or it is damaged.
    """
    content = formats.check_bundle(folder, [f"{RUN_FOLDER}/{name}" for name in RUN_FILES])
    run = folder / RUN_FOLDER
    editable = stored.get_config(str(run))
    set_changeable(editable, fields)
    config = validate.validate(editable)
    # Low-rank adapters are merged into the weights, and options of training do not apply.
    changes: dict[str, Any] = {"regularize": type(config.regularize)(), "wise_ft": False, "wise_ft_share": 0.0}
    changes |= {"adapt": type(config.adapt)()} if config.adapt.kind != "bottleneck" else {}
    changes |= {"pretext": type(config.pretext)()} if config.pretext.name else {}
    summary = read_summary(run)
    fitted = fitted_values(summary) if summary.get("tested_step") == content.get("step") else {}
    if "calibrate" in config.fields() and "temperature" not in fitted:
        changes["calibrate"] = False
    config = dataclasses.replace(config, **changes)
    record = RunRecord(workdir.read_facts(run), str(folder), False, False, fitted)
    task = make_task(config, record)
    return config, task, task.bundle_variables(folder), int(content.get("step") or 0)


def restore(
    config: recipe.Config, folder: Path, data: bool = True, weights: bool = False
) -> tuple[Task, TrainState, TrainState]:
    """Return the task, the state before training, and the state at the checkpoint of ``config.eval_checkpoint``.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        data: whether the task loads its examples, which must be those of the run; else they are only read if the
            files of the run do not suffice.
        weights: whether the state before training has the source weights; else they are only read if the files of
            the run do not suffice.

    Raises:
        UserError: there is no such run, or it has another configuration; or the classes, the validation split or the
            test split of the data are not those of the run.
    """
    config = validate.validate(config)
    check_batches(config)
    if (runs := runs_within(folder)) and config.ensemble:
        raise UserError(f"{folder} is an ensemble; pass one of its runs, such as {runs[0]}")
    if runs:
        raise UserError(f"{folder} is a comparison; pass one of its runs, such as {runs[0]}")
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {folder}; train first, or pass the workdir of a run")
    if not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {folder}, its configuration is unknown; train again in a new workdir")
    workdir.check_owner(folder, schema.to_dict(config), schema.unused_fields(config.task))
    facts, summary = workdir.stored_facts(folder), read_summary(folder)
    record = RunRecord(facts, str(folder), fitted={} if data else fitted_values(summary))
    is_mixed = "wise_ft" in summary and (folder / MIXTURE / str(summary.get("tested_step"))).is_dir()
    record = record._replace(reads_data=data or not _can_skip_data(config, record, summary, is_mixed))
    record = record._replace(reads_weights=weights or not _can_skip_weights(config, folder, facts, summary, is_mixed))
    task, checkpoints, step = _open_run(config, folder, record)
    if step != summary.get("tested_step") and (record.fitted or is_mixed):  # fitted or mixed at another step
        checkpoints.close()
        needs_start, is_mixed = record.reads_weights or is_mixed, False
        record = record._replace(reads_data=True, reads_weights=needs_start, fitted={})
        task, checkpoints, step = _open_run(config, folder, record)
    state = initial_state(task, config.seed)
    if is_mixed:
        checkpoints.close()
        checkpoints = Checkpoints(folder / MIXTURE, task, cleanup=False)
    trained = checkpoints.restore(step, state, opt_state=False, for_eval=True)
    checkpoints.close()
    check_finite(trained, folder / (MIXTURE if is_mixed else "checkpoints") / str(step))
    if (wise_ft := summary.get("wise_ft")) and not is_mixed:
        trained = trained.replace(**interpolate(state.variables, trained.variables, wise_ft["share"]))
    return task, state, trained


def task_with_data(config: RunConfig, folder: Path) -> Task:
    """Return the task of a run with its examples, without fitting anything to them.

    Args:
        config: configuration of the run.
        folder: folder of the run.

    Raises:
        UserError: the validation or test split of the data is not that of the run.
    """
    facts = workdir.stored_facts(folder)
    can_skip = _can_skip_weights(config, folder, facts, {}, is_mixed=True)
    return _make_checked_task(config, folder, RunRecord(facts, str(folder), reads_weights=not can_skip))


def runs_within(folder: Path) -> list[Path]:
    """Return the run folders of a comparison or an ensemble; [] for any other folder."""
    return sorted(path.parent for path in folder.glob("*/seed*/checkpoints"))


def check_finite(state: TrainState, where: Path) -> None:
    """Refuse a checkpoint with values that are not finite; training never saves one, so it is damaged."""
    for path, leaf in tree.flatten(sharding.to_host(dict(state.variables))).items():
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise UserError(f"{where}: {path} has values that are not finite; restore the checkpoint, or train again")


def fitted_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the temperature or threshold that a finished run fitted to its validation split."""
    fitted = {"temperature": summary.get("calibration", {}).get("temperature"), "threshold": summary.get("threshold")}
    return {name: value for name, value in fitted.items() if value is not None}


def _can_skip_data(config: RunConfig, record: RunRecord, summary: Mapping[str, Any], is_mixed: bool) -> bool:
    """Return whether predictions and exports of a run need no data.

    ``is_mixed``: whether the run stores its ``wise_ft`` weights, as since version 0.2.
    """
    facts = record.facts
    has_facts = "data_sha256" in facts and (
        "input_shape" in facts or "shape" in facts.get("input", {}) or "reading" in facts
    )
    num_validation = facts.get("examples", {}).get("validation")
    fitted_name = TASKS[config.task].fitted_value(config)
    # Interpolation needs the weights at the start, which include a head that was fitted to the data.
    interpolates = "wise_ft" in summary and config.init.head in PROBES and not is_mixed
    return has_facts and not interpolates and (not fitted_name or not num_validation or fitted_name in record.fitted)


def _can_skip_weights(
    config: RunConfig, folder: Path, facts: Mapping[str, Any], summary: Mapping[str, Any], is_mixed: bool
) -> bool:
    """Return whether the network of a run can be built without its source weights."""
    # Interpolation and the source's own head need the layout or the values of the source weights.
    needs_source = ("wise_ft" in summary and not is_mixed) or config.regularize.strength("co_tuning")
    is_portable = TASKS[config.task].is_portable(folder, facts)
    return is_portable and facts.get("weights", "random") != "random" and not needs_source


def _open_run(config: RunConfig, folder: Path, record: RunRecord) -> tuple[Task, Checkpoints, int]:
    """Return the task of a run, its checkpoints, and the step of ``config.eval_checkpoint``."""
    task = _make_checked_task(config, folder, record)
    checkpoints = Checkpoints(folder / "checkpoints", task, cleanup=False)
    step = checkpoints.best() if config.eval_checkpoint == "best" else checkpoints.latest()
    if step is None:
        raise UserError(
            f"no {config.eval_checkpoint} checkpoint in {folder}; train longer, or change config.eval_checkpoint"
        )
    return task, checkpoints, step


def _make_checked_task(config: RunConfig, folder: Path, record: RunRecord) -> Task:
    """Return the task of a run; check that its data, if read, are those of the run."""
    task = make_task(config, record)
    if record.reads_data:
        workdir.check_data(folder, record.facts, task.facts, ("validation", "test"), "use predict for other examples")
    return task
