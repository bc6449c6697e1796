"""Train a configuration, test it once at the end, and write the results to a folder; see ``Learner.fit``."""

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax import choose_method, ensemble
from tl_jax.config import recipe, schema, stored, validate
from tl_jax.export.bundle import export
from tl_jax.final_report import write_final_report
from tl_jax.metrics import Evaluation
from tl_jax.pretrained import formats
from tl_jax.report import ensemble as ensemble_report
from tl_jax.report import plots
from tl_jax.restore import MIXTURE, check_batches, make_task, own_modules, restore, runs_within
from tl_jax.tasks.probe_strength import PROBES
from tl_jax.tasks.run_record import RunRecord
from tl_jax.train import loop, more_epochs, sharding, workdir
from tl_jax.train.advice import advise, advise_norms, advise_probe
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.evaluate import evaluate as evaluate_split
from tl_jax.train.logging import say
from tl_jax.train.run_config import RunConfig
from tl_jax.train.state import TrainState, digest, initial_state
from tl_jax.train.task import Task
from tl_jax.train.workdir import read_summary, write_json
from tl_jax.transfer.weight_averaging import interpolate
from tl_jax.utils import environment
from tl_jax.utils.command import show_elapsed
from tl_jax.utils.errors import UserError

NUM_EVALUATIONS = 10  # of a run with many short epochs
WISE_FT_SHARES = tuple(i / 10 for i in range(11))


def train(config: recipe.Config | RunConfig, folder: str | Path) -> dict[str, Any]:
    """Train a configuration, test once at the end, and write the results to ``folder``.

    An interrupted run resumes from its last checkpoint; a finished run is not repeated. With ``seeds`` or ``arms``,
    every arm is run with every seed, each in its own folder, and the arms are compared. With ``ensemble``, each network
    is trained in its own folder, and the probabilities are averaged.

    Returns:
        The summary, which is also written to ``folder/summary.json``.

    Raises:
        UserError: an error that the user can fix, in one line.
    """
    export_sources(config)
    config = validate.validate(config)
    folder = Path(folder).expanduser()
    is_comparison = bool(config.seeds or config.arms)
    for _, _, member in recipe.comparison_runs(config):
        check_batches(schema.freeze(member))
    with workdir.exclusive(folder):
        config = config if is_comparison else choose_method.resolve(config, folder)
        stored_config = schema.to_dict(config)
        before = more_epochs.epochs_before(stored_config, folder)
        if before is None:
            workdir.claim_folder(folder, stored_config, schema.unused_fields(config.task))
        if is_comparison:
            summary = _train_comparison(config, folder)
        elif config.ensemble:
            summary = _train_ensemble(config, folder)
        else:
            summary = _train_one(config, folder, before=before)
        say(write_final_report(folder))
        if config.smoke:
            say(plots.SMOKE_NOTE)
        return summary


def export_sources(config: recipe.Config | RunConfig) -> None:
    """Export the runs that ``init.path`` names, unless they are exported already."""
    fields = [pair for _, changes in config.arms for pair in changes]
    paths = [config.init.path, *(value for field, value in fields if field == "init.path")]
    for path in dict.fromkeys(path for path in paths if path):
        folder = Path(os.path.expanduser(path))
        if runs := runs_within(folder):
            raise UserError(f"{folder} has {len(runs)} networks; set init.path to one of them, such as {runs[0]}")
        if formats.is_run(folder):
            with workdir.exclusive(folder):
                _export_source(folder)


def _export_source(folder: Path) -> None:
    """Export a run, unless an export of its tested checkpoint exists."""
    tested, bundle = read_summary(folder).get("tested_step"), folder / formats.EXPORT_FOLDER / formats.BUNDLE_FILE
    if tested is None:
        raise UserError(f"{folder} is an unfinished run; finish it before training starts from it")
    if not bundle.is_file() or formats.read_bundle(bundle.parent).get("step") != tested:
        say(f"exporting {folder}, the source of this run ...")
        export(stored.get_config(str(folder)), folder)


def test(config: recipe.Config | RunConfig, folder: str | Path) -> dict[str, Any]:
    """Test the checkpoint of ``config.eval_checkpoint`` in a finished or unfinished run, without training.

    Raises:
        UserError: as ``restore``; nothing is written if the data are not those of the run.
    """
    config, folder = schema.freeze(config), Path(folder).expanduser()
    if config.ensemble:
        task, variables, step = ensemble.load(config, folder, data=True)
    else:
        task, _, state = restore(config, folder)
        variables, step = state.variables, int(state.step)
    result = evaluate_split(task, variables, "test", final=True)
    if read_summary(folder).get("tested_step") == step:
        _write_test_details(task, result.evaluation, folder)  # older runs lack them
    summary = {"step": step, "examples_evaluated": result.examples, "metrics": result.metrics}
    held_out = _validation_predictions(task, variables)
    return summary | _smoke(config) | _evaluation_summary(task, result.evaluation, held_out, folder)


