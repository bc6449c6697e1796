"""Whether a checkpoint is as it was written: SHA-256 of its files, beside the checkpoints.

What reads them notices most damage but not all: of 150 flipped bits 12 came back as other weights, without an error.
"""

import hashlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tl_jax.errors import UserError
from tl_jax.json_files import TEXT, check_fields, object_of, parse_json, read_json
from tl_jax.train import hosts
from tl_jax.train.workdir import write_json

METRICS = "metrics/metrics"  # of the validation split, within a checkpoint


class Seals:
    """The hashes of the checkpoints in ``folder``, in ``folder.json``; process 0 makes them."""

    def __init__(self, folder: Path):
        self._folder, self._path = folder, folder.with_name(folder.name + ".json")

    def put(self, steps: list[int]) -> None:
        """Hash those of ``steps`` that have not been, and forget all others."""
        if not hosts.first():
            return
        known = self._known()
        new = {str(step): known.get(str(step)) or self._hashes(step) for step in steps}
        if new != known:
            write_json(self._path, new)

    def fault(self, step: int) -> str:
        """Return what is wrong with a checkpoint, "" where nothing is."""
        sealed = self._known().get(str(step))
        if sealed is None:
            return self._unreadable(step)
        found = self._hashes(step)
        changed = [name for name, sha in sealed.items() if found.get(name) != sha]
        what = "has changed" if changed and changed[0] in found else "is missing"
        return f"{changed[0]} {what} since it was written" if changed else ""

    def fault_of_metrics(self, step: int, score: str) -> str:
        """Return what is wrong with the metrics of a checkpoint, which must hold ``score`` unless that is ""."""
        path, sealed = self._folder / str(step) / METRICS, self._known().get(str(step), {}).get(METRICS)
        if sealed is not None and not path.is_file():
            return f"{METRICS} is missing"
        if not path.is_file():
            return ""
        if sealed is not None:
            return "" if _hash(path) == sealed else f"{METRICS} has changed since it was written"
        try:
            content = parse_json(path.read_bytes(), METRICS)
        except UserError as error:
            return str(error)
        return "" if not score or type(content.get(score)) in (int, float) else f"{METRICS} has no {score}"

    def _known(self) -> dict[str, dict[str, str]]:
        action = "delete it; checkpoints are then tried by reading them"
        known = read_json(self._path, action) if self._path.is_file() else {}
        check_fields(known, self._path, dict.fromkeys(known, object_of(TEXT)), action)
        return known

    def _hashes(self, step: int) -> dict[str, str]:
        hashes = {}
        for path in sorted(self._folder.glob(f"{step}/**/*")):
            if path.is_file():
                name = str(path.relative_to(self._folder / str(step)))
                hashes[name] = _hash(path)
        return hashes

    def _unreadable(self, step: int) -> str:
        """Read a checkpoint from before it was hashed, as after a loss of power, to see whether that is possible."""
        for item in sorted(path.parent for path in self._folder.glob(f"{step}/*/_METADATA")):
            try:
                with ocp.PyTreeCheckpointer() as reader:
                    shapes = reader.metadata(item).item_metadata.tree
                    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
                    reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=how))
            except Exception as e:  # of many kinds, by the byte that is wrong
                return f"{item.name} cannot be read ({type(e).__name__}: {str(e).splitlines()[0][:120]})"
        return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
