"""``report.html`` of a run, from the files in its folder: at the end of each run, and again whenever asked for."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from configs import base, stored
from tl_jax.errors import UserError
from tl_jax.report import results, run_page
from tl_jax.shipping import facts
from tl_jax.train import hosts, run_files
from tl_jax.train.log import say

NAME = "report.html"


def report(_: base.Config, folder: str | Path) -> Path:
    """Write ``folder/report.html`` from the files there, the configuration among them, and say where it is.

    Raises:
        UserError: the folder holds no results, a file that is needed is damaged, or the page cannot be written.
    """
    path, said = _write(Path(folder).expanduser())
    say(said)
    return path


def at_the_end(folder: str | Path, out: TextIO | None = None) -> None:
    """Write the page of a run that has ended, and say so; the results that are there are not worth less without it."""
    if not hosts.first():
        return
    try:
        said = _write(Path(folder).expanduser())[1]
    except UserError as e:
        said = f"no report: {e}"
    print(said, file=out, flush=True)


def _write(folder: Path) -> tuple[Path, str]:
    """Write the page; return where, and what to say of it: what could not be read, and where it is."""
    found = results.read(folder)
    config = stored.get_config(str(folder))
    own = found.first[0]
    known = _known(own, found.problems)
    changed = {name: [_short(row["here"]), _short(row["base"])] for name, row in facts.changed(config).items()}
    try:
        found = found._replace(about=_about(config, known, folder), changed=changed)
        path = run_page.write(folder / NAME, found)
    except OSError as e:
        raise UserError(f"cannot read {e.filename} ({e.strerror}); restore it, or delete it") from None
    return path, "\n".join([*(f"WARNING: not shown: {problem}" for problem in found.problems), f"report: {path}"])


def _known(own: results.Result, problems: list[str]) -> dict[str, Any]:
    """Return the facts of a run, {} where they are wrong, which is added to the problems."""
    try:
        return run_files.read_facts(own.folder) if own.facts else run_files.read_summary(own.folder).get("facts", {})
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return {}


def _about(config: base.Config, known: Mapping[str, Any], folder: Path) -> dict[str, str]:
    spec = known.get("spec") or {}
    return {
        "name": config.name,
        "task": config.task,
        "model": config.model.name,
        "licence": facts.licence_of(config, str(spec.get("licence") or ""), known.get("weights_sha256") or ""),
        "command": f"python run.py --config=configs/stored.py:PATH_OF/{shlex.quote(folder.name)} --workdir=ANOTHER",
    }


def _short(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
