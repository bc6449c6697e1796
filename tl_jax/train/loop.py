"""The training loop: phases of steps with evaluation, early stopping, checkpoints and exact resumption."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tl_jax.metrics.intervals import wilson_interval
from tl_jax.train import evaluate, sharding
from tl_jax.train.advice import norm_shift
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.freeze_audit import FreezeAudit
from tl_jax.train.logging import Log
from tl_jax.train.preemption import defer_signals
from tl_jax.train.state import TrainState, initial_states, stream_key
from tl_jax.train.step import Stepper, make_optimizer_init
from tl_jax.train.task import Objective, Task
from tl_jax.train.workdir import ACTION, read_json, write_json
from tl_jax.transfer import freeze, optimizer
from tl_jax.transfer.phases import SUPERVISED, Phase
from tl_jax.utils import tree
from tl_jax.utils.command import show_elapsed
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import parse_row


def is_exhausted(scores: Sequence[float], patience: int) -> bool:
    """Return whether the best of ``scores`` (the earliest, if tied) is at least ``patience`` evaluations old."""
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


START = "start"  # phase of rows measured before the first step


def phase_rows(workdir: Path, phase: str) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl`` that a phase has written so far, including those before a resumption."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = [parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    return [row for row in rows if row.get("phase") == phase]


def validation_scores(workdir: Path, phase: str, score: str) -> list[float]:
    """Return the validation scores of a phase so far."""
    rows = [row for row in phase_rows(workdir, phase) if row.get("split") == "validation"]
    for row in rows:
        if type(row.get(score)) not in (int, float):
            raise UserError(f"{workdir / 'metrics.jsonl'}: step {row.get('step')} has no {score}; {ACTION}")
    return [row[score] for row in rows]


def describe_phase(phase: Phase, state: TrainState, stepper: Any, full_objective: Objective) -> str:
    """Return a table that describes one phase.

    Args:
        phase: the phase that is about to start.
        state: its initial state.
        stepper: its compiled steps.
        full_objective: its objective, computed from the examples.
    """
    mask = freeze.trainable(state.params, phase.rules)
    counts = freeze.count_split(state.params, mask)
    frozen_norms = freeze.frozen_batch_norms(mask, state.batch_stats, phase.batch_stats)
    norms = freeze.frozen_batch_norms(mask, state.batch_stats, "frozen")
    bytes_now, flops_now = tree.nbytes(state.opt_state), stepper.flops
    bytes_all, flops_all = stepper.unfrozen_cost(state, full_objective) if counts["frozen"] else (bytes_now, flops_now)
    optim, rate = phase.optim, phase.rate
    return "\n".join(
        [
            f"phase {phase.name}: step {int(state.step):,} to {phase.stop:,}, {optim.name}, learning rate {rate.lr:g} "
            f"({rate.schedule}); compiled in {stepper.seconds:.1f} s",
            f"  parameters: {counts['trainable']:,} trainable, {counts['frozen']:,} frozen{_trained_modules(mask)}",
            *([f"  BatchNorm: {len(frozen_norms)} of {len(norms)} layers keep their statistics"] if norms else []),
            f"  optimizer state: {bytes_now / 1e6:,.2f} MB ({bytes_all / 1e6:,.2f} MB with nothing frozen)",
            *([_flops_line(flops_now, flops_all, bool(counts["frozen"]))] if math.isfinite(flops_now) else []),
        ]
    )


def _trained_modules(mask: Any) -> str:
    """Return the top-level modules with trained parameters, if some are frozen: "; trained: stage4, head"."""
    has_trained = {name: any(jax.tree.leaves(leaves)) for name, leaves in mask.items()}
    if all(map(all, map(jax.tree.leaves, mask.values()))):
        return ""
    return f"; trained: {', '.join(name for name, trained in has_trained.items() if trained)}"


def _flops_line(flops: float, unfrozen_flops: float, estimated: bool) -> str:
    prefix = "about " if estimated else ""
    return f"  per step: {flops / 1e9:,.2f} GFLOP ({prefix}{unfrozen_flops / 1e9:,.2f} GFLOP with nothing frozen)"


def stage_parameters(params: Any, plan: Sequence[Phase], stages: Sequence[str]) -> dict[str, Any]:
    """Return the stages of a network, input first, with their parameter counts and those that each phase trains.

    Args:
        params: parameters of the network.
        plan: phases of the run.
        stages: names of the network's stages; further layers, such as the head, follow them.
    """
    stage_of = {path: path.partition("/")[0] for path in tree.flatten(params)}
    order = list(dict.fromkeys([*(name for name in stages if name in stage_of.values()), *stage_of.values()]))
    sizes = {path: int(leaf.size) for path, leaf in tree.flatten(params).items()}
    masks = [tree.flatten(freeze.trainable(params, phase.rules)) for phase in plan]
    return {
        "phases": [phase.name for phase in plan],
        "parts": [
            {
                "name": stage,
                "parameters": sum(size for path, size in sizes.items() if stage_of[path] == stage),
                "trained": [
                    sum(size for path, size in sizes.items() if stage_of[path] == stage and mask[path])
                    for mask in masks
                ],
            }
            for stage in order
        ],
    }


class Pace(NamedTuple):
    """Intervals of logging, checkpoints and early stopping.

    Attributes:
        save: steps between checkpoints, each after an evaluation.
        log: steps between rows of metrics.
        patience: evaluations of the last phase without improvement before the run stops; 0 disables early stopping.
        min_interval: minimum seconds between checkpoints, since writing one can take longer than a short epoch. The
            best so far and the last of a phase are always written.
    """

    save: int
    log: int
    patience: int = 0
    min_interval: float = 0.0


class Run:
    """State shared by the phases of a run."""

    def __init__(
        self,
        task: Task,
        pace: Pace,
        seed: int,
        checkpoints: Checkpoints,
        log: Log,
        stop_signal: Callable[[], type[BaseException] | None],
        workdir: Path,
        audit: FreezeAudit | None,
        sharded: bool,
        starts_as_probe: bool,
    ):
        self.task, self.pace, self.seed, self.checkpoints, self.log = task, pace, seed, checkpoints, log
        self.stop_signal = stop_signal  # returns the exception to raise if a stop was requested
        self.workdir, self.audit, self.sharded = workdir, audit, sharded
        self.starts_as_probe = starts_as_probe
        self.stream = sharding.replicate(stream_key(seed, "train"))
        self.seconds = {"features": 0.0, "compile": 0.0, "train": 0.0, "eval": 0.0}
        self.phase_tasks: dict[int, Task] = {}  # by the first step of the phase
        self.steps_taken = 0  # steps since this process started
        self.start_norms: dict[str, Any] = {}
        self.best, self.saved = -math.inf, -math.inf  # validation score, and start time of the last checkpoint

    def phases(self, plan: Sequence[Phase], done: int) -> tuple[TrainState, dict[str, int]]:
        """Run the phases from step ``done`` on; return the last state and the last phase's parameter counts."""
        initial, state = initial_states(self.task, self.seed, self.sharded)
        self.start_norms = sharding.to_host(dict(state.batch_stats))
        parameters = {"trainable": 0, "frozen": tree.count(state.params)}
        if not plan and self.checkpoints.latest() is None:
            self._save(initial, self._evaluate(START, initial, self.task), force=True)
        elif self.starts_as_probe and not done:
            self._evaluate(START, initial, self.task)
        for phase in plan:
            parameters = freeze.count_split(state.params, freeze.trainable(state.params, phase.rules))
            if done >= phase.stop and phase is not plan[-1]:
                continue
            state = state.replace(opt_state=self._init_opt_state(phase, state))
            if done and done >= phase.start:  # a phase starts with a new optimizer state
                state = self.checkpoints.restore(done, state, opt_state=done > phase.start)
            if done == phase.start:  # a moving average starts from the phase's initial weights
                state = state.replace(opt_state=self._init_opt_state(phase, state))
            if done < phase.stop:
                state = self.train(phase, state, self.pace.patience if phase is plan[-1] else 0)
        return state, parameters

    def _init_opt_state(self, phase: Phase, state: TrainState) -> Any:
        """Return the initial optimizer state of a phase; the first may start from the source's moments."""
        new = make_optimizer_init(phase.optim, phase.rules, self.sharded)(state.params)
        moments = state.source.get("moments", {}) if phase.start == 0 else {}
        if not moments:
            return new
        opt_state = optimizer.set_adam_moments(new, moments)
        return jax.device_put(opt_state, sharding.tree_shardings(opt_state) if self.sharded else sharding.replicated())

    def train(self, phase: Phase, state: TrainState, patience: int) -> TrainState:
        """Run the remaining steps of one phase."""
        first = int(state.step)
        scores = validation_scores(self.workdir, phase.name, self.task.score) if patience else []
        if is_exhausted(scores, patience):
            return state
        task, stepper = self._prepare(phase, state)
        self.log.start_bar(first)
        now, pending = first, self._load_pending(first)
        clock = time.monotonic()
        while now < phase.stop:
            if reason := self.stop_signal():
                self._save_pending(state, now, pending)
                raise reason(f"stopped after step {now:,}; the state is saved")
            stops = (phase.stop, now + stepper.max_steps, *(now - now % every + every for every in self.pace[:2]))
            state, rows = stepper.advance(state, now, min(stops))
            pending += rows
            self.steps_taken += len(rows)
            now += len(rows)
            save = now % self.pace.save == 0 or now == phase.stop
            if save or now % self.pace.log == 0:
                self._flush(phase, now, pending)
                pending = []
            if save:
                self.seconds["train"] += time.monotonic() - clock
                values = self._evaluate(phase.name, state, task)
                scores += [values[self.task.score]] if patience and values else []
                stop_early = is_exhausted(scores, patience)
                self._save(state, values, force=stop_early or now == phase.stop)
                if stop_early:
                    self.log.say(
                        f"validation {self.task.score} did not improve in {patience} evaluations: stopped early"
                    )
                    break
                clock = time.monotonic()
        if self.audit:
            self.audit.end(phase, state)
        return state

    def phase_task(self, phase: Phase, state: TrainState) -> Task:
        """Return the task of a phase, with cached outputs of the frozen layers below the trained ones."""
        if phase.objective != SUPERVISED:
            return self.task
        if phase.start not in self.phase_tasks:
            clock = time.monotonic()
            with show_elapsed("computing outputs of frozen layers"):
                self.phase_tasks[phase.start] = self.task.cache_features(state.variables, phase)
            self.seconds["features"] += time.monotonic() - clock
            self.log.exclude_time(time.monotonic() - clock)
        return self.phase_tasks[phase.start]

    def _prepare(self, phase: Phase, state: TrainState) -> tuple[Task, Stepper]:
        """Return the task of a phase and its compiled steps."""
        full_objective, task = self.task.objective(phase.objective), self.phase_task(phase, state)
        objective = task.objective(phase.objective)
        self.log.say(f"compiling the training step of phase {phase.name} ...")
        stepper_class = objective.make_stepper or Stepper
        with show_elapsed(f"compiling the training step of phase {phase.name}"):
            stepper = stepper_class(
                phase, objective, state, self.stream, int(state.step), min(self.pace.save, self.pace.log)
            )
        self.seconds["compile"] += stepper.seconds
        self.log.exclude_time(stepper.seconds)
        self.log.say(describe_phase(phase, state, stepper, full_objective))
        if self.audit:
            self.audit.begin(phase, state, stepper.flops, stepper.forward_flops(state, full_objective))
        return task, stepper

    def _save_pending(self, state: TrainState, now: int, pending: list[Any]) -> None:
        """Save a state between two evaluations, with the sums of the incomplete metrics row."""
        sums = [row["sums"] for row in jax.device_get(pending)]
        write_json(self.workdir / "pending.json", {"step": now, "sums": evaluate.sum_metrics(sums)})
        if self.checkpoints.latest() != now:
            self.checkpoints.save(state, None)
        self.checkpoints.wait()

    def _load_pending(self, now: int) -> list[Any]:
        """Return the sums that ``_save_pending`` stored for the metrics row of step ``now``."""
        saved = read_json(self.workdir / "pending.json")
        return [{"sums": saved["sums"]}] if saved.get("step") == now and saved["sums"] else []

    def _flush(self, phase: Phase, now: int, pending: list[Any]) -> None:
        """Fetch the rows of the last steps, raise ``Diverged`` if one is not finite, and write their mean."""
        rows = jax.device_get(pending)
        for i, row in enumerate(rows, start=now - len(rows) + 1):
            total, count = row["sums"]["loss"]
            norms = {name: row[name] for name in ("grad_norm", "param_norm") if name in row}
            values = {"loss": total / max(count, 1), **norms}
            evaluate.check_finite(values, f"step {i} (phase {phase.name})", self._describe_last)
        values = evaluate.mean_metrics(row["sums"] for row in rows)
        extra = {name: float(rows[-1][name]) for name in ("lr", "grad_norm", "param_norm")}
        self.log.row(now, "train", {**values, **extra}, phase=phase.name)
        self.log.progress(now, **values)

    def _describe_last(self) -> str:
        """Describe the last checkpoint, for an error about values that are not finite."""
        step = self.checkpoints.latest()
        return "no checkpoint was written" if step is None else f"the last good checkpoint is step {step}"

    def _evaluate(self, phase: str, state: TrainState, task: Task) -> dict[str, float] | None:
        """Return the metrics of the validation split; None without one."""
        if not self.task.sizes.get("validation"):
            return None
        clock, now = time.monotonic(), int(state.step)
        where = f"validation after step {now} (phase {phase})"
        values, _, compiling, _ = evaluate.evaluate(
            task, state.eval_variables, "validation", where=where, describe_last=self._describe_last
        )
        evaluate.check_finite(values, where, self._describe_last)  # includes the metric that selects the best
        self.log.row(now, "validation", values, phase=phase)
        self.seconds["compile"] += compiling
        self.log.exclude_time(compiling)
        self.seconds["eval"] += time.monotonic() - clock - compiling
        return values

    def _save(self, state: TrainState, values: dict[str, float] | None, force: bool) -> None:
        """Save a state if ``force`` is set or it is due, see ``Pace.min_interval``; report scores and the time left."""
        clock, now = time.monotonic(), int(state.step)
        better = values is not None and values[self.task.score] >= self.best
        if better:
            assert values is not None
            self.best = values[self.task.score]
        # Clocks of several processes differ, and all of them must take part in a checkpoint.
        if force or better or jax.process_count() > 1 or clock - self.saved >= self.pace.min_interval:
            self.checkpoints.save(state, values)
            self.saved = time.monotonic()
        self.seconds["eval"] += time.monotonic() - clock
        shown = ", ".join(f"{name} {value:.4f}{self._interval(name, value)}" for name, value in (values or {}).items())
        spent = self.seconds["train"] + self.seconds["eval"]
        self.log.say(
            f"step {now:,}: {f'validation {shown}; ' if values else ''}{self.log.eta(now, self.steps_taken, spent)}"
        )

    def _interval(self, name: str, value: float) -> str:
        """Return the 95 % interval of a proportion of the validation examples as text; "" for other metrics."""
        if name != "accuracy" or not (self.task.has_classes and self.task.needs_labels):
            return ""  # the words of a sentence are not independent
        low, high = wilson_interval(value * (count := self.task.sizes["validation"]), count)
        return f" ({low:.2f} to {high:.2f})"


