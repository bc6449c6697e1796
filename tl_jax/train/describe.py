"""What a phase trains, and what freezing saves, as a table for the screen."""

from typing import Any

import jax

from tl_jax import tree
from tl_jax.train import devices
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_init, make_train_step
from tl_jax.train.stepper import Stepper
from tl_jax.transfer import partition
from tl_jax.transfer.phases import Phase


def describe(phase: Phase, state: TrainState, stepper: Stepper, call: tuple[Any, Any, Any, Any]) -> str:
    """Return the table of one phase.

    Args:
        phase: that is about to start.
        state: at its start.
        stepper: its compiled steps.
        call: the objective's loss, and a batch, the stream key and a learning rate as its step takes them.
    """
    mask = partition.trainable(state.params, phase.rules)
    split = partition.count_split(state.params, mask)
    still = partition.still_norms(mask, state.batch_stats, phase.batch_stats)
    norms = {path.rpartition("/")[0] for path in tree.flatten(state.batch_stats)}
    bytes_now, flops_now = tree.nbytes(state.opt_state), stepper.flops
    bytes_all, flops_all = _nothing_frozen(phase, state, call) if split["frozen"] else (bytes_now, flops_now)
    optim, rate = phase.optim, phase.rate
    return "\n".join(
        [
            f"phase {phase.name}: step {int(state.step):,} to {phase.stop:,}, {optim.name}, learning rate {rate.lr:g} "
            f"({rate.schedule}); compiled in {stepper.seconds:.1f} s",
            f"  parameters: {split['trainable']:,} trainable, {split['frozen']:,} frozen",
            *([f"  BatchNorm: {len(still)} of {len(norms)} layers keep their statistics"] if norms else []),
            f"  optimizer state: {bytes_now / 1e6:,.2f} MB ({bytes_all / 1e6:,.2f} MB with nothing frozen)",
            f"  work a step: {flops_now / 1e9:,.2f} GFLOP ({flops_all / 1e9:,.2f} GFLOP with nothing frozen)",
        ]
    )


def _nothing_frozen(phase: Phase, state: TrainState, call: tuple[Any, Any, Any, Any]) -> tuple[int, float]:
    """Return bytes of optimizer state and FLOPs of a step, had the phase frozen nothing; nothing is compiled."""
    loss, batch, stream, rate = call
    everything = partition.RECIPES["all"]
    opt_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated()),
        jax.eval_shape(make_init(phase.optim, everything), state.params),
    )
    step = make_train_step(loss, phase.optim, everything, phase.batch_stats)
    return tree.nbytes(opt_state), devices.flops(step, state.replace(opt_state=opt_state), batch, stream, rate)