def _train_one(config: RunConfig, folder: Path, verbose: bool = True, before: float | None = None) -> dict[str, Any]:
    """Train one arm with one seed, or return its summary if it is finished.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        verbose: whether to log the progress.
        before: epochs of the finished run that is to be extended; None to train a new run.
    """
    summary = read_summary(folder)
    if summary and before is None:
        workdir.check_unchanged(summary, folder)
        metrics = _format_metrics(summary.get("metrics", {}))
        say(f"{folder} is finished: test {metrics}; see its summary.json, or pass another workdir to train again")
        return summary
    start = time.monotonic()
    if verbose:
        say("loading weights and data ...")
    with show_elapsed("loading weights and data"):
        task = make_task(config, RunRecord(workdir.stored_facts(folder), str(folder)))
        workdir.claim_facts(folder, {**task.facts, **own_modules(config)})
        if sharding.is_first_process():
            task.keep(folder)
        if before is not None:
            more_epochs.begin(schema.to_dict(config), folder, before)
    seconds = {"data": time.monotonic() - start}
    plan = task.plan()
    save_interval = max(1, round(config.save_every * task.sizes["train"] / config.batch_size))
    if plan and config.min_steps:  # many epochs of a small data set: do not save each
        save_interval = max(save_interval, math.ceil(plan[-1].stop / NUM_EVALUATIONS))
    pace = loop.Pace(save_interval, config.log_every, config.patience, config.min_checkpoint_interval)
    if verbose:
        say(f"{task.name}: " + ", ".join(f"{n:,} {part}" for part, n in task.sizes.items()) + f" examples; {folder}")
    fitted = loop.fit(
        task, plan, pace, config.seed, folder,
        verbose=verbose, verify_freeze=config.freeze.verify, sharded=config.parallel.state == "sharded",
        starts_as_probe=_starts_as_probe(config),
    )  # fmt: skip
    with show_elapsed("testing"):
        summary, evaluation = _test_run(config, folder, task, fitted)
    if plan and not config.smoke:
        summary["advice"] = _advise(config, folder, task, plan[-1].name, fitted.norm_shift)
    summary["seconds"] = {**seconds, **fitted.seconds, "total": time.monotonic() - start}
    _write_test_details(fitted.task, evaluation, folder)
    write_json(folder / "network.json", loop.stage_parameters(fitted.state.params, plan, task.stages))
    write_json(folder / "summary.json", summary)
    sharding.wait_for_all(f"{folder} is finished")
    if evaluation.per_class and verbose:
        say(_class_table(evaluation.per_class))
    metrics, total = _format_metrics(summary["metrics"]), summary["seconds"]["total"]
    test_set = f"{summary['examples_evaluated']:,} examples ({task.facts['tested']})"
    for text in summary.get("advice", ()):
        say(f"advice: {text}")
    say(f"test {metrics} on {test_set}; {total:.1f} s; {folder / 'summary.json'}")
    return summary


def _starts_as_probe(config: RunConfig) -> bool:
    """Return whether the run starts from a fitted head whose strength was not selected on the validation split."""
    return config.init.head in PROBES and bool(config.init.folds or config.init.strength)


def _advise(config: RunConfig, folder: Path, task: Task, phase: str, norm_shift: float) -> list[str]:
    """Return advice from the learning curves, the fitted head and the BatchNorm statistics."""
    rows, validation = loop.phase_rows(folder, phase), task.sizes.get("validation", 0)
    is_best = config.eval_checkpoint == "best"
    found = advise(rows, task.score, validation, is_best)
    if validation and not config.wise_ft:  # wise_ft may already select the probe
        start, is_low_rank = loop.phase_rows(folder, loop.START), config.adapt.kind in ("lora", "parallel")
        found += advise_probe(start, rows, task.score, validation, is_best, not is_low_rank)
    keeps_some = config.regularize.stochastic_norm  # stochastic_norm keeps some source statistics
    if config.init.source != "random" and task.input_kind == "images" and not keeps_some:
        found += advise_norms(norm_shift, task.sizes["train"])
    return found


