"""The folder of a run: one configuration, one set of weights and one process at a time.

Files are checked field by field, since they may have been edited, truncated or copied from elsewhere. If writing fails,
the message says whether the disk is full, missing, read-only or replaced by another.
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax import __version__
from tl_jax.config import renames
from tl_jax.data import value_range, word_splitting
from tl_jax.train import sharding
from tl_jax.utils import disk, json_files
from tl_jax.utils.errors import UserError, join_names
from tl_jax.utils.json_files import (
    BOOLEAN,
    MODULES,
    OBJECT,
    STRING,
    Field,
    check_fields,
    integer,
    list_of,
    number,
    object_of,
)

ACTION = "restore the file, or train again with a new workdir"  # what to do about a damaged file
FACTS, SUMMARY = "facts.json", "summary.json"
VERSION = "tl_jax"  # fact with the version that started the run
SIDE = 4_096  # maximum side in pixels of stored image sizes
_COUNT = integer(0, 2**48)
_MEASURED = Field("a number or null", lambda value: value is None or type(value) in (int, float))
_FACTS: Mapping[str, Field] = {
    **dict.fromkeys((VERSION, "weights", "weights_sha256", "data", "tested", "world"), STRING),
    **dict.fromkeys(("input", "spec", "reading", "physics", "spaces", "options"), OBJECT),
    "classes": list_of(STRING),
    "modules": MODULES,
    "examples": object_of(_COUNT),
    "data_sha256": object_of(STRING),
    "input_shape": list_of(integer(1, SIDE)),
    "value_range": list_of(number(-1e300, 1e300)),
}
_SUMMARY: Mapping[str, Field] = {
    "tested_step": _COUNT,
    "tested_steps": list_of(_COUNT),
    "ensemble": OBJECT,
    "score": STRING,
    "metrics": object_of(_MEASURED),
    "facts": OBJECT,
    "calibration": OBJECT,
    "threshold": number(-1e6, 1e6),
    "wise_ft": OBJECT,
    "choice": OBJECT,
}
_READING: Mapping[str, Field] = {"pairs": BOOLEAN, "splitter": OBJECT}
_SPLITTER = {name: BOOLEAN if name == "single" else list_of(STRING) for name in word_splitting.Splitter._fields}
_ALL = {"leading", "trailing", "separators"}  # null means all
_OF_DATA = ("data", "tested", "classes", "examples")  # present in every run whose data have fingerprints
_SPLITS = ("train", "validation", "test")


class RunFolder:
    """The folder of a run, as identified at the start of the run."""

    def __init__(self, folder: Path):
        self._folder, self._first_identity = folder, _identity(folder)

    def check(self) -> None:
        """Raise ``OSError`` if the path leads to another folder, as after an unmount; writing would still work."""
        if _identity(self._folder) != self._first_identity:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self._folder))

    def fault(self, error: BaseException) -> str:
        """Return how the disk caused an error; "" if it did not."""
        if _identity(self._folder) != self._first_identity:
            return "the folder is not the one in which the run started: was it moved, or its disk unmounted?"
        for cause in disk.error_chain(error):
            if (
                isinstance(cause, OSError)
                and isinstance(cause.filename, str | bytes)
                and not _within(cause.filename, self._folder)
            ):
                continue
            if isinstance(cause, OSError) and errno.errorcode.get(cause.errno or 0) in disk.DISK_ERRORS:
                return os.strerror(cause.errno or 0)
            # The array writer of a checkpoint raises its own errors, which contain the system's message.
            message = str(cause)
            if str(self._folder) in message and (number := disk.errno_from_message(message)):
                return os.strerror(number)
        return ""


def silence_orbax() -> None:
    """Silence orbax' log of advice and of tracebacks of errors that it raises anyway."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _within(file: str | bytes, folder: Path) -> bool:
    return Path(os.fsdecode(file)).absolute().is_relative_to(folder.absolute())


