"""The calls behind ``run.py``: a configuration goes in, files and a summary come out."""

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import base
from tl_jax import pretrained
from tl_jax.errors import UserError
from tl_jax.report import comparison
from tl_jax.specs import PretrainedSpec
from tl_jax.task import Task
from tl_jax.tasks import image
from tl_jax.train import devices, log, loop, metrics
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.log import say
from tl_jax.train.state import TrainState, digest
from tl_jax.transfer import phases

TASKS = {"image": image.make}
PACKAGES = ("tl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train as ``config`` says, test once at the end, and write everything to ``workdir``.

    A run that was cut short goes on from its last checkpoint; one that is finished is not repeated. With ``seeds`` or
    ``arms`` in the configuration every arm is run with every seed, each in a folder of its own, and compared.

    Returns:
        The summary, which also stands in ``workdir/summary.json``.

    Raises:
        UserError: anything the user can mend, in one line.
    """
    base.validate(config)
    workdir = Path(workdir).expanduser()
    for field in ("batch_size", "eval_batch_size"):
        devices.check_batch(field, config[field])
    log.claim(workdir, config.to_dict())
    if config.seeds or config.arms:
        return _run_many(config, workdir)
    return _run_once(config, workdir)


def evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Test the checkpoint that ``config.test_on`` names in a finished or unfinished run, without training."""
    base.validate(config)
    task, state, checkpoints = _restore(config, Path(workdir).expanduser())
    values, examples = metrics.evaluate(task, state.variables, "test")
    checkpoints.close()
    return {"step": int(state.step), "examples_evaluated": examples, "metrics": values}


def export(config: ConfigDict, workdir: str | Path, dtype: str = "float32") -> Path:
    """Write the weights of a run as one safetensors file that ``pretrained.load(..., source="tl_jax")`` reads.

    ``dtype`` is that of the stored values: "float16" halves the file.
    """
    base.validate(config)
    workdir = Path(workdir).expanduser()
    task, state, checkpoints = _restore(config, workdir)
    checkpoints.close()
    facts = task.facts
    used = {"image_size": facts["input"]["size"], "crop": 1.0, "scaling": facts["input"]["scaling"]}
    options = {**facts["spec"]["options"], **config.model.options.to_dict()}
    spec = PretrainedSpec(config.model.name, "tl_jax", options, len(task.classes), **used)
    path = workdir / "export" / "model.safetensors"
    summary = _read_summary(workdir)
    about = {"data": config.data.name, "classes": task.classes, "step": int(state.step)}
    about["metrics"] = summary.get("metrics", {})
    pretrained.save(path, state.variables, spec, about, dtype)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return path


def _run_once(config: ConfigDict, workdir: Path, verbose: bool = True) -> dict[str, Any]:
    """One arm with one seed; all but the first seed of a comparison say little."""
    summary = _read_summary(workdir)
    if summary:
        say(f"{workdir} is finished; its summary is returned unchanged")
        return summary
    clock = time.monotonic()
    task = TASKS[config.task](config)
    seconds = {"data": time.monotonic() - clock}
    plan, pace = _plan(config, task)
    if verbose:
        say(f"{task.name}: " + ", ".join(f"{n:,} {part}" for part, n in task.sizes.items()) + f" examples; {workdir}")
    fitted = loop.fit(task, plan, pace, config.seed, workdir, verbose)
    state = fitted.state
    if config.test_on == "best" and (best := fitted.checkpoints.best()) is not None:
        state = fitted.checkpoints.restore(best, state, opt_state=False)
    begin = time.monotonic()
    values, examples = metrics.evaluate(task, state.variables, "test")
    fitted.seconds["eval"] += time.monotonic() - begin
    fitted.checkpoints.close()
    summary = {
        "config_name": config.name,
        "seed": config.seed,
        "steps": plan[-1].stop,
        "tested_step": int(state.step),
        "examples_evaluated": examples,
        "metrics": values,
        "seconds": {**seconds, **fitted.seconds, "total": time.monotonic() - clock},
        "parameters": fitted.parameters,
        "parameters_sha256": digest(jax.device_get(state.variables)),
        "examples": dict(task.sizes),
        "facts": task.facts,
        **_machine(),
    }
    log.write_json(workdir / "summary.json", summary)
    tested = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    say(f"seed {config.seed}: test {tested} on {examples:,} examples, {summary['seconds']['total']:.1f} s")
    return summary


def _run_many(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Every arm with every seed, then the comparison."""
    clock = time.monotonic()
    arms = config.arms or ((config.name, ()),)
    seeds = config.seeds or (config.seed,)
    for seed in seeds:
        for arm, changes in arms:
            member = base.override(config, (*changes, ("seed", seed), ("seeds", ()), ("arms", ())))
            folder = workdir / arm / f"seed{seed}"
            base.validate(member)
            log.claim(folder, member.to_dict())
            say(f"{arm}, seed {seed}")
            _run_once(member, folder, verbose=seed == seeds[0])
    summary = comparison.summarise(workdir, [arm for arm, _ in arms], seeds)
    summary = {"config_name": config.name, "seed": config.seed, **summary, **_machine()}
    summary["seconds"]["total"] = time.monotonic() - clock
    log.write_json(workdir / "summary.json", summary)
    say(comparison.table(summary))
    picture = comparison.draw(summary, workdir / "comparison.png")
    say(f"picture: {picture}\nsummary: {workdir / 'summary.json'}")
    return summary


def _plan(config: ConfigDict, task: Task) -> tuple[tuple[phases.Phase, ...], loop.Pace]:
    plan = phases.resolve(config, task.sizes["train"])
    save = max(1, round(config.save_every * task.sizes["train"] / config.batch_size))
    return plan, loop.Pace(save, config.log_every)


def _restore(config: ConfigDict, workdir: Path) -> tuple[Task, TrainState, Checkpoints]:
    """Return the task and the state at the checkpoint that ``config.test_on`` names."""
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {workdir}; train first, or pass the --workdir of a run")
    log.claim(workdir, config.to_dict())
    task = TASKS[config.task](config)
    checkpoints = Checkpoints(workdir / "checkpoints", tidy=False)
    step = checkpoints.best() if config.test_on == "best" else checkpoints.latest()
    if step is None:
        raise UserError(f"no {config.test_on} checkpoint in {workdir}; train longer, or change --config.test_on")
    state = loop.initial_state(task, config.seed)
    return task, checkpoints.restore(step, state, opt_state=False), checkpoints


def _read_summary(workdir: Path) -> Mapping[str, Any]:
    path = workdir / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _machine() -> dict[str, Any]:
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there and in KiB elsewhere
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
        "devices": [d.device_kind for d in jax.devices()],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    if name == "tl_jax":
        import tl_jax

        return tl_jax.__version__
    return version(name)
