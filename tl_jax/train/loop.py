"""The training loop: phases of steps with evaluation, early stopping, checkpoints and exact resumption."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tl_jax.train import evaluate, sharding
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.freeze_audit import Proof
from tl_jax.train.logging import Log
from tl_jax.train.preemption import between_steps
from tl_jax.train.run_files import ACTION
from tl_jax.train.state import TrainState, initial_state, stream_key
from tl_jax.train.step import Stepper, make_init
from tl_jax.train.task import Objective, Task
from tl_jax.train.workdir import read_json, write_json
from tl_jax.transfer import freeze, optimizer
from tl_jax.transfer.phases import SUPERVISED, Phase
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import parse_row
from tl_jax.utils.waiting import show_elapsed


def exhausted(scores: Sequence[float], patience: int) -> bool:
    """Tell whether the best of the ``scores``, the earliest where equal, lies ``patience`` or more evaluations back."""
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def history(workdir: Path, phase: str, score: str) -> list[float]:
    """Return the validation scores of a phase so far, from ``metrics.jsonl``: a resumed run remembers them."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = [parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    rows = [row for row in rows if row.get("split") == "validation" and row.get("phase") == phase]
    for row in rows:
        if type(row.get(score)) not in (int, float):
            raise UserError(f"{path} has no {score} of step {row.get('step')}; {ACTION}")
    return [row[score] for row in rows]


def describe(phase: Phase, state: TrainState, stepper: Any, whole: Objective) -> str:
    """Return the table of one phase.

    Args:
        phase: that is about to start.
        state: at its start.
        stepper: its compiled steps.
        whole: what it learns, computed from the examples on.
    """
    mask = freeze.trainable(state.params, phase.rules)
    split = freeze.count_split(state.params, mask)
    still = freeze.still_norms(mask, state.batch_stats, phase.batch_stats)
    norms = freeze.still_norms(mask, state.batch_stats, "frozen")
    bytes_now, flops_now = tree.nbytes(state.opt_state), stepper.flops
    bytes_all, flops_all = stepper.unfrozen(state, whole) if split["frozen"] else (bytes_now, flops_now)
    optim, rate = phase.optim, phase.rate
    return "\n".join(
        [
            f"phase {phase.name}: step {int(state.step):,} to {phase.stop:,}, {optim.name}, learning rate {rate.lr:g} "
            f"({rate.schedule}); compiled in {stepper.seconds:.1f} s",
            f"  parameters: {split['trainable']:,} trainable, {split['frozen']:,} frozen",
            *([f"  BatchNorm: {len(still)} of {len(norms)} layers keep their statistics"] if norms else []),
            f"  optimizer state: {bytes_now / 1e6:,.2f} MB ({bytes_all / 1e6:,.2f} MB with nothing frozen)",
            *([_work(flops_now, flops_all, "about " * bool(split["frozen"]))] if math.isfinite(flops_now) else []),
        ]
    )


def _work(now: float, whole: float, about: str) -> str:
    return f"  work a step: {now / 1e9:,.2f} GFLOP ({about}{whole / 1e9:,.2f} GFLOP with nothing frozen)"


def layout(params: Any, plan: Sequence[Phase], parts: Sequence[str]) -> dict[str, Any]:
    """Return the parts of a network from the input on: how many values each has, and how many a phase trains.

    Args:
        params: of the network.
        plan: phases of the run.
        parts: names of the network's parts; others, such as the head, come after them.
    """
    owners = {path: path.partition("/")[0] for path in tree.flatten(params)}
    order = list(dict.fromkeys([*(name for name in parts if name in owners.values()), *owners.values()]))
    sizes = {path: int(leaf.size) for path, leaf in tree.flatten(params).items()}
    masks = [tree.flatten(freeze.trainable(params, phase.rules)) for phase in plan]
    return {
        "phases": [phase.name for phase in plan],
        "parts": [
            {
                "name": part,
                "parameters": sum(size for path, size in sizes.items() if owners[path] == part),
                "trained": [
                    sum(size for path, size in sizes.items() if owners[path] == part and mask[path]) for mask in masks
                ],
            }
            for part in order
        ],
    }


class Pace(NamedTuple):
    """How often things happen.

    Attributes:
        save: steps between checkpoints, each after an evaluation.
        log: steps between rows of metrics.
        patience: evaluations of the last phase without a better one after which the run ends; 0 for never.
        rest: seconds for which no checkpoint follows another, but for the best so far and the last of a phase:
            writing one takes longer than a short epoch does.
    """

    save: int
    log: int
    patience: int = 0
    rest: float = 0.0


