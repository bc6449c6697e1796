"""Early stopping: enough evaluations without a better validation score."""

from collections.abc import Sequence
from pathlib import Path

from tl_jax.json_files import parse_row


def exhausted(scores: Sequence[float], patience: int) -> bool:
    """Tell whether the best of the ``scores``, the earliest where equal, lies ``patience`` or more evaluations back."""
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def history(workdir: Path, phase: str, score: str) -> list[float]:
    """Return the validation scores of a phase so far, from ``metrics.jsonl``: a resumed run remembers them."""
    path = workdir / "metrics.jsonl"
    rows = [parse_row(line, path) for line in path.read_text().splitlines()] if path.is_file() else []
    return [row[score] for row in rows if row["split"] == "validation" and row.get("phase") == phase]
