"""What every call about a run needs: its task, and its trained state back from the folder."""

from pathlib import Path
from typing import Any

from configs import base, check
from tl_jax.data import value_range
from tl_jax.errors import UserError
from tl_jax.task import Task
from tl_jax.tasks import faces, image
from tl_jax.train import compile_cache, devices, workdir
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import TrainState, initial_state
from tl_jax.train.step import make_init
from tl_jax.train.workdir import read_json
from tl_jax.transfer import phases
from tl_jax.transfer.averaging import interpolate


def _text(config: base.Config) -> Task:
    from tl_jax.tasks import text  # with the tokenizers, which pictures have no use for

    return text.make(config)


def _policy(config: base.Config) -> Task:
    from tl_jax.tasks import policy  # with gymnax, likewise

    return policy.make(config)


def _detection(config: base.Config) -> Task:
    from tl_jax.tasks import detection  # with the readers of boxes, likewise

    return detection.make(config)


TASKS = {
    "image": image.make, "detection": _detection, "faces": faces.make, "text": _text, "tokens": _text, "masked": _text,
    "policy": _policy,
}  # fmt: skip


def make_task(config: base.Config) -> Task:
    """Return the task of a configuration; what it compiles is kept from here on."""
    compile_cache.enable()
    return TASKS[config.task](config)


def check_batches(config: base.Config) -> None:
    """Refuse batches that the devices cannot share evenly."""
    devices.check_batch("batch_size", config.batch_size, config.optim.accumulate)
    devices.check_batch("eval_batch_size", config.eval_batch_size)


def restore(config: base.Config, folder: Path) -> tuple[Task, TrainState, TrainState]:
    """Return the task, the state before training, and that at the checkpoint which ``config.test_on`` names."""
    check.validate(config)
    check_batches(config)
    members = sorted(str(path.parent) for path in folder.glob("*/seed*/checkpoints"))
    if members:
        raise UserError(f"{folder} is a comparison; pass one of its runs, such as --workdir={members[0]}")
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {folder}; train first, or pass the --workdir of a run")
    if not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {folder}, which says what was trained; train again with a new --workdir")
    workdir.check_owner(folder, config.to_dict())
    task = make_task(config)
    value_range.check_unchanged(folder, read_json(folder / "facts.json"), task.facts)
    checkpoints = Checkpoints(folder / "checkpoints", task, tidy=False)
    step = checkpoints.best() if config.test_on == "best" else checkpoints.latest()
    if step is None:
        raise UserError(f"no {config.test_on} checkpoint in {folder}; train longer, or change --config.test_on")
    state = initial_state(task, config.seed)
    end = checkpoints.restore(step, state, opt_state=False, tested=True)
    mixed = read_json(folder / "summary.json").get("wise_ft")
    if mixed:
        end = end.replace(**interpolate(state.variables, end.variables, mixed["share"]))
    checkpoints.close()
    return task, state, end


def optimizer_state(config: base.Config, folder: Path, task: Task, state: TrainState) -> Any:
    """Return the optimizer state of the checkpoint that ``state`` came from; () before the first step."""
    at = int(state.step)
    plan = phases.resolve(config, task.sizes, task.parts)
    now = next((phase for phase in plan if phase.start < at <= phase.stop), None)
    if now is None:
        return ()
    like = state.replace(opt_state=make_init(now.optim, now.rules)(state.params))
    checkpoints = Checkpoints(folder / "checkpoints", task, tidy=False)
    found = checkpoints.restore(at, like, opt_state=True)
    checkpoints.close()
    return found.opt_state
