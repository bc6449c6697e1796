"""What the files of a run may hold, field by field: they may have been edited, cut short, or come from elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_jax.data import word_splitting
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import (
    BOOLEAN,
    OBJECT,
    STRING,
    Field,
    check_fields,
    integer,
    list_of,
    number,
    object_of,
    read_json,
)

ACTION = "restore the file, or train again with a new --workdir"
FACTS, SUMMARY = "facts.json", "summary.json"
VERSION = "tl_jax"  # the fact that names the version which began the run
SIDE = 4_096  # pixels of the images that a run stores
_COUNT = integer(0, 2**48)
_MEASURED = Field("a number or null", lambda value: value is None or type(value) in (int, float))
_FACTS: Mapping[str, Field] = {
    **dict.fromkeys((VERSION, "weights", "weights_sha256", "data", "tested", "world"), STRING),
    **dict.fromkeys(("input", "spec", "reading", "physics", "spaces", "options"), OBJECT),
    "classes": list_of(STRING),
    "examples": object_of(_COUNT),
    "data_sha256": object_of(STRING),
    "input_shape": list_of(integer(1, SIDE)),
    "value_range": list_of(number(-1e300, 1e300)),
}
_SUMMARY: Mapping[str, Field] = {
    "tested_step": _COUNT,
    "score": STRING,
    "metrics": object_of(_MEASURED),
    "facts": OBJECT,
    "calibration": OBJECT,
    "threshold": number(-1e6, 1e6),
    "wise_ft": OBJECT,
}
_READING: Mapping[str, Field] = {"pairs": BOOLEAN, "splitter": OBJECT}
_SPLITTER = {name: BOOLEAN if name == "single" else list_of(STRING) for name in word_splitting.Splitter._fields}
_ALL = {"leading", "trailing", "separators"}  # of which null means all
_OF_DATA = ("data", "tested", "classes", "examples")  # known of every run whose data have fingerprints
_SPLITS = ("train", "validation", "test")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what ``facts.json`` says of the weights and data of a run, {} if there is none; null is left out.

    Raises:
        UserError: names the file and the field that is wrong.
    """
    path = folder / FACTS
    facts = _read_checked(path, _FACTS)
    _check_facts(path, facts)
    return facts


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what ``summary.json`` says of a run that has ended, {} if there is none; null is left out.

    Raises:
        UserError: names the file and the field that is wrong.
    """
    path = folder / SUMMARY
    summary = _read_checked(path, _SUMMARY)
    check_fields(summary.get("calibration", {}), f"{path}: calibration", {"temperature": number(1e-6, 1e6)}, ACTION)
    if "wise_ft" in summary:
        _check_present(f"{path}: wise_ft", summary["wise_ft"], ("share",))
        check_fields(summary["wise_ft"], f"{path}: wise_ft", {"share": number(0, 1)}, ACTION)
    facts = {name: value for name, value in summary.get("facts", {}).items() if value is not None}
    check_fields(facts, f"{path}: facts", _FACTS, ACTION)
    return summary


def _read_checked(path: Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    content = read_json(path, ACTION) if path.is_file() else {}
    check_fields(content, path, fields, ACTION)
    return {name: value for name, value in content.items() if value is not None}


def _check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    if "data_sha256" in facts:
        _check_present(path, facts, _OF_DATA)
    if "examples" in facts:
        _check_present(f"{path}: examples", facts["examples"], _SPLITS)
    for name in ("input_shape", "value_range"):
        if len(facts.get(name, (0, 0))) != 2:
            raise UserError(f"{path}: {name} has {len(facts[name])} numbers, not 2; {ACTION}")
    check_fields(facts.get("input", {}), f"{path}: input", {"shape": list_of(integer(1, SIDE))}, ACTION)
    if "reading" in facts:
        check_fields(facts["reading"], f"{path}: reading", _READING, ACTION)
        _check_present(f"{path}: reading", facts["reading"], ("pairs",))
        if splitter := facts["reading"].get("splitter"):
            check_fields(splitter, f"{path}: reading, splitter", _SPLITTER, ACTION)
            if set(splitter) - set(_SPLITTER) or any(splitter[name] is None for name in set(splitter) - _ALL):
                raise UserError(f"{path}: reading has a splitter with a field that is null or not known here; {ACTION}")


def _check_present(where: object, content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if missing := [name for name in names if content.get(name) is None]:
        raise UserError(f"{where} lacks {', '.join(missing)}; {ACTION}")
