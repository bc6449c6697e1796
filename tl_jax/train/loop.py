"""Training from the start to the end, or from where it stopped to the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax.task import Task
from tl_jax.train import hosts
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.interrupt import between_steps
from tl_jax.train.log import Log
from tl_jax.train.prove import Proof
from tl_jax.train.runner import Pace, Run
from tl_jax.train.state import TrainState
from tl_jax.transfer.phases import Phase


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
    hosts.meet("training")  # the log is as it was at that step
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