# Fields for resuming, logging and testing may change; fields that affect the computation may not.
CHANGEABLE = tuple(
    f"config.{field}"
    for field in (
        "data.dir", "data.gigabytes", "data.max_pixels", "data.outside", "detect.score_threshold", "eval_batch_size",
        "faces.known", "log_every", "parallel.state", "smoke", "eval_checkpoint",
    )
)  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, objects with a checksum; values that are not finite, which JSON lacks, become null.

    Only the first process writes. A missing folder is not created again, since results would end up in the wrong
    place.
    """
    if not sharding.is_first_process():
        return
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written, the folder is gone; was it moved, or its disk unmounted?")
    content = finite(content)
    content = json_files.add_checksum(content) if isinstance(content, dict) else content
    disk.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; {} if it does not exist. Raises UserError if it is damaged."""
    action = "delete it and train with the same command, which writes it again"
    action = action if path.name == "summary.json" else "pass another workdir, or delete the folder"
    return json_files.read_json(path, action) if path.is_file() else {}


def finite(content: Any) -> Any:
    """Replace values that are not finite by None, in nested dicts and lists."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the weights and data of a run from ``facts.json``, without null fields; {} if it does not exist.

    Raises:
        UserError: A field is invalid; the message names file and field.
    """
    path = folder / FACTS
    facts = _read_checked(path, _FACTS)
    _check_facts(path, facts)
    return facts


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the ``summary.json`` of a finished run, without null fields; {} if it does not exist.

    Raises:
        UserError: A field is invalid; the message names file and field.
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
    content = json_files.read_json(path, ACTION) if path.is_file() else {}
    check_fields(content, path, fields, ACTION)
    return {name: value for name, value in content.items() if value is not None}


def _check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    if "data_sha256" in facts:
        _check_present(path, facts, _OF_DATA)
    if "examples" in facts:
        _check_present(f"{path}: examples", facts["examples"], _SPLITS)
    for name in ("input_shape", "value_range"):
        if len(facts.get(name, (0, 0))) != 2:
            raise UserError(f"{path}: {name} has {len(facts[name])} numbers instead of 2; {ACTION}")
    check_fields(facts.get("input", {}), f"{path}: input", {"shape": list_of(integer(1, SIDE))}, ACTION)
    if "reading" in facts:
        check_fields(facts["reading"], f"{path}: reading", _READING, ACTION)
        _check_present(f"{path}: reading", facts["reading"], ("pairs",))
        if splitter := facts["reading"].get("splitter"):
            check_fields(splitter, f"{path}: reading, splitter", _SPLITTER, ACTION)
            if set(splitter) - set(_SPLITTER) or any(splitter[name] is None for name in set(splitter) - _ALL):
                raise UserError(f"{path}: the splitter in reading has an empty or unknown field; {ACTION}")


