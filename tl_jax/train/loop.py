"""The loop: phases of steps, with evaluation, checkpoints and exact resumption between them."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tl_jax import tree
from tl_jax.errors import Diverged
from tl_jax.task import Task
from tl_jax.train import devices, early_stop, metrics
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.describe import describe
from tl_jax.train.interrupt import between_steps
from tl_jax.train.log import Log
from tl_jax.train.prove import Proof
from tl_jax.train.state import TrainState, initial_state, stream_key
from tl_jax.train.step import make_init
from tl_jax.train.stepper import Stepper
from tl_jax.transfer import moments, partition
from tl_jax.transfer.phases import SUPERVISED, Phase


class Fitted(NamedTuple):
    """What training leaves behind.

    Attributes:
        state: after the last step.
        task: as the last phase saw it, see ``Task.shortcut``.
        checkpoints: of the run, still open.
        seconds: spent by this process on ``features`` (of frozen layers), ``compile``, ``train`` and ``eval``.
        parameters: ``trainable`` and ``frozen`` values of the last phase.
        freeze: the proof of freezing, where one was asked for.
        resumed_from: step at which this process took over, 0 for a run in one piece.
    """

    state: TrainState
    task: Task
    checkpoints: Checkpoints
    seconds: dict[str, float]
    parameters: dict[str, int]
    freeze: dict[str, Any]
    resumed_from: int


class Pace(NamedTuple):
    """How often things happen.

    Attributes:
        save: steps between checkpoints, each after an evaluation.
        log: steps between rows of metrics.
        patience: evaluations of the last phase without a better one after which the run ends; 0 for never.
    """

    save: int
    log: int
    patience: int = 0


def fit(
    task: Task,
    plan: Sequence[Phase],
    pace: Pace,
    seed: int,
    workdir: Path,
    verbose: bool = True,
    prove: bool = False,
) -> Fitted:
    """Train through all phases, from the last checkpoint in ``workdir`` where there is one.

    Args:
        task: what is learned.
        plan: phases, in steps; none leaves the initial state as it is.
        pace: when to write.
        seed: of everything random.
        workdir: folder of the run.
        verbose: show phases, evaluations and, on a terminal, a progress bar.
        prove: hash what is frozen before and after each phase.

    Raises:
        UserError: numbers that are not finite; the message names the step and the last good checkpoint.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", task)
    done = checkpoints.latest() or 0
    total = plan[-1].stop if plan else 0
    log = Log(workdir, done, total, verbose)
    if done:
        log.say(f"resuming from step {done:,} of {total:,}")
    proof = Proof(workdir) if prove else None
    try:
        with between_steps() as check:
            run = _Run(task, pace, seed, checkpoints, log, check, workdir, proof)
            state, parameters = run.phases(plan, done)
            seen = run.seen_by(plan[-1], state) if plan else task
    except BaseException:
        checkpoints.close()  # what is being written is worth finishing
        raise
    finally:
        log.close()
    checkpoints.wait()
    return Fitted(state, seen, checkpoints, run.seconds, parameters, proof.summary() if proof else {}, done)


