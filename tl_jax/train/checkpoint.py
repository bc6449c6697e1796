"""Orbax checkpoints with SHA-256 checksums; the last two and the best are kept.

Checkpoints are written in the background and renamed when complete. Checksums are stored next to them because orbax
misses some damage: of 150 flipped bits, 12 gave other weights without an error.
"""

import functools
import hashlib
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from tl_jax.train import sharding
from tl_jax.train.logging import warn
from tl_jax.train.state import TrainState
from tl_jax.train.task import Task
from tl_jax.train.workdir import ACTION, RunFolder, write_json
from tl_jax.utils.errors import UserError, first_line
from tl_jax.utils.json_files import STRING, check_fields, object_of, parse_json, read_json

METRICS = "metrics/metrics"  # validation metrics, within a checkpoint
# Errors of orbax if its own files hold other types or invalid timestamps.
METADATA_ERRORS = (ArithmeticError, AttributeError, TypeError)
OLD_CARRY = "worlds"  # name of ``carry`` in 0.1, among the statistics


class Checksums:
    """SHA-256 checksums of the checkpoints in ``folder``, stored in ``folder.json`` by process 0."""

    def __init__(self, folder: Path):
        self._folder, self._path = folder, folder.with_name(folder.name + ".json")

    def update(self, steps: list[int]) -> None:
        """Hash the checkpoints of ``steps`` that have no checksums yet; drop the checksums of all others."""
        if not sharding.is_first_process():
            return
        known = self._read_checksums()
        new = {str(step): known.get(str(step)) or self._hashes(step) for step in steps}
        if new != known:
            write_json(self._path, new)

    def fault(self, step: int) -> str:
        """Describe the damage of a checkpoint; "" if it is intact."""
        expected = self._read_checksums().get(str(step))
        if expected is None:
            return self._read_fault(step)
        actual = self._hashes(step)
        changed = [name for name, sha in expected.items() if actual.get(name) != sha]
        change = "has changed" if changed and changed[0] in actual else "is missing"
        return f"{changed[0]} {change} since it was written" if changed else ""

    def fault_of_metrics(self, step: int, score: str) -> str:
        """Describe the damage of a checkpoint's metrics, which must contain ``score`` unless it is ""; else ""."""
        path, expected = self._folder / str(step) / METRICS, (self._read_checksums().get(str(step)) or {}).get(METRICS)
        if expected is not None and not path.is_file():
            return f"{METRICS} is missing"
        if not path.is_file():
            return ""
        if expected is not None:
            return "" if _hash(path) == expected else f"{METRICS} has changed since it was written"
        try:
            content = parse_json(path.read_bytes(), METRICS)
        except UserError as error:
            return str(error)
        return "" if not score or type(content.get(score)) in (int, float) else f"{METRICS} has no {score}"

    def _read_checksums(self) -> dict[str, dict[str, str]]:
        action = "delete it; checkpoints are then verified by reading them"
        known = read_json(self._path, action) if self._path.is_file() else {}
        check_fields(known, self._path, dict.fromkeys(known, object_of(STRING)), action)
        return known

    def _hashes(self, step: int) -> dict[str, str]:
        hashes = {}
        for path in sorted(self._folder.glob(f"{step}/**/*")):
            if path.is_file():
                name = str(path.relative_to(self._folder / str(step)))
                hashes[name] = _hash(path)
        return hashes

    def _read_fault(self, step: int) -> str:
        """Try to read a checkpoint without checksums, as after a power loss; return the error, if any."""
        for item in sorted(path.parent for path in self._folder.glob(f"{step}/*/_METADATA")):
            try:
                with ocp.PyTreeCheckpointer() as reader:
                    shapes = reader.metadata(item).item_metadata.tree
                    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
                    reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=restore_args))
            except Exception as e:  # the type depends on the damaged byte
                return f"{item.name} cannot be read ({type(e).__name__}: {first_line(e)[:120]})"
        return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoints:
    """Checkpoints of one run, by step. The best checkpoint has the highest ``Task.score``."""

    def __init__(self, folder: Path, task: Task, cleanup: bool = True):
        """Open the checkpoints in ``folder``; only the run that writes them may set ``cleanup``, of partial ones."""
        keep: list[policy.PreservationPolicy] = [policy.LatestN(2)]
        score = None
        if task.sizes.get("validation"):  # else there is no score
            score = operator.itemgetter(task.score)
            keep.append(policy.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(keep), best_fn=score, cleanup_tmp_directories=cleanup
        )
        self._folder, self._checksums, self._cleanup = folder, Checksums(folder), cleanup
        self._verified: set[int] = set()  # steps whose checksums were verified
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._run_folder = RunFolder(folder.parent)
        self._check_scores(task.score if score else "")
        try:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except (*METADATA_ERRORS, LookupError, ValueError) as e:  # from orbax' own files next to the arrays
            raise UserError(f"{folder}: the checkpoints cannot be opened ({first_line(e)}); {ACTION}") from None

    def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Start to write ``state``; return once the arrays are copied off the devices."""
        self._run_folder.check()  # below an unmounted mount point writing would succeed, in a hidden folder
        self.wait()  # for the previous write
        items = {
            "variables": ocp.args.StandardSave(state.eval_variables),
            "opt_state": ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        }
        if state.carry:
            items["carry"] = ocp.args.StandardSave(state.carry)
        if _has_average(state):  # the variables are for evaluation; training resumes from these
            items["raw"] = ocp.args.StandardSave({"params": state.params})
        self._manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)

    def restore(self, step: int, template: TrainState, opt_state: bool, for_eval: bool = False) -> TrainState:
        """Return the state saved at ``step``, with the layout of ``template``.

        The optimizer state is restored only if ``opt_state`` is set. With ``for_eval`` the variables are those to
        evaluate, which differ from those to resume from if the optimizer keeps a moving average.

        Raises:
            UserError: The saved state has other leaves or shapes than ``template``.
        """
        self._check(step)
        targets = {"variables": _abstract(template.variables)}
        if opt_state:
            targets["opt_state"] = _abstract({"step": template.step, "opt_state": template.opt_state})
        if template.carry:
            targets["carry"] = _abstract(template.carry)
        old_layout = template.carry and not (self._folder / str(step) / "carry").is_dir()
        if old_layout:
            targets["variables"]["batch_stats"][OLD_CARRY] = targets.pop("carry")
        raw = _has_average(template) and not for_eval
        if raw:
            targets["raw"] = _abstract({"params": template.params})
        items = {name: ocp.args.StandardRestore(item) for name, item in targets.items()}
        try:
            out = self._manager.restore(step, args=ocp.args.Composite(**items))
        except METADATA_ERRORS as e:  # from orbax' own files next to the arrays, if they have no checksums
            raise self._damaged(step, f"{type(e).__name__}: {e}") from None
        except (KeyError, ValueError) as e:
            raise UserError(
                f"{self._folder / str(step)}: the checkpoint does not fit the network of this configuration and "
                f"dataset: {self._difference(step, targets, e)}; restore the data of the run, or pass another workdir"
            ) from None
        new = {"opt_state": out["opt_state"]["opt_state"]} if opt_state else {}
        if template.carry:
            new["carry"] = out["variables"]["batch_stats"].pop(OLD_CARRY) if old_layout else out["carry"]
        new |= out["raw"] if raw else {}
        step_array = jax.device_put(jax.numpy.asarray(step, template.step.dtype), template.step.sharding)
        return template.replace(**{"step": step_array, **out["variables"], **new})

    def _check_scores(self, score: str) -> None:
        """Move damaged metrics aside, or raise UserError: orbax reads the metrics of all checkpoints when it opens."""
        for step in sorted(int(path.name) for path in self._folder.glob("[0-9]*") if path.name.isdigit()):
            if fault := self._checksums.fault_of_metrics(step, score):
                if not self._cleanup:
                    raise self._damaged(step, fault)
                self._put_aside(step, fault)

    def _damaged(self, step: int, fault: str) -> UserError:
        return UserError(
            f"{self._folder / str(step)}: the checkpoint is damaged: {fault}; restore the file, or use "
            "another with config.eval_checkpoint=best or last; training resumes from an earlier one"
        )

    def _put_aside(self, step: int, fault: str) -> None:
        aside = self._folder.with_name("damaged") / str(step)
        if sharding.is_first_process():
            aside.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(aside)
        sharding.wait_for_all(f"checkpoint {step} is aside")
        warn(f"WARNING: checkpoint {step:,} is damaged: {fault}; it was moved to {aside}, and an earlier one is used")

    def _check(self, step: int) -> None:
        """Verify the checksums, since orbax reads some flipped bits as other weights. Raises UserError on damage."""
        if step not in self._verified and (fault := self._checksums.fault(step)):
            raise self._damaged(step, fault)
        self._verified.add(step)

    def _difference(self, step: int, targets: Mapping[str, Any], error: Exception) -> str:
        """Describe the first leaf whose shape differs from the checkpoint's; orbax' message if there is none."""
        for item, tree in targets.items():
            with ocp.PyTreeCheckpointer() as reader:
                stored = reader.metadata(self._folder / str(step) / item).item_metadata.tree
            stored_shapes, target_shapes = _shapes(stored), _shapes(tree)
            for path in sorted({*stored_shapes, *target_shapes}):
                if (stored_shape := stored_shapes.get(path, "absent")) != (
                    target_shape := target_shapes.get(path, "absent")
                ):
                    return f"{path} is {stored_shape} in the checkpoint and {target_shape} here"
        return first_line(error)

    def latest(self) -> int | None:
        """Return the last step with a complete checkpoint."""
        return self._manager.latest_step()

    def latest_intact(self) -> int | None:
        """Return the last step with an intact checkpoint; later, damaged ones are moved aside with a warning."""
        while (step := self.latest()) is not None:
            fault = self._checksums.fault(step)
            if not fault:
                self._verified.add(step)
                return step
            self._put_aside(step, fault)
            self._manager.reload()
        return None

    def best(self) -> int | None:
        """Return the step with the best validation score; None without validation."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Wait for pending writes."""
        self._run_folder.check()
        self._manager.wait_until_finished()
        if self._cleanup:
            self._checksums.update(list(self._manager.all_steps()))

    def close(self) -> None:
        """Wait for pending writes and release the folder."""
        self.wait()
        self._manager.close()


def _has_average(state: TrainState) -> bool:
    return state.eval_variables["params"] is not state.params


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
