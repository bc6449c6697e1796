"""The loop: phases of steps, with evaluation, checkpoints and exact resumption between them."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax import tree
from tl_jax.errors import UserError
from tl_jax.task import Task
from tl_jax.train import devices, metrics
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.log import Log
from tl_jax.train.state import TrainState, stream_key
from tl_jax.train.step import make_init, make_train_step
from tl_jax.transfer import partition
from tl_jax.transfer.phases import Phase


class Fitted(NamedTuple):
    """What training leaves behind.

    Attributes:
        state: after the last step.
        checkpoints: of the run, still open.
        seconds: spent on ``compile``, ``train`` and ``eval``.
        parameters: ``trainable`` and ``frozen`` values of the last phase.
    """

    state: TrainState
    checkpoints: Checkpoints
    seconds: dict[str, float]
    parameters: dict[str, int]


class Pace(NamedTuple):
    """How often things happen, in steps: checkpoints (after an evaluation) and rows of metrics."""

    save: int
    log: int


def fit(task: Task, plan: Sequence[Phase], pace: Pace, seed: int, workdir: Path, verbose: bool = True) -> Fitted:
    """Train through all phases, from the last checkpoint in ``workdir`` where there is one.

    Args:
        task: what is learned.
        plan: phases, in steps.
        pace: when to write.
        seed: of everything random.
        workdir: folder of the run.
        verbose: show phases, evaluations and, on a terminal, a progress bar.

    Raises:
        UserError: the loss is not finite; the message names the step and the last good checkpoint.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    done = checkpoints.latest() or 0
    log = Log(workdir, done, plan[-1].stop, verbose)
    if done:
        log.say(f"resuming from step {done:,} of {plan[-1].stop:,}")
    run = _Run(task, pace, seed, checkpoints, log)
    try:
        state = initial_state(task, seed)
        for phase in plan:
            parameters = partition.count_split(state.params, partition.trainable(state.params, phase.rules))
            if done >= phase.stop and phase is not plan[-1]:
                continue
            state = state.replace(opt_state=make_init(phase.optim, phase.rules)(state.params))
            if done and done >= phase.start:  # at the very start of a phase its optimizer state is new
                state = checkpoints.restore(done, state, opt_state=done > phase.start)
            if done < phase.stop:
                state = run.train(phase, state)
    except BaseException:
        checkpoints.close()  # what is being written is worth finishing
        raise
    finally:
        log.close()
    checkpoints.wait()
    return Fitted(state, checkpoints, run.seconds, parameters)


def initial_state(task: Task, seed: int) -> TrainState:
    """Return the state before the first step, without optimizer state, replicated over the devices."""
    variables = task.init(stream_key(seed, "init"))
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("batch_stats", {}), ())
    # A jitted copy rather than device_put alone: the step reuses the state's memory, which must be no one else's.
    return jax.jit(lambda s: jax.tree.map(jnp.copy, s), out_shardings=devices.replicated())(state)


class _Run:
    """The moving parts that phases share."""

    def __init__(self, task: Task, pace: Pace, seed: int, checkpoints: Checkpoints, log: Log):
        self.task, self.pace, self.checkpoints, self.log = task, pace, checkpoints, log
        self.stream = jax.device_put(stream_key(seed, "train"), devices.replicated())
        self.seconds = {"compile": 0.0, "train": 0.0, "eval": 0.0}
        self.taken = 0  # steps since this process started

    def train(self, phase: Phase, state: TrainState) -> TrainState:
        """Take the steps of one phase that are still to be taken."""
        begin = jax.device_put(jnp.asarray(phase.start, jnp.int32), devices.replicated())
        first = int(state.step)
        batch = devices.put(self.task.train_batch(first))
        step = make_train_step(self.task.loss, phase.optim, phase.rules, phase.batch_stats)
        clock = time.monotonic()
        execute, flops = devices.compiled(step, state, batch, self.stream, begin)
        self.seconds["compile"] += time.monotonic() - clock
        self._announce(phase, state, flops, time.monotonic() - clock)
        pending = []
        clock = time.monotonic()
        for i in range(first, phase.stop):
            if i > first:
                batch = devices.put(self.task.train_batch(i))
            state, row = execute(state, batch, self.stream, begin)
            pending.append(row)
            self.taken += 1
            now = i + 1
            save = now % self.pace.save == 0 or now == phase.stop
            if save or now % self.pace.log == 0:
                self._flush(phase, now, pending)
                pending = []
            if save:
                self.seconds["train"] += time.monotonic() - clock
                self._evaluate_and_save(phase, state)
                clock = time.monotonic()
        return state

    def _announce(self, phase: Phase, state: TrainState, flops: float, seconds: float) -> None:
        mask = partition.trainable(state.params, phase.rules)
        split = partition.count_split(state.params, mask)
        still = partition.still_norms(mask, state.batch_stats, phase.batch_stats)
        norms = {path.rpartition("/")[0] for path in tree.flatten(state.batch_stats)}
        self.log.say(
            f"phase {phase.name}: steps {phase.start:,} to {phase.stop:,}, {phase.optim.name} lr {phase.optim.lr:g}, "
            f"trainable {split['trainable']:,}, frozen {split['frozen']:,} values; "
            f"{len(still)} of {len(norms)} BatchNorm layers keep their statistics; "
            f"optimizer state {tree.nbytes(state.opt_state) / 1e6:.2f} MB; "
            f"{flops / 1e9:.3g} GFLOP a step; compiled in {seconds:.1f} s"
        )

    def _flush(self, phase: Phase, now: int, pending: list[Any]) -> None:
        """Fetch the rows of the last steps, stop on a loss that is not finite, write their mean."""
        rows = jax.device_get(pending)
        for i, row in enumerate(rows, start=now - len(rows) + 1):
            total, count = row["sums"]["loss"]
            if not math.isfinite(total / count):
                kept = self.checkpoints.latest()
                where = "no checkpoint was written yet" if kept is None else f"the last good checkpoint is step {kept}"
                raise UserError(
                    f"the loss of step {i} (phase {phase.name}) is {total / count}; {where}; "
                    "lower config.optim.lr or set config.optim.clip_norm, with a new --workdir"
                )
        values = metrics.mean(row["sums"] for row in rows)
        extra = {"lr": float(rows[-1]["lr"]), "grad_norm": float(rows[-1]["grad_norm"])}
        self.log.row(now, "train", {**values, **extra}, phase=phase.name)
        self.log.progress(now, **values)

    def _evaluate_and_save(self, phase: Phase, state: TrainState) -> None:
        clock = time.monotonic()
        values, now, shown = None, int(state.step), ""
        if self.task.sizes.get("validation"):
            values, _ = metrics.evaluate(self.task, state.variables, "validation")
            self.log.row(now, "validation", values, phase=phase.name)
            shown = "validation " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()) + "; "
        self.checkpoints.save(state, values)
        self.seconds["eval"] += time.monotonic() - clock
        spent = self.seconds["train"] + self.seconds["eval"]
        self.log.say(f"step {now:,}: {shown}{self.log.eta(now, self.taken, spent)}")
