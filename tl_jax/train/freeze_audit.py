"""Freeze audit: frozen leaves are hashed before and after each phase; a single changed bit stops the run."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.train.sharding import to_host
from tl_jax.train.state import TrainState
from tl_jax.train.workdir import ACTION, read_json, write_json
from tl_jax.transfer import freeze
from tl_jax.transfer.phases import Phase
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError, join_names
from tl_jax.utils.json_files import OBJECT, STRING, check_fields, object_of


def frozen_hashes(phase: Phase, state: TrainState) -> dict[str, str]:
    """Return the SHA-256 of each leaf that ``phase`` freezes, including frozen BatchNorm statistics."""
    mask = freeze.trainable(state.params, phase.rules)
    frozen_norms = freeze.frozen_batch_norms(mask, state.batch_stats, phase.batch_stats)
    flat, trained = tree.flatten(state.params), tree.flatten(mask)
    leaves = {f"params/{path}": leaf for path, leaf in flat.items() if not trained[path]}
    stats = tree.flatten(state.batch_stats)
    leaves |= {f"batch_stats/{path}": leaf for path, leaf in stats.items() if path.rpartition("/")[0] in frozen_norms}
    return {path: _hash(np.ascontiguousarray(leaf)) for path, leaf in to_host(leaves).items()}


def _hash(leaf: np.ndarray) -> str:
    # NumPy's type stubs declare arrays as buffers from Python 3.12 only.
    return hashlib.sha256(leaf).hexdigest()  # pyright: ignore[reportArgumentType]


class FreezeAudit:
    """Freeze audit of one run, in ``workdir/freeze.json``, so that it survives an interruption."""

    def __init__(self, workdir: Path):
        self._path = workdir / "freeze.json"
        self._phases: dict[str, Any] = read_json(self._path)
        check_fields(self._phases, self._path, dict.fromkeys(self._phases, OBJECT), ACTION)
        for name, phase in self._phases.items():
            check_fields(phase, f"{self._path}: {name}", {"sha256": object_of(STRING)}, ACTION)

    def begin(self, phase: Phase, state: TrainState, flops: float, forward: float) -> None:
        """Hash the frozen leaves at the start of a phase; a resumed phase keeps the hashes of its start.

        Args:
            phase: the phase.
            state: its initial state.
            flops: FLOPs of one step.
            forward: FLOPs of a forward pass from the examples.
        """
        before = self._phases.get(phase.name, {}).get("sha256") if int(state.step) > phase.start else None
        before = before or frozen_hashes(phase, state)
        self._phases[phase.name] = {
            "leaves": len(before),
            "changed": None,  # set when the phase ends
            "optimizer_bytes": tree.nbytes(state.opt_state),
            "flops_step": flops,
            "flops_forward": forward,
            "sha256": before,
        }
        write_json(self._path, self._phases)

    def end(self, phase: Phase, state: TrainState) -> None:
        """Compare with the start of the phase.

        Raises:
            UserError: Frozen leaves have changed; the message names them.
        """
        entry, after = self._phases[phase.name], frozen_hashes(phase, state)
        changed = [path for path, sha in entry["sha256"].items() if after.get(path) != sha]
        entry["changed"] = len(changed)
        write_json(self._path, self._phases)
        if changed:
            raise UserError(
                f"phase {phase.name}: {len(changed)} of {len(after)} frozen leaves changed: {join_names(changed, 5)}; "
                f"this is a bug in tl_jax or in a custom objective; please report it with {self._path}"
            )

    def summary(self) -> dict[str, Any]:
        """Return the audit of the last phase, and that of each phase under ``phases``."""
        phases = {name: {k: v for k, v in row.items() if k != "sha256"} for name, row in self._phases.items()}
        last = list(phases.values())[-1] if phases else {"leaves": 0, "changed": 0}
        return {**last, "phases": phases}
