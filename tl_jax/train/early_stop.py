"""Early stopping: enough evaluations without a better validation score."""

from collections.abc import Sequence
from pathlib import Path

from tl_jax.errors import UserError
from tl_jax.json_files import parse_row
from tl_jax.train.run_files import ACTION


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
