"""Write ``report.html``, the report of a run, from the files in its folder."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_jax.config import schema, stored
from tl_jax.export import model_card
from tl_jax.report import run_report
from tl_jax.report.results import RunResult, read_results
from tl_jax.train import sharding
from tl_jax.train.run_config import RunConfig
from tl_jax.train.workdir import read_facts, read_summary
from tl_jax.utils.errors import UserError

REPORT_NAME = "report.html"


def write_report(folder: Path) -> tuple[Path, str]:
    """Write the report; return its path, and a message with its path and the files that could not be read."""
    results = read_results(folder)
    config = schema.freeze(stored.get_config(str(folder)))
    run = results.first[0]
    facts = _read_facts(run, results.problems)
    changed_fields = {
        name: [_as_json(row["here"]), _as_json(row["base"])] for name, row in model_card.changed_fields(config).items()
    }
    try:
        results = results._replace(description=_describe_run(config, facts, folder), changed_fields=changed_fields)
        path = run_report.write_report(folder / REPORT_NAME, results)
    except OSError as e:
        raise UserError(f"{e.filename}: cannot be read ({e.strerror}); restore it, or delete it") from None
    return path, "\n".join([*(f"WARNING: not shown: {problem}" for problem in results.problems), f"report: {path}"])


def write_final_report(folder: str | Path) -> str:
    """Write the report of a finished run and return a message; failing to write it does not fail the run."""
    if not sharding.is_first_process():
        return ""
    try:
        return write_report(Path(folder).expanduser())[1]
    except UserError as e:
        return f"no report: {e}"


def _read_facts(run: RunResult, problems: list[str]) -> dict[str, Any]:
    """Return the facts of a run; if they are damaged, return {} and append to ``problems``."""
    try:
        return read_facts(run.folder) if run.facts else read_summary(run.folder).get("facts", {})
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return {}


def _describe_run(config: RunConfig, facts: Mapping[str, Any], folder: Path) -> dict[str, str]:
    spec = facts.get("spec") or {}
    return {
        "name": config.name,
        "task": config.task,
        "model": config.model.name,
        "licence": model_card.describe_licence(
            config, str(spec.get("licence") or ""), facts.get("weights_sha256") or ""
        ),
        "command": f"python run.py --config=configs/stored.py:PATH_OF/{shlex.quote(folder.name)} --workdir=ANOTHER",
    }


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
