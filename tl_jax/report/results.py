"""Read the result files of a run, or of all runs of a comparison, as far as they exist and are intact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import parse_row, read_json

IMAGES = (
    "preview.png", "preview_pretext.png", "find_lr.png", "find_lr_head.png", "explain.png", "reliability.png",
    "roc.png", "episode.gif",
)  # fmt: skip


ENSEMBLE = "(ensemble)"  # name of an ensemble among its runs; no arm can have it
_MAX_VALUE = 1e100  # largest plotted value


EVALUATIONS = "evaluations"  # folder of a run with one file per other data set


class RunResult(NamedTuple):
    """The result files of one run; empty for missing files.

    Attributes:
        arm, seed: position in a comparison; "" and the run's own seed for a single run.
        folder: folder of the run.
        summary: content of ``summary.json``.
        facts: content of ``facts.json``.
        rows: content of ``metrics.jsonl``.
        details: content of ``test_details.json``.
        network: content of ``network.json``.
    """

    arm: str
    seed: int
    folder: Path
    summary: dict[str, Any]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    details: dict[str, Any]
    network: dict[str, Any]


class Results(NamedTuple):
    """The results in a folder.

    Attributes:
        folder: folder of the run or comparison.
        summary: content of ``folder/summary.json``; empty if the run is not finished.
        runs: runs by arm and seed, the first arm first; one for a single run.
        images: the existing ``IMAGES`` of the folder, or else of the first run with any.
        problems: files that could not be read, with reasons.
        description: description of the run: "task", "model", "licence", "command".
        elsewhere: data set -> metrics on it, for other labelled data sets.
        changed_fields: field of the configuration -> its value here and in ``tl_jax/config/recipe.py``.
    """

    folder: Path
    summary: dict[str, Any]
    runs: list[RunResult]
    images: dict[str, Path]
    problems: list[str]
    elsewhere: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    description: Mapping[str, str] = MappingProxyType({})
    changed_fields: Mapping[str, Sequence[str]] = MappingProxyType({})

    @property
    def arms(self) -> dict[str, list[RunResult]]:
        """Return arm -> its runs."""
        return {arm: [run for run in self.runs if run.arm == arm] for arm in dict.fromkeys(r.arm for r in self.runs)}

    @property
    def first(self) -> list[RunResult]:
        """Return the runs of the reference arm, all its seeds."""
        return next(iter(self.arms.values()), [])


def read_results(folder: Path) -> Results:
    """Read the results in ``folder``.

    Raises:
        UserError: there are no results, or ``summary.json`` is damaged.
    """
    problems: list[str] = []
    summary = load_json(folder / "summary.json", problems)
    if problems:
        raise UserError(f"{problems[0]}; delete it, and run the same command again to rewrite it")
    arms = summary.get("arms") or {path.parent.parent.name: 0 for path in sorted(folder.glob("*/seed*/config.json"))}
    seeds = summary.get("seeds") or sorted(
        {int(p.name[4:]) for p in folder.glob("*/seed*") if p.name[4:].isdigit()}  # of an unfinished comparison
    )
    run_folders = [(arm, int(seed), folder / arm / f"seed{seed}") for arm in arms for seed in seeds]
    if not run_folders:
        run_folders = [("", summary.get("seed", 0), folder)]
        if not summary and not (folder / "metrics.jsonl").is_file():
            raise UserError(f"no results in {folder}; train first, or pass the workdir of a run")
    if summary.get("ensemble"):  # shown first, with its own mistakes
        run_folders = [(ENSEMBLE, int(summary.get("seed", 0)), folder), *run_folders]
    runs = [_read_run(arm, seed, path, problems) for arm, seed, path in run_folders]
    folders = [folder, *(run.folder for run in runs)]
    images = {
        name: next(path / name for path in folders if (path / name).is_file())
        for name in IMAGES
        if any((path / name).is_file() for path in folders)
    }
    intact = {name: path for name, path in images.items() if _is_intact(path, problems)}
    elsewhere = {path.stem: load_json(path, problems) for path in sorted((folder / EVALUATIONS).glob("*.json"))}
    return Results(folder, summary, runs, intact, problems, elsewhere)


def _is_intact(path: Path, problems: list[str]) -> bool:
    """Return whether an image file is intact; else append to ``problems``."""
    try:
        with Image.open(path) as image:
            image.verify()  # the checksums of a PNG
    except (OSError, SyntaxError, ValueError) as error:
        problems.append(f"{path} is damaged ({error})")
        return False
    return True


def load_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file, {} if it is missing or damaged; append damage to ``problems``."""
    try:
        return read_json(path) if path.is_file() else {}
    except UserError as error:
        problems.append(str(error))
        return {}


def _read_run(arm: str, seed: int, folder: Path, problems: list[str]) -> RunResult:
    summary, facts, details, network = (
        load_json(folder / f"{name}.json", problems) for name in ("summary", "facts", "test_details", "network")
    )
    return RunResult(
        arm, seed, folder, summary, facts, _read_metrics(folder / "metrics.jsonl", problems), details, network
    )


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the rows of metrics; of a damaged file those before the damage."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (ValueError, OSError) as e:
        problems.append(f"{path} is damaged ({e})")
        return []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_row(line, f"{path}, line {number}")
            rows.append({**row, "step": int(row["step"])})
        except (UserError, ValueError, KeyError, TypeError, OverflowError) as e:
            problems.append(f"{path} is damaged in line {number} ({e}); later rows are not shown")
            break
    return rows


def metric_values(rows: Sequence[dict[str, Any]], split: str, name: str) -> list[tuple[float, float]]:
    """Return the measured (step, value) pairs of a metric."""
    return [
        (row["step"], row[name])
        for row in rows
        if row.get("split") == split and _is_plottable(row["step"], row.get(name))
    ]


def _is_plottable(*numbers: Any) -> bool:
    """Return whether numbers can be plotted on an axis with a finite range."""
    return all(type(number) in (int, float) and abs(number) < _MAX_VALUE for number in numbers)
