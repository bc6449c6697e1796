"""The calls behind ``run.py``: a configuration goes in, files and a summary come out."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import base, check
from tl_jax import machine
from tl_jax.errors import UserError
from tl_jax.exporting import export
from tl_jax.looks import explain, find_lr, play, preview
from tl_jax.machine import versions
from tl_jax.report import comparison
from tl_jax.reporting import at_the_end, report
from tl_jax.runs import check_batches, make_task, restore
from tl_jax.task import Task
from tl_jax.tasks import details
from tl_jax.tasks.run_record import RunRecord
from tl_jax.train import describe, devices, hosts, loop, metrics, wise_ft, workdir
from tl_jax.train.log import say
from tl_jax.train.run_files import read_summary
from tl_jax.train.state import digest, initial_state
from tl_jax.train.workdir import write_json
from tl_jax.transfer import phases
from tl_jax.transfer.averaging import interpolate
from tl_jax.verdict import Verdict
from tl_jax.waiting import waiting

__all__ = ["evaluate", "explain", "export", "find_lr", "play", "predict", "preview", "report", "run", "versions"]


def run(config: base.Config, folder: str | Path) -> dict[str, Any]:
    """Train as ``config`` says, test once at the end, and write everything to ``folder``.

    A run that was cut short goes on from its last checkpoint; one that is finished is not repeated. With ``seeds`` or
    ``arms`` in the configuration every arm is run with every seed, each in a folder of its own, and compared.

    Returns:
        The summary, which also stands in ``folder/summary.json``.

    Raises:
        UserError: anything the user can mend, in one line.
    """
    check.validate(config)
    folder = Path(folder).expanduser()
    many = bool(config.seeds or config.arms)
    for _, _, member in base.members(config) if many else [("", 0, config)]:
        check_batches(member)
    with workdir.exclusive(folder):
        workdir.claim(folder, config.to_dict())
        summary = _run_many(config, folder) if many else _run_once(config, folder)
        at_the_end(folder)
        if config.smoke:
            say(comparison.SMOKE)
        return summary


def evaluate(config: base.Config, folder: str | Path) -> dict[str, Any]:
    """Test the checkpoint that ``config.test_on`` names in a finished or unfinished run, without training.

    Raises:
        UserError: as ``restore``; nothing is written if the data are not those of the run.
    """
    folder = Path(folder).expanduser()
    task, _, state = restore(config, folder)
    values, examples, _, verdict = metrics.evaluate(task, state.variables, "test", details.keep)
    values |= dict.fromkeys(verdict.missing, math.nan)
    if read_summary(folder).get("tested_step") == int(state.step):
        _keep_details(task, verdict, folder)  # of a run from before they were written, perhaps
    summary = {"step": int(state.step), "examples_evaluated": examples, "metrics": values, **_smoke(config)}
    return summary | _judged(task, verdict, _held_out(task, state.variables), folder)


def predict(config: base.Config, folder: str | Path, inputs: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a run's network says of each of ``inputs``: sentences, or pictures and folders of them.

    It is shown on the screen, and stands in ``folder/predictions.json``. What is found on pictures is drawn, too.
    The classes, and the temperature or threshold of a finished run, are those in the run's folder; the data are not
    read, unless a run is older than the record of its classes, or has not finished and is to be calibrated.
    """
    folder = Path(folder).expanduser()
    task, _, state = restore(config, folder, data=False)
    if task.answer is None:
        answering = "image, detection, faces, text and tokens"
        raise UserError(f"config.task={config.task} answers nothing; predictions are for task={answering}")
    found, drawn = task.answer(state.variables, inputs)
    say(drawn)
    write_json(folder / "predictions.json", found)
    if task.illustrate:
        say("pictures: " + ", ".join(map(str, task.illustrate(found, folder))))
    return found


def _run_once(config: base.Config, folder: Path, verbose: bool = True) -> dict[str, Any]:
    """One arm with one seed; all but the first seed of a comparison say little."""
    if summary := read_summary(folder):
        workdir.check_unchanged(summary, folder)
        tested = _shown(summary.get("metrics", {}))
        say(f"{folder} is finished: test {tested}; see its summary.json, or pass another --workdir")
        return summary
    clock = time.monotonic()
    if verbose:
        say("loading weights and data ...")
    with waiting("loading weights and data"):
        task = make_task(config, RunRecord(workdir.stored_facts(folder), str(folder)))
        workdir.claim_facts(folder, task.facts)
    seconds = {"data": time.monotonic() - clock}
    plan = phases.resolve(config, task.sizes, task.parts)
    save = max(1, round(config.save_every * task.sizes["train"] / config.batch_size))
    pace = loop.Pace(save, config.log_every, config.patience, config.save_rest)
    if verbose:
        say(f"{task.name}: " + ", ".join(f"{n:,} {part}" for part, n in task.sizes.items()) + f" examples; {folder}")
    fitted = loop.fit(
        task, plan, pace, config.seed, folder, verbose, config.freeze.prove, config.parallel.state == "sharded"
    )
    with waiting("testing"):
        summary, verdict = _tested(config, folder, task, fitted)
    summary["seconds"] = {**seconds, **fitted.seconds, "total": time.monotonic() - clock}
    _keep_details(fitted.task, verdict, folder)
    write_json(folder / "network.json", describe.layout(fitted.state.params, plan, task.parts))
    write_json(folder / "summary.json", summary)
    hosts.meet(f"{folder} is finished")
    if verdict.per_class and verbose:
        say(_table(verdict.per_class))
    source = f"{summary['examples_evaluated']:,} examples ({task.facts['tested']})"
    say(
        f"test {_shown(summary['metrics'])} on {source}; {summary['seconds']['total']:.1f} s; {folder / 'summary.json'}"
    )
    return summary