def _test_run(config: RunConfig, folder: Path, task: Task, fitted: loop.Fitted) -> tuple[dict[str, Any], Evaluation]:
    """Test the checkpoint of ``config.eval_checkpoint``; return the summary and the evaluation."""
    steps, state = int(fitted.state.step), fitted.state
    best = fitted.checkpoints.best() if config.eval_checkpoint == "best" else None
    if best is not None:
        state = fitted.checkpoints.restore(best, state, opt_state=False, for_eval=True)
    start = time.monotonic()
    variables, extra = (state.variables if best is not None else state.eval_variables), {}
    if config.wise_ft:
        variables, extra["wise_ft"] = _mix_with_start(config, task, fitted.task, variables)
        _save_mixture(folder, task, state.replace(**variables))
    result = evaluate_split(fitted.task, variables, "test", final=True)
    held_out = _validation_predictions(fitted.task, variables)
    if config.test_train:
        extra["train_metrics"] = evaluate_split(fitted.task, variables, "train").values
    fitted.seconds["eval"] += time.monotonic() - start - result.compile_seconds
    fitted.seconds["compile"] += result.compile_seconds
    fitted.checkpoints.close()
    summary = {
        "config_name": config.name,
        **_smoke(config),
        "seed": config.seed,
        "steps": steps,
        "tested_step": int(state.step),
        "resumed_from": fitted.resumed_from,
        "examples_evaluated": result.examples,
        "metrics": result.metrics,
        "score": task.score,
        "seconds": fitted.seconds,
        "parameters": fitted.parameters,
        "parameters_sha256": digest(sharding.to_host(variables)),
        "examples": dict(task.sizes),
        "facts": {name: fact for name, fact in task.facts.items() if name != "reading"},  # may be long
        **_evaluation_summary(task, result.evaluation, held_out, folder),
        **extra,
        **choose_method.record(config, folder),
        **({"freeze": fitted.freeze} if config.freeze.verify else {}),
        **environment.describe(),
    }
    return summary, result.evaluation


def _mix_with_start(config: RunConfig, task: Task, trained: Task, end: Any) -> tuple[Any, dict[str, Any]]:
    """Return the interpolated variables, and the share of the trained ones with the validation scores it was chosen by.

    Args:
        config: configuration of the run.
        task: task at the start.
        trained: task of the last phase.
        end: variables after training.
    """
    start, scores = initial_state(task, config.seed).variables, {}
    share = config.wise_ft_share
    if not share:
        share, scores = best_wise_ft_share(trained, start, end)
    return interpolate(start, end, share), {"share": share, "validation": scores}


def _save_mixture(folder: Path, task: Task, state: TrainState) -> None:
    """Save the interpolated weights, so that restoring them needs neither data nor source weights."""
    if sharding.is_first_process():
        shutil.rmtree(folder / MIXTURE, ignore_errors=True)  # of an interrupted run
    sharding.wait_for_all("the mixture")
    checkpoints = Checkpoints(folder / MIXTURE, task.replace(sizes={**task.sizes, "validation": 0}))  # no score
    checkpoints.save(state.replace(opt_state=()), None)
    checkpoints.close()


def best_wise_ft_share(task: Task, start: Any, end: Any) -> tuple[float, dict[str, float]]:
    """Return the share with the best validation score (of equal ones the largest), and share -> score.

    Args:
        task: a task with a validation split.
        start, end: variables before and after training.
    """
    scores = {}
    for share in WISE_FT_SHARES:
        scores[share] = evaluate_split(task, interpolate(start, end, share), "validation").values[task.score]
    best = max(WISE_FT_SHARES, key=lambda share: (scores[share], share))
    return best, {f"{share:g}": value for share, value in scores.items()}


def _train_runs(config: RunConfig, folder: Path) -> list[tuple[str, int, Path]]:
    """Train the runs of a comparison or an ensemble, each in its own folder; return (arm, seed, folder) of each."""
    members, trained = recipe.comparison_runs(config), []
    for arm, seed, member in members:
        run_folder = folder / arm / f"seed{seed}"
        run_folder.mkdir(parents=True, exist_ok=True)
        member = choose_method.resolve(schema.freeze(member), run_folder)
        workdir.claim_folder(run_folder, schema.to_dict(member), schema.unused_fields(member.task))
        say(f"{arm}, seed {seed}")
        _train_one(member, run_folder, verbose=seed == members[0][1])
        trained.append((arm, seed, run_folder))
    return trained


