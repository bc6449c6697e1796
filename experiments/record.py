"""Records of a study that outlive its runs: ``PREFIX.csv`` with the rows, ``PREFIX.json`` with the settings.

A study that is restarted, possibly on another machine, continues from these files. Existing rows are not measured
again, and rows of other settings are rejected.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax.train.workdir import differences, read_json, write_json
from tl_jax.utils import disk
from tl_jax.utils.environment import commit
from tl_jax.utils.errors import UserError

__all__ = ["add_facts", "begin_record", "commit", "read_rows", "write_rows"]


def begin_record(prefix: Path, protocol: Mapping[str, Any]) -> None:
    """Refuse a record that was made in another way; write down how this one is made.

    Args:
        prefix: of the files.
        protocol: what all rows have in common, as JSON takes it.

    Raises:
        UserError: names what differs.
    """
    path = Path(f"{prefix}.json")
    old = read_json(path)
    if differ := differences(old, {**old, **protocol}, "protocol") if old else []:
        raise UserError(f"{path} was made with another {', '.join(differ[:4])}; pass another --results, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**old, **protocol})


def add_facts(prefix: Path, **facts: Any) -> None:
    """Add facts that may differ from start to start, such as versions: each is a list of what was seen."""
    path = Path(f"{prefix}.json")
    old = read_json(path)
    for name, fact in facts.items():
        old[name] = [*old.get(name, []), *([] if fact in old.get(name, []) else [fact])]
    write_json(path, old)


def read_rows(prefix: Path) -> list[dict[str, str]]:
    """Return the rows that are there."""
    path = Path(f"{prefix}.csv")
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(prefix: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows; numbers with five digits."""
    path = Path(f"{prefix}.csv")
    with disk.atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        fields = dict.fromkeys(name for row in rows for name in row)  # of which earlier rows may lack some
        writer = csv.DictWriter(file, list(fields), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
