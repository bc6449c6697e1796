"""A bundle: the folder that ``--mode=export`` writes, with ``bundle.json``, which says what is in it and its hashes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pooch

from tl_jax import disk
from tl_jax.errors import UserError
from tl_jax.json_files import OBJECT, TEXT, check_fields, integer, object_of, read_json, sealed

FILE, WEIGHTS = "bundle.json", "model.safetensors"
VERSION = 1  # of the format; a file with another one is refused
_AGAIN = "export the run again"
_FIELDS = {"model": TEXT, "task": TEXT, "files": object_of(OBJECT), "weights": OBJECT}
_OPTIONAL = {"weights"}


def seal(folder: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Write ``bundle.json`` and return what stands in it.

    Args:
        folder: of the bundle.
        facts: of JSON types.
        files: name of a file in the folder -> what it is.
    """
    listed = {
        name: {"what": what, "bytes": (folder / name).stat().st_size, "sha256": pooch.file_hash(str(folder / name))}
        for name, what in files.items()
    }
    content = {"format": "tl_jax bundle", "version": VERSION, **facts, "files": listed}
    disk.write_text(folder / FILE, json.dumps(sealed(content), indent=2) + "\n")
    return content


def read(folder: Path) -> dict[str, Any]:
    """Return what ``bundle.json`` says.

    Raises:
        UserError: it is missing or damaged, or of another version of the format.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"no bundle in {folder}: {FILE} is missing; --mode=export writes one to RUN/export")
    content = read_json(file, _AGAIN)
    if absent := [name for name in ("version", *_FIELDS) if content.get(name) is None and name not in _OPTIONAL]:
        raise UserError(f"{file} is damaged or was not written by tl_jax, it has no {absent[0]}; {_AGAIN}")
    check_fields(content, file, {"version": integer(0, 1_000_000)}, _AGAIN)
    if (version := content["version"]) != VERSION:
        raise UserError(f"{file} has format version {version!r}, known here is {VERSION}; install the tl_jax it is of")
    check_fields(content, file, _FIELDS, _AGAIN)
    for name, entry in content["files"].items():
        if not TEXT.valid(entry.get("sha256")):
            raise UserError(f"{file} is damaged, it has no sha256 of {name!r}; {_AGAIN}")
    return content


def check(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Compare files of a bundle with their hashes, and return what ``bundle.json`` says.

    Raises:
        UserError: see ``read``; or a file is missing, or another one than was written.
    """
    content = read(folder)
    for name in names:
        file, entry = folder / name, content["files"].get(name)
        if entry is None or not file.is_file():
            raise UserError(f"{folder} has no {name}; copy the whole bundle, or export the run again")
        if (found := pooch.file_hash(str(file))) != entry["sha256"]:
            raise UserError(
                f"{file} has SHA-256 {found[:12]}..., {FILE} says {entry['sha256'][:12]}...: it was changed or cut "
                "short; copy the bundle anew, or export the run again"
            )
    return content


def weights(path: Path) -> Path:
    """Return the weights file of a bundle's folder, or ``path`` itself; one that belongs to a bundle is checked.

    Raises:
        UserError: a folder that is no bundle, or see ``check``.
    """
    if path.is_dir():
        check(path, [WEIGHTS])
        return path / WEIGHTS
    if path.name == WEIGHTS and path.is_file() and (path.parent / FILE).is_file():
        check(path.parent, [WEIGHTS])
    return path


def model(source: str, path: str | Path | None) -> str:
    """Return the name of the model in a bundle, its folder or a file in it, for ``pretrained.load`` without a name."""
    if source != "tl_jax" or not path:
        raise UserError("name the model; only a bundle (source='tl_jax', path=FOLDER) says it itself")
    given = Path(path).expanduser()
    content = read(given if given.is_dir() else given.parent)
    if content["task"] == "policy":
        raise UserError(f"{given} holds a policy; start a run from it with --config.init.path, or call rl.source.load")
    return content["model"]
