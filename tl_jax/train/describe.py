"""What a phase trains, and what freezing saves, as a table for the screen."""

import math
from collections.abc import Sequence
from typing import Any

from tl_jax import tree
from tl_jax.task import Objective
from tl_jax.train.state import TrainState
from tl_jax.transfer import partition
from tl_jax.transfer.phases import Phase


def describe(phase: Phase, state: TrainState, stepper: Any, whole: Objective) -> str:
    """Return the table of one phase.

    Args:
        phase: that is about to start.
        state: at its start.
        stepper: its compiled steps.
        whole: what it learns, computed from the examples on.
    """
    mask = partition.trainable(state.params, phase.rules)
    split = partition.count_split(state.params, mask)
    still = partition.still_norms(mask, state.batch_stats, phase.batch_stats)
    norms = partition.still_norms(mask, state.batch_stats, "frozen")
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
    masks = [tree.flatten(partition.trainable(params, phase.rules)) for phase in plan]
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