class Run:
    """The moving parts that phases share."""

    def __init__(
        self,
        task: Task,
        pace: Pace,
        seed: int,
        checkpoints: Checkpoints,
        log: Log,
        asked: Callable[[], type[BaseException] | None],
        workdir: Path,
        proof: Proof | None,
        sharded: bool,
    ):
        self.task, self.pace, self.seed, self.checkpoints, self.log = task, pace, seed, checkpoints, log
        self.asked = asked  # what to raise where someone asked to stop
        self.workdir, self.proof, self.sharded = workdir, proof, sharded
        self.stream = sharding.everywhere(stream_key(seed, "train"))
        self.seconds = {"features": 0.0, "compile": 0.0, "train": 0.0, "eval": 0.0}
        self.seen: dict[int, Task] = {}  # by the phase that starts at a step
        self.taken = 0  # steps since this process started
        self.best, self.saved = -math.inf, -math.inf  # validation score, and when the last checkpoint was begun

    def phases(self, plan: Sequence[Phase], done: int) -> tuple[TrainState, dict[str, int]]:
        """Go through the phases from step ``done``; return the last state and the last phase's parameter counts."""
        state = initial_state(self.task, self.seed, self.sharded)
        parameters = {"trainable": 0, "frozen": tree.count(state.params)}
        if not plan and self.checkpoints.latest() is None:
            self._save(state, self._evaluate("start", state, self.task), sure=True)
        for phase in plan:
            parameters = freeze.count_split(state.params, freeze.trainable(state.params, phase.rules))
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
        new = make_init(phase.optim, phase.rules, self.sharded)(state.params)
        passed = state.source.get("moments", {}) if phase.start == 0 else {}
        if not passed:
            return new
        both = optimizer.put_in(new, passed)
        return jax.device_put(both, sharding.layouts(both) if self.sharded else sharding.replicated())

    def train(self, phase: Phase, state: TrainState, patience: int) -> TrainState:
        """Take the steps of one phase that are still to be taken."""
        first = int(state.step)
        scores = history(self.workdir, phase.name, self.task.score) if patience else []
        if exhausted(scores, patience):
            return state
        task, stepper = self._prepare(phase, state)
        self.log.begin(first)
        now, pending = first, self._carried(first)
        clock = time.monotonic()
        while now < phase.stop:
            if reason := self.asked():
                self._leave(state, now, pending)
                raise reason(f"stopped after step {now:,}, which is saved")
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
                values = self._evaluate(phase.name, state, task)
                scores += [values[self.task.score]] if patience and values else []
                enough = exhausted(scores, patience)
                self._save(state, values, sure=enough or now == phase.stop)
                if enough:
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
            with show_elapsed("computing outputs of frozen layers"):
                self.seen[phase.start] = self.task.shortcut(self.task, state.variables, phase)
            self.seconds["features"] += time.monotonic() - clock
            self.log.waited(time.monotonic() - clock)
        return self.seen[phase.start]

    def _prepare(self, phase: Phase, state: TrainState) -> tuple[Task, Stepper]:
        """Return the task as the phase sees it, and its compiled steps."""
        whole, task = self.task.objective(phase.objective), self.seen_by(phase, state)
        objective = task.objective(phase.objective)
        self.log.say(f"compiling the training step of phase {phase.name} ...")
        made = objective.stepper or Stepper
        with show_elapsed(f"compiling the training step of phase {phase.name}"):
            stepper = made(phase, objective, state, self.stream, int(state.step), min(self.pace.save, self.pace.log))
        self.seconds["compile"] += stepper.seconds
        self.log.waited(stepper.seconds)
        self.log.say(describe(phase, state, stepper, whole))
        if self.proof:
            self.proof.begin(phase, state, stepper.flops, stepper.forward(state, whole))
        return task, stepper

    def _leave(self, state: TrainState, now: int, pending: list[Any]) -> None:
        """Save a state between two evaluations, and the sums of the row of metrics that has been begun."""
        sums = [row["sums"] for row in jax.device_get(pending)]
        write_json(self.workdir / "pending.json", {"step": now, "sums": evaluate.total(sums)})
        if self.checkpoints.latest() != now:
            self.checkpoints.save(state, None)
        self.checkpoints.wait()

    def _carried(self, now: int) -> list[Any]:
        """Return what ``_leave`` kept of the row that step ``now`` is in."""
        kept = read_json(self.workdir / "pending.json")
        return [{"sums": kept["sums"]}] if kept.get("step") == now and kept["sums"] else []

    def _flush(self, phase: Phase, now: int, pending: list[Any]) -> None:
        """Fetch the rows of the last steps, stop where one is not finite, write their mean."""
        rows = jax.device_get(pending)
        for i, row in enumerate(rows, start=now - len(rows) + 1):
            total, count = row["sums"]["loss"]
            norms = {name: row[name] for name in ("grad_norm", "param_norm") if name in row}
            values = {"loss": total / max(count, 1), **norms}
            evaluate.check_finite(values, f"step {i} (phase {phase.name})", self._left)
        values = evaluate.mean(row["sums"] for row in rows)
        extra = {name: float(rows[-1][name]) for name in ("lr", "grad_norm", "param_norm")}
        self.log.row(now, "train", {**values, **extra}, phase=phase.name)
        self.log.progress(now, **values)

    def _left(self) -> str:
        """Return what is left of the run where it ends with numbers that are not finite."""
        kept = self.checkpoints.latest()
        return "no checkpoint was written yet" if kept is None else f"the last good checkpoint is step {kept}"

    def _evaluate(self, phase: str, state: TrainState, task: Task) -> dict[str, float] | None:
        """Return the metrics on the validation part, None where there is none."""
        if not self.task.sizes.get("validation"):
            return None
        clock, now = time.monotonic(), int(state.step)
        where = f"validation after step {now} (phase {phase})"
        values, _, compiling, _ = evaluate.evaluate(task, state.tested, "validation", where=where, last=self._left)
        evaluate.check_finite(values, where, self._left)  # the judge's, by one of which the best is chosen
        self.log.row(now, "validation", values, phase=phase)
        self.seconds["compile"] += compiling
        self.log.waited(compiling)
        self.seconds["eval"] += time.monotonic() - clock - compiling
        return values

    def _save(self, state: TrainState, values: dict[str, float] | None, sure: bool) -> None:
        """Keep a state where that is ``sure`` or due, see ``Pace.rest``; tell how it does and how long is left."""
        clock, now = time.monotonic(), int(state.step)
        better = values is not None and values[self.task.score] >= self.best
        if better:
            assert values is not None
            self.best = values[self.task.score]
        # Clocks of several processes differ, and all of them must come to write.
        if sure or better or jax.process_count() > 1 or clock - self.saved >= self.pace.rest:
            self.checkpoints.save(state, values)
            self.saved = time.monotonic()
        self.seconds["eval"] += time.monotonic() - clock
        shown = ", ".join(f"{name} {value:.4f}" for name, value in (values or {}).items())
        spent = self.seconds["train"] + self.seconds["eval"]
        self.log.say(f"step {now:,}: {f'validation {shown}; ' if values else ''}{self.log.eta(now, self.taken, spent)}")


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