def _check_present(where: object, content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if missing := [name for name in names if content.get(name) is None]:
        raise UserError(f"{where} lacks {', '.join(missing)}; {ACTION}")


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Create the folder and lock it against other processes.

    Raises:
        UserError: The folder cannot be written, now or later, or another process has locked it.
    """
    if not sharding.is_first_process():
        sharding.wait_for_all("workdir")
        with _explain_disk_errors(workdir):
            yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a")
    except OSError as e:
        raise UserError(f"{workdir}: cannot be written ({e.strerror}); pass another workdir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{workdir}: another process is writing to it; wait, or pass another workdir") from None
        sharding.wait_for_all("workdir")
        with _explain_disk_errors(workdir):
            yield  # the system releases the lock when the process ends


@contextlib.contextmanager
def _explain_disk_errors(workdir: Path) -> Iterator[None]:
    """Convert a disk error to a one-line message."""
    run_folder = RunFolder(workdir)
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if not (fault := run_folder.fault(e)):
            raise
        raise UserError(
            f"{workdir}: cannot be written: {fault.rstrip('.')}; saved files are intact: fix the disk, and resume with "
            "the same command"
        ) from e


def claim_folder(workdir: Path, config: Mapping[str, Any], unused: Collection[str] = ()) -> None:
    """Claim ``workdir`` for a configuration. Raises UserError if it belongs to another one (see ``check_owner``)."""
    check_owner(workdir, config, unused)
    write_json(workdir / "config.json", config)


def check_owner(workdir: Path, config: Mapping[str, Any], unused: Collection[str] = ()) -> None:
    """Raise UserError if the folder belongs to a run with another configuration.

    Args:
        workdir: the folder.
        config: nested by groups.
        unused: fields and groups of other tasks, which older configurations contain.

    Raises:
        UserError: Fields differ; the message names them.
    """
    old = renames.rename_fields(read_json(workdir / "config.json"), warn=False)
    config = json.loads(json.dumps(config))
    differ = differences(old, config) if old and _has_results(workdir) else []
    ignored = {f"config.{path}" for path in unused}
    differ = [d for d in differ if not d.startswith(CHANGEABLE) and d.partition(" ")[0] not in ignored]
    if differ:
        raise UserError(
            f"{workdir}: belongs to a run with another {join_names(differ, 4)}; pass another workdir, or delete the "
            "folder"
        )


def stored_facts(workdir: Path) -> dict[str, Any]:
    """Return the weights and data of a run from ``facts.json``; {} if no run has started in this folder."""
    return read_facts(workdir) if _has_results(workdir) else {}


def claim_facts(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Raise UserError if a run was started with another version, weights or data."""
    old = stored_facts(workdir)
    version = old.get(VERSION, "0.1")  # 0.1 did not store its version
    if old and version.split(".")[:2] != __version__.split(".")[:2]:
        raise UserError(
            f"{workdir}: started by tl_jax {version}; version {__version__} cannot resume it; install the old version, "
            "or pass another workdir (eval, predict, export and report work)"
        )
    # A fingerprint identifies the data better than their name, which changes with the folder.
    for name in ("weights_sha256", *(() if "data_sha256" in old else ("data",))):
        current = facts.get(name)
        if old.get(name, current) != current:
            change = f"other {name.removesuffix('_sha256')} ({old[name]} then, {current} now)"
            raise UserError(f"{workdir}: the run was started with {change}; pass another workdir, or delete the folder")
    check_data(workdir, old, facts, ("train", "validation", "test"), "pass another workdir")
    write_json(workdir / FACTS, {VERSION: __version__, **facts})


def check_data(
    workdir: Path, old: Mapping[str, Any], facts: Mapping[str, Any], splits: Sequence[str], advice: str
) -> None:
    """Raise UserError if the value range or a fingerprint of the data differs from that of the run.

    Args:
        workdir: folder of the run, for the message.
        old: facts of the run; runs from before fingerprints pass.
        facts: facts of the current data.
        splits: splits that must be equal.
        advice: what to do if the data cannot be restored.

    Raises:
        UserError: A split or the range differs; the message names it.
    """
    value_range.check_range_unchanged(workdir, old, facts)
    old_hashes, new_hashes = old.get("data_sha256", {}), facts.get("data_sha256", {})
    for split in splits:
        if old_hashes.get(split, new_hashes.get(split)) == new_hashes.get(split):
            continue
        old_count, new_count = old.get("examples", {}).get(split, 0), facts.get("examples", {}).get(split, 0)
        what = f"{old_count:,} examples then, {new_count:,} now"
        what += "" if old_count != new_count else ", with other labels or contents"
        raise UserError(
            f"{workdir}: the {split} split differs from the one that the run was started with ({what}); "
            f"restore the data, or {advice}"
        )


def check_unchanged(summary: Mapping[str, Any], workdir: Path) -> None:
    """Raise UserError if the weights file of a finished run has changed."""
    import pooch

    facts = summary.get("facts", {})
    file = Path(facts.get("weights", ""))
    if file.is_file() and pooch.file_hash(str(file)) != facts.get("weights_sha256"):
        raise UserError(
            f"{workdir}: the run is finished, but {file} has changed since; pass another workdir, or delete the folder"
        )


def _has_results(workdir: Path) -> bool:
    """Return whether the folder has results that must not be mixed with others."""
    files = [workdir / "summary.json", *workdir.glob("checkpoints/[0-9]*"), *workdir.glob("*/seed*/metrics.jsonl")]
    rows = workdir / "metrics.jsonl"
    return any(file.exists() for file in files) or (rows.is_file() and os.path.getsize(rows) > 0)


def differences(old: Any, new: Any, prefix: str = "config") -> list[str]:
    """Describe the differences between two nested dicts, ignoring a field that only one has and that is off.

    So a run can be resumed with a later version, which may have more fields, or without a plugin module that it did
    not use.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [
            *(key for key, value in old.items() if key in new or value),
            *(key for key, value in new.items() if key not in old and value),
        ]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{prefix}.{k}")]
    return [] if old == new else [f"{prefix} ({old!r} there, {new!r} here)"]