class _Run:
    """The moving parts that phases share."""

    def __init__(
        self,
        task: Task,
        pace: Pace,
        seed: int,
        checkpoints: Checkpoints,
        log: Log,
        check: Callable[[], None],
        workdir: Path,
        proof: Proof | None,
    ):
        self.task, self.pace, self.seed, self.checkpoints, self.log = task, pace, seed, checkpoints, log
        self.check = check  # raises where the user asked to stop
        self.workdir, self.proof = workdir, proof
        self.stream = jax.device_put(stream_key(seed, "train"), devices.replicated())
        self.seconds = {"features": 0.0, "compile": 0.0, "train": 0.0, "eval": 0.0}
        self.seen: dict[int, Task] = {}  # by the phase that starts at a step
        self.taken = 0  # steps since this process started

    def phases(self, plan: Sequence[Phase], done: int) -> tuple[TrainState, dict[str, int]]:
        """Go through the phases from step ``done``; return the last state and the last phase's parameter counts."""
        state = initial_state(self.task, self.seed)
        parameters = {"trainable": 0, "frozen": tree.count(state.params)}
        if not plan and self.checkpoints.latest() is None:
            self._evaluate_and_save("start", state, self.task)
        for phase in plan:
            parameters = partition.count_split(state.params, partition.trainable(state.params, phase.rules))
            if done >= phase.stop and phase is not plan[-1]:
                continue
            state = state.replace(opt_state=self._fresh(phase, state))
            if done and done >= phase.start:  # at the very start of a phase its optimizer state is new
                state = self.checkpoints.restore(done, state, opt_state=done > phase.start)
            if done == phase.start:  # a running average starts from the weights that the phase starts from
                state = state.replace(opt_state=self._fresh(phase, state))
            if done < phase.stop:
                state = self.train(phase, state, self.pace.patience if phase is plan[-1] else 0)
        return state, parameters

    def _fresh(self, phase: Phase, state: TrainState) -> Any:
        """Return the optimizer state that a phase begins with: new, but for what a source passes on to the first."""
        new = make_init(phase.optim, phase.rules)(state.params)
        passed = state.source.get("moments", {}) if phase.start == 0 else {}
        return jax.device_put(moments.put_in(new, passed), devices.replicated())

    def train(self, phase: Phase, state: TrainState, patience: int) -> TrainState:
        """Take the steps of one phase that are still to be taken."""
        first = int(state.step)
        scores = early_stop.history(self.workdir, phase.name, self.task.score) if patience else []
        if early_stop.exhausted(scores, patience):
            return state
        task, stepper = self._prepare(phase, state)
        now, pending = first, []
        clock = time.monotonic()
        while now < phase.stop:
            self.check()
            goals = (phase.stop, now + stepper.most, *(now - now % every + every for every in self.pace[:2]))
            state, rows = stepper.advance(state, now, min(goals))
            pending += rows
            self.taken += len(rows)
            now += len(rows)
            save = now % self.pace.save == 0 or now == phase.stop
            if save or now % self.pace.log == 0:
                self._flush(phase, now, pending)
                pending = []
            if save:
                self.seconds["train"] += time.monotonic() - clock
                values = self._evaluate_and_save(phase.name, state, task)
                scores += [values[self.task.score]] if patience and values else []
                if early_stop.exhausted(scores, patience):
                    self.log.say(f"no better validation {self.task.score} in {patience} evaluations: stopped early")
                    break
                clock = time.monotonic()
        if self.proof:
            self.proof.end(phase, state)
        return state

    def seen_by(self, phase: Phase, state: TrainState) -> Task:
        """Return the task as a phase sees it: without what it leaves frozen."""
        if not self.task.shortcut or phase.objective != SUPERVISED:
            return self.task
        if phase.start not in self.seen:
            clock = time.monotonic()
            self.seen[phase.start] = self.task.shortcut(self.task, state.variables, phase)
            self.seconds["features"] += time.monotonic() - clock
        return self.seen[phase.start]

    def _prepare(self, phase: Phase, state: TrainState) -> tuple[Task, Stepper]:
        """Return the task as the phase sees it, and its compiled steps."""
        whole, task = self.task.objective(phase.objective), self.seen_by(phase, state)
        objective = task.objective(phase.objective)
        self.log.say(f"compiling the training step of phase {phase.name} ...")
        stepper = (objective.stepper or Stepper)(phase, objective, state, self.stream, int(state.step))
        self.seconds["compile"] += stepper.seconds
        self.log.say(describe(phase, state, stepper, whole))
        if self.proof:
            self.proof.begin(phase, state, stepper.flops, stepper.forward(state, whole))
        return task, stepper

    def _flush(self, phase: Phase, now: int, pending: list[Any]) -> None:
        """Fetch the rows of the last steps, stop where one is not finite, write their mean."""
        rows = jax.device_get(pending)
        for i, row in enumerate(rows, start=now - len(rows) + 1):
            total, count = row["sums"]["loss"]
            norms = {name: row[name] for name in ("grad_norm", "param_norm")}
            self._check_finite(f"step {i} (phase {phase.name})", {"loss": total / count, **norms})
        values = metrics.mean(row["sums"] for row in rows)
        extra = {name: float(rows[-1][name]) for name in ("lr", "grad_norm", "param_norm")}
        self.log.row(now, "train", {**values, **extra}, phase=phase.name)
        self.log.progress(now, **values)

    def _check_finite(self, where: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                kept = self.checkpoints.latest()
                last = "no checkpoint was written yet" if kept is None else f"the last good checkpoint is step {kept}"
                raise Diverged(
                    f"the {name} of {where} is {value}; {last}; "
                    "lower config.optim.lr or set config.optim.clip_norm, with a new --workdir"
                )

    def _evaluate_and_save(self, phase: str, state: TrainState, task: Task) -> dict[str, float] | None:
        """Return the metrics on the validation part, None where there is none; keep the state."""
        clock = time.monotonic()
        values, now, shown, compiling = None, int(state.step), "", 0.0
        if self.task.sizes.get("validation"):
            values, _, compiling, *_ = metrics.evaluate(task, state.tested, "validation")
            self._check_finite(f"validation after step {now} (phase {phase})", values)
            self.log.row(now, "validation", values, phase=phase)
            shown = "validation " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()) + "; "
        self.checkpoints.save(state, values)
        self.seconds["compile"] += compiling
        self.seconds["eval"] += time.monotonic() - clock - compiling
        spent = self.seconds["train"] + self.seconds["eval"]
        self.log.say(f"step {now:,}: {shown}{self.log.eta(now, self.taken, spent)}")
        return values
