"""The calls behind ``run.py``: a configuration goes in, files and a summary come out."""

import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from configs import base
from tl_jax import __version__
from tl_jax.errors import UserError
from tl_jax.report import comparison
from tl_jax.specs import PretrainedSpec
from tl_jax.task import Task
from tl_jax.tasks import image
from tl_jax.train import devices, loop, metrics, workdir
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.log import say
from tl_jax.train.state import TrainState, digest
from tl_jax.train.workdir import read_json, write_json
from tl_jax.transfer import phases
from tl_jax.weights import own

TASKS = {"image": image.make}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(config: base.Config, folder: str | Path) -> dict[str, Any]:
    """Train as ``config`` says, test once at the end, and write everything to ``folder``.

    A run that was cut short goes on from its last checkpoint; one that is finished is not repeated. With ``seeds`` or
    ``arms`` in the configuration every arm is run with every seed, each in a folder of its own, and compared.

    Returns:
        The summary, which also stands in ``folder/summary.json``.

    Raises:
        UserError: anything the user can mend, in one line.
    """
    base.validate(config)
    folder = Path(folder).expanduser()
    many = bool(config.seeds or config.arms)
    for _, _, member in base.members(config) if many else [("", 0, config)]:
        _check_batches(member)
    with workdir.exclusive(folder):
        workdir.claim(folder, config.to_dict())
        return _run_many(config, folder) if many else _run_once(config, folder)


def evaluate(config: base.Config, folder: str | Path) -> dict[str, Any]:
    """Test the checkpoint that ``config.test_on`` names in a finished or unfinished run, without training."""
    task, state, checkpoints = _restore(config, Path(folder).expanduser())
    values, examples, _ = metrics.evaluate(task, state.variables, "test")
    checkpoints.close()
    return {"step": int(state.step), "examples_evaluated": examples, "metrics": values}


def export(config: base.Config, folder: str | Path, dtype: str = "float32") -> Path:
    """Write the weights of a run as one safetensors file that ``pretrained.load(..., source="tl_jax")`` reads.

    ``dtype`` is that of the stored values: "float16" halves the file.
    """
    folder = Path(folder).expanduser()
    task, state, checkpoints = _restore(config, folder)
    checkpoints.close()
    inputs, source = dict(task.facts["input"]), task.facts["spec"]
    spec = PretrainedSpec(
        model=config.model.name,
        source="tl_jax",
        options=source["options"],
        num_classes=len(task.classes),
        image_size=inputs["size"],
        crop=inputs["crop"],
        interpolation=inputs["interpolation"],
        scaling=inputs["scaling"],
        licence=source["licence"],
    )
    path = folder / "export" / "model.safetensors"
    about = {name: task.facts[name] for name in ("data", "weights_sha256")} | {"classes": task.classes}
    about |= {"step": int(state.step), "metrics": read_json(folder / "summary.json").get("metrics", {})}
    own.save(path, state.variables, spec, about, dtype)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return path


def _run_once(config: base.Config, folder: Path, verbose: bool = True) -> dict[str, Any]:
    """One arm with one seed; all but the first seed of a comparison say little."""
    if summary := read_json(folder / "summary.json"):
        workdir.check_unchanged(summary, folder)
        say(f"{folder} is finished: test {_shown(summary['metrics'])}; see its summary.json, or pass another --workdir")
        return summary
    clock = time.monotonic()
    if verbose:
        say("loading weights and data ...")
    task = TASKS[config.task](config)
    workdir.claim_facts(folder, task.facts)
    seconds = {"data": time.monotonic() - clock}
    plan = phases.resolve(config, task.sizes["train"])
    pace = loop.Pace(max(1, round(config.save_every * task.sizes["train"] / config.batch_size)), config.log_every)
    if verbose:
        say(f"{task.name}: " + ", ".join(f"{n:,} {part}" for part, n in task.sizes.items()) + f" examples; {folder}")
    fitted = loop.fit(task, plan, pace, config.seed, folder, verbose)
    state = fitted.state
    if config.test_on == "best":
        best = fitted.checkpoints.best()
        state = fitted.checkpoints.restore(plan[-1].stop if best is None else best, state, opt_state=False)
    begin = time.monotonic()
    values, examples, compiling = metrics.evaluate(task, state.variables, "test")
    fitted.seconds["eval"] += time.monotonic() - begin - compiling
    fitted.seconds["compile"] += compiling
    fitted.checkpoints.close()
    summary = {
        "config_name": config.name,
        "seed": config.seed,
        "steps": plan[-1].stop,
        "tested_step": int(state.step),
        "resumed_from": fitted.resumed_from,
        "examples_evaluated": examples,
        "metrics": values,
        "seconds": {**seconds, **fitted.seconds, "total": time.monotonic() - clock},
        "parameters": fitted.parameters,
        "parameters_sha256": digest(jax.device_get(state.variables)),
        "examples": dict(task.sizes),
        "facts": task.facts,
        **_machine(),
    }
    write_json(folder / "summary.json", summary)
    source = f"{examples:,} examples ({task.facts['tested']})"
    say(f"test {_shown(values)} on {source}; {summary['seconds']['total']:.1f} s; {folder / 'summary.json'}")
    return summary


def _run_many(config: base.Config, folder: Path) -> dict[str, Any]:
    """Every arm with every seed, then the comparison."""
    clock = time.monotonic()
    everything = base.members(config)
    for arm, seed, member in everything:
        own = folder / arm / f"seed{seed}"
        own.mkdir(parents=True, exist_ok=True)
        workdir.claim(own, member.to_dict())
        say(f"{arm}, seed {seed}")
        _run_once(member, own, verbose=seed == everything[0][1])
    summary = read_json(folder / "summary.json")
    if not summary:
        arms, seeds = (list(dict.fromkeys(entry[i] for entry in everything)) for i in (0, 1))
        summary = {"config_name": config.name, "seed": config.seed, **comparison.summarise(folder, arms, seeds)}
        summary |= _machine()
        summary["seconds"]["total"] = time.monotonic() - clock
        write_json(folder / "summary.json", summary)
    picture = comparison.draw(summary, folder / "comparison.png")
    say(comparison.table(summary))
    say(f"picture: {picture}\nsummary: {folder / 'summary.json'}")
    return summary


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def _check_batches(config: base.Config) -> None:
    for field in ("batch_size", "eval_batch_size"):
        devices.check_batch(field, config[field])


def _restore(config: base.Config, folder: Path) -> tuple[Task, TrainState, Checkpoints]:
    """Return the task and the state at the checkpoint that ``config.test_on`` names."""
    base.validate(config)
    _check_batches(config)
    members = sorted(str(path.parent) for path in folder.glob("*/seed*/checkpoints"))
    if members:
        raise UserError(f"{folder} is a comparison; pass one of its runs, such as --workdir={members[0]}")
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {folder}; train first, or pass the --workdir of a run")
    workdir.check_owner(folder, config.to_dict())
    task = TASKS[config.task](config)
    checkpoints = Checkpoints(folder / "checkpoints", task, tidy=False)
    step = checkpoints.best() if config.test_on == "best" else checkpoints.latest()
    if step is None:
        raise UserError(f"no {config.test_on} checkpoint in {folder}; train longer, or change --config.test_on")
    state = loop.initial_state(task, config.seed)
    return task, checkpoints.restore(step, state, opt_state=False), checkpoints


def _machine() -> dict[str, Any]:
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there and in KiB elsewhere
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
        "devices": [d.device_kind for d in jax.devices()],
        "python": platform.python_version(),
        "versions": {"tl_jax": __version__, **{name: version(name) for name in PACKAGES}},
    }