def _tested(config: base.Config, folder: Path, task: Task, fitted: loop.Fitted) -> tuple[dict[str, Any], Verdict]:
    """Test what ``config.test_on`` names; return the summary, and what is to be said of the examples."""
    steps, state = int(fitted.state.step), fitted.state
    best = fitted.checkpoints.best() if config.test_on == "best" else None
    if best is not None:
        state = fitted.checkpoints.restore(best, state, opt_state=False, tested=True)
    begin = time.monotonic()
    variables, extra = (state.variables if best is not None else state.tested), {}
    if config.wise_ft:
        first = initial_state(task, config.seed).variables
        share, scores = wise_ft.best_share(fitted.task, first, variables)
        variables, extra = interpolate(first, variables, share), {"wise_ft": {"share": share, "validation": scores}}
    with waiting("testing"):
        values, examples, compiling, verdict = metrics.evaluate(fitted.task, variables, "test", details.keep)
        values |= dict.fromkeys(verdict.missing, math.nan)
        held_out = _held_out(fitted.task, variables)
        if config.test_train:
            extra["train_metrics"] = metrics.evaluate(fitted.task, variables, "train").values
    fitted.seconds["eval"] += time.monotonic() - begin - compiling
    fitted.seconds["compile"] += compiling
    fitted.checkpoints.close()
    summary = {
        "config_name": config.name,
        **_smoke(config),
        "seed": config.seed,
        "steps": steps,
        "tested_step": int(state.step),
        "resumed_from": fitted.resumed_from,
        "examples_evaluated": examples,
        "metrics": values,
        "score": task.score,
        "seconds": fitted.seconds,
        "parameters": fitted.parameters,
        "parameters_sha256": digest(devices.fetch(variables)),
        "examples": dict(task.sizes),
        "facts": {name: fact for name, fact in task.facts.items() if name != "reading"},  # which may be long
        **_judged(task, verdict, held_out, folder),
        **extra,
        **({"freeze": fitted.freeze} if config.freeze.prove else {}),
        **machine.facts(),
    }
    return summary, verdict


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
    summary = read_summary(folder)
    if not summary:
        score = read_summary(own).get("score", "accuracy")
        arms, seeds = (list(dict.fromkeys(entry[i] for entry in everything)) for i in (0, 1))
        summary = {"config_name": config.name, **_smoke(config), "seed": config.seed}
        summary |= comparison.summarise(folder, arms, seeds, score) | machine.facts()
        summary["seconds"]["total"] = time.monotonic() - clock
        write_json(folder / "summary.json", summary)
    say(comparison.table(summary))
    if hosts.first():
        say(f"picture: {comparison.draw(summary, folder / 'comparison.png')}\nsummary: {folder / 'summary.json'}")
    return summary


def _smoke(config: base.Config) -> dict[str, bool]:
    return {"smoke": True} if config.smoke else {}


def _held_out(task: Task, variables: Any) -> Any:
    """Return what the judge keeps of the validation part, None where there is none or nobody asks."""
    wanted = task.report and task.sizes.get("validation")
    return metrics.evaluate(task, variables, "validation").verdict.kept if wanted else None


def _keep_details(task: Task, verdict: Verdict, folder: Path) -> None:
    """Write what is to be said of single test examples and classes."""
    if task.details and hosts.first():
        write_json(folder / "test_details.json", task.details(verdict.kept))


def _judged(task: Task, verdict: Verdict, held_out: Any, folder: Path) -> dict[str, Any]:
    """Return what a summary has beside the metrics: scores by class, and what the task reports and draws."""
    by_class = {"per_class": verdict.per_class} if verdict.per_class else {}
    missing = {"missing": dict(verdict.missing)} if verdict.missing else {}
    return by_class | missing | (task.report(verdict.kept, held_out, folder) if task.report and hosts.first() else {})


def _table(per_class: Mapping[str, Mapping[str, float]]) -> str:
    """Return the scores of each class, such as precision, recall and F1, drawn for the screen."""
    width, columns = max(map(len, per_class)), list(next(iter(per_class.values())))
    lines = [f"  {'':{width}}  " + "  ".join(f"{column:>5}" for column in columns)]
    for name, row in per_class.items():
        kinds = {column: ",.0f" if column == "examples" else ".3f" for column in columns}
        numbers = (f"{row[column]:{max(5, len(column))}{kind}}" for column, kind in kinds.items())
        lines.append(f"  {name:{width}}  " + "  ".join(numbers))
    return "\n".join(lines)


def _shown(values: dict[str, Any]) -> str:
    """Return metrics in words; one that could not be measured is NaN, and None once it was written."""
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return ", ".join(f"{name} {known[name]:.4f}" if name in known else f"{name} not measured" for name in values)