def fit(
    task: Task,
    plan: Sequence[Phase],
    pace: Pace,
    seed: int,
    workdir: Path,
    verbose: bool = True,
    prove: bool = False,
    sharded: bool = False,
) -> Fitted:
    """Train through all phases, from the last checkpoint in ``workdir`` where there is one.

    Args:
        task: what is learned.
        plan: phases, in steps; none leaves the initial state as it is.
        pace: when to write.
        seed: of everything random.
        workdir: folder of the run.
        verbose: show phases and evaluations; a terminal shows a progress bar in any case.
        prove: hash what is frozen before and after each phase.
        sharded: split parameters, statistics and optimizer state over the devices.

    Raises:
        Preempted: SIGTERM came, and the state was saved.
        UserError: numbers that are not finite; the message names the step and the last good checkpoint.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", task)
    done = checkpoints.sound() or 0
    total = plan[-1].stop if plan else 0
    log = Log(workdir, done, total, verbose)
    sharding.meet("training")  # the log is as it was at that step
    if done:
        log.say(f"resuming from step {done:,} of {total:,}")
    proof = Proof(workdir) if prove else None
    try:
        with between_steps() as asked:
            run = Run(task, pace, seed, checkpoints, log, asked, workdir, proof, sharded)
            state, parameters = run.phases(plan, done)
            seen = run.seen_by(plan[-1], state) if plan else task
    except BaseException:
        checkpoints.close()  # what is being written is worth finishing
        raise
    finally:
        log.close()
    checkpoints.wait()
    return Fitted(state, seen, checkpoints, run.seconds, parameters, proof.summary() if proof else {}, done)