def _train_comparison(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train every arm with every seed, then compare them."""
    start = time.monotonic()
    members = _train_runs(config, folder)
    summary = read_summary(folder)
    if not summary:
        metric = read_summary(members[-1][2]).get("score", "accuracy")
        arms = list(dict.fromkeys(arm for arm, _, _ in members))
        seeds = list(dict.fromkeys(seed for _, seed, _ in members))
        summary = {"config_name": config.name, **_smoke(config), "seed": config.seed}
        summary |= plots.summarize_comparison(folder, arms, seeds, metric) | environment.describe()
        summary["seconds"]["total"] = time.monotonic() - start
        write_json(folder / "summary.json", summary)
    say(plots.comparison_table(summary))
    if sharding.is_first_process():
        say(f"figure: {plots.plot_comparison(summary, folder / 'comparison.png')}\nsummary: {folder / 'summary.json'}")
    return summary


def _train_ensemble(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train the networks of an ensemble, then test and compare them."""
    start = time.monotonic()
    members = _train_runs(config, folder)
    summary = read_summary(folder)
    if not summary:
        with show_elapsed("testing the ensemble"):
            measured = ensemble.measure(config, folder)
            summary = _ensemble_summary(config, folder, measured, [read_summary(path) for _, _, path in members])
        summary["seconds"]["total"] = time.monotonic() - start
        _write_test_details(measured.ensemble.task, measured.result.evaluation, folder)
        write_json(folder / ensemble.FILE, measured.report)
        write_json(folder / workdir.SUMMARY, summary)
        sharding.wait_for_all(f"{folder} is finished")
    say(ensemble_report.format_text(summary["ensemble"]))
    examples = f"{summary['examples_evaluated']:,} examples"
    say(f"test {_format_metrics(summary['metrics'])} on {examples}; {folder / workdir.SUMMARY}")
    return summary


def _ensemble_summary(
    config: RunConfig, folder: Path, measured: ensemble.Measured, members: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the summary of an ensemble from its evaluation and the summaries of its networks."""
    first, result = members[0], measured.result
    return {
        "config_name": config.name,
        **_smoke(config),
        "seed": config.seed,
        "seeds": [member["seed"] for member in members],
        "steps": first["steps"],
        "tested_steps": list(measured.ensemble.steps),
        "examples_evaluated": result.examples,
        "metrics": result.metrics,
        "score": first["score"],
        "seconds": {name: sum(member["seconds"][name] for member in members) for name in first["seconds"]},
        **{name: first[name] for name in ("parameters", "examples", "facts")},
        **_evaluation_summary(measured.ensemble.task, result.evaluation, measured.held_out, folder),
        **({"calibration": measured.calibration} if measured.calibration else {}),
        "ensemble": measured.report,
        **choose_method.record(config, folder),
        **environment.describe(),
    }


def _smoke(config: RunConfig) -> dict[str, bool]:
    return {"smoke": True} if config.smoke else {}


def _validation_predictions(task: Task, variables: Any) -> Any:
    """Return the predictions on the validation split; None if it is empty or the task has no report on it."""
    needed = task.reports_validation and task.sizes.get("validation")
    return evaluate_split(task, variables, "validation").evaluation.predictions if needed else None


def _write_test_details(task: Task, evaluation: Evaluation, folder: Path) -> None:
    """Write details of single test examples and classes."""
    if not sharding.is_first_process() or evaluation.predictions is None:
        return
    if (details := task.test_details(evaluation.predictions)) is not None:
        write_json(folder / "test_details.json", details)


def _evaluation_summary(task: Task, evaluation: Evaluation, held_out: Any, folder: Path) -> dict[str, Any]:
    """Return the parts of a summary besides the metrics: scores per class, and the reports of the task."""
    by_class = {"per_class": evaluation.per_class} if evaluation.per_class else {}
    missing = {"missing": dict(evaluation.missing)} if evaluation.missing else {}
    reported = task.report(evaluation.predictions, held_out, folder) if sharding.is_first_process() else {}
    return by_class | missing | reported


def _class_table(per_class: Mapping[str, Mapping[str, float]]) -> str:
    """Return the scores of each class, such as precision, recall and F1, as a text table."""
    width, columns = max(map(len, per_class)), list(next(iter(per_class.values())))
    lines = [f"  {'':{width}}  " + "  ".join(f"{column:>5}" for column in columns)]
    for name, row in per_class.items():
        formats = {column: ",.0f" if column == "examples" else ".3f" for column in columns}
        numbers = (f"{row[column]:{max(5, len(column))}{format_}}" for column, format_ in formats.items())
        lines.append(f"  {name:{width}}  " + "  ".join(numbers))
    return "\n".join(lines)


def _format_metrics(values: dict[str, Any]) -> str:
    """Return metrics as text; a metric that could not be measured is NaN here, and None in JSON."""
    measured = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return ", ".join(f"{name} {measured[name]:.4f}" if name in measured else f"{name} not measured" for name in values)