class Fitted(NamedTuple):
    """Result of training.

    Attributes:
        state: after the last step.
        task: as the last phase used it, see ``Task.cache_features``.
        checkpoints: of the run, still open.
        seconds: time of this process for ``features`` (of frozen layers), ``compile``, ``train`` and ``eval``.
        parameters: numbers of ``trainable`` and ``frozen`` parameters of the last phase.
        freeze: summary of the freeze audit, if enabled.
        norm_shift: shift of the BatchNorm statistics, see ``advice.norm_shift``.
        resumed_from: step at which this process resumed; 0 for an uninterrupted run.
    """

    state: TrainState
    task: Task
    checkpoints: Checkpoints
    seconds: dict[str, float]
    parameters: dict[str, int]
    freeze: dict[str, Any]
    norm_shift: float
    resumed_from: int


def fit(
    task: Task,
    plan: Sequence[Phase],
    pace: Pace,
    seed: int,
    workdir: Path,
    *,
    verbose: bool = True,
    verify_freeze: bool = False,
    sharded: bool = False,
    starts_as_probe: bool = False,
) -> Fitted:
    """Train through all phases, from the last checkpoint in ``workdir`` if there is one.

    Args:
        task: the task.
        plan: phases, in steps; without any, the initial state is returned unchanged.
        pace: intervals of logging and checkpoints.
        seed: random seed.
        workdir: folder of the run.
        verbose: print phases and evaluations. A terminal always shows a progress bar.
        verify_freeze: hash the frozen leaves before and after each phase.
        sharded: shard parameters, statistics and optimizer state over the devices.
        starts_as_probe: also evaluate before the first step, because the fitted head is a baseline for training.

    Raises:
        Preempted: SIGTERM was received; the state is saved.
        UserError: A value is not finite. The message names the step and the last good checkpoint.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", task)
    latest = checkpoints.latest_intact()
    done = latest or 0
    total = plan[-1].stop if plan else 0
    log = Log(workdir, -1 if latest is None else done, total, verbose)  # without a checkpoint, drop all rows
    sharding.wait_for_all("training")  # until the log is truncated
    if done:
        log.say(f"resuming from step {done:,} of {total:,}")
    audit = FreezeAudit(workdir) if verify_freeze else None
    try:
        with defer_signals() as stop_signal:
            run = Run(task, pace, seed, checkpoints, log, stop_signal, workdir, audit, sharded, starts_as_probe)
            state, parameters = run.phases(plan, done)
            last_task = run.phase_task(plan[-1], state) if plan else task
    except BaseException:
        checkpoints.close()  # finishes pending writes
        raise
    finally:
        log.close()
    checkpoints.wait()
    shift = norm_shift(run.start_norms, sharding.to_host(dict(state.batch_stats)))
    proof = audit.summary() if audit else {}
    return Fitted(state, last_task, checkpoints, run.seconds, parameters, proof, shift, done)
