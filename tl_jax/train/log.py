"""What a run writes: ``config.json``, ``metrics.jsonl``, TensorBoard events, ``summary.json``, lines on the screen."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from tl_jax.errors import UserError


def say(text: str = "") -> None:
    """Print a line without breaking a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON under a temporary name and rename it, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Make ``workdir`` this configuration's own, or refuse one that belongs to another.

    Raises:
        UserError: the folder cannot be written, or holds another configuration (the fields that differ are named).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write to {workdir} ({e.strerror}); pass another --workdir") from None
    path = workdir / "config.json"
    config = json.loads(json.dumps(config))
    if path.is_file():
        differ = _differences(json.loads(path.read_text()), config)
        if differ:
            shown = ", ".join(differ[:4]) + (f" and {len(differ) - 4} more" if len(differ) > 4 else "")
            raise UserError(f"{workdir} belongs to a run with another {shown}; pass another --workdir, or delete it")
    write_json(path, config)


def _differences(old: Any, new: Any, prefix: str = "config") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{prefix}.{k}")]
    return [] if old == new else [f"{prefix} ({old!r} there, {new!r} here)"]


class Log:
    """The metrics of one run. Rows after ``step`` are left over from a run that was cut short, and are dropped."""

    def __init__(self, workdir: Path, step: int, total: int, verbose: bool):
        self._path = workdir / "metrics.jsonl"
        rows = self._path.read_text().splitlines(keepends=True) if self._path.is_file() else []
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        self._path.write_text("".join(kept))
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=30)
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, disable=None if verbose else True)
        self._total, self._verbose = total, verbose

    def row(self, step: int, split: str, values: Mapping[str, float], **where: Any) -> None:
        """Append one row of metrics."""
        with self._path.open("a") as f:
            f.write(json.dumps({"step": step, "split": split, **where, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def say(self, text: str) -> None:
        """Print a line, unless this run is one of many."""
        if self._verbose:
            say(text)

    def progress(self, step: int, **values: float) -> None:
        """Move the bar to ``step``."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        self._bar.update(step - self._bar.n)

    def eta(self, step: int, taken: int, seconds: float) -> str:
        """Return "12 steps/s, 1:05 left" at ``step``, when the last ``taken`` steps have cost ``seconds``."""
        rate = taken / max(seconds, 1e-9)
        left = round((self._total - step) / rate)
        return f"{rate:.3g} steps/s, {left // 60}:{left % 60:02d} left"

    def close(self) -> None:
        """Flush and close."""
        self._bar.close()
        self._board.close()
