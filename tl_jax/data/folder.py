"""Labelled pictures from a folder of class folders."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tl_jax.data import index
from tl_jax.data.decoding import DEFAULT, ENDINGS, Decoding, decode_all, is_dicom, with_range
from tl_jax.data.listed import Part, Reading, assemble, patients
from tl_jax.data.pictures import DECODED_BYTES, Source, Split
from tl_jax.data.value_range import ValueRange
from tl_jax.errors import UserError, nearest

TEST_PARTS = ("test", "validation", "val")  # the first with class folders is the test part
LAYOUT = "FOLDER/CLASS/PICTURE, or FOLDER/train/CLASS/PICTURE and FOLDER/test/CLASS/PICTURE"

Files = dict[str, list[Path]]  # the picture files of each class


def read(
    folder: Path,
    size: int = 224,
    most_bytes: float = DECODED_BYTES,
    windows: tuple[Any, ...] = (),
    group: str = "",
    fit: str = "crop",
    value_range: ValueRange | None = None,
    max_pixels: int = 0,
) -> Source:
    """Read ``folder/CLASS/PICTURE`` or ``folder/{train,test,validation,val}/CLASS/PICTURE``.

    The first of these after ``train`` is the test part, and a second one is the set's own validation part.

    Classes and files are in the order of their names. Without a test part a fifth of each class is held out, the same
    at every call. Hidden files, files that are no pictures and folders within class folders are skipped, but for those
    with DICOM files (a series each), and one line on stderr says how many. Pictures are turned as their EXIF says;
    grey is repeated, what is transparent becomes white. Where all have the same size they are kept as they are, else
    all are fitted into ``size``. Decoded they take N * H * W * 3 bytes on disk; where that is more than
    ``most_bytes``, they are decoded each time they are read.

    What belongs together says the column ``group`` of ``folder/index.csv``, of DICOM files else their patient;
    such a group is in one part only.

    Args:
        folder: the name of the set is the folder's.
        size, most_bytes, windows, group, fit, value_range, max_pixels: see ``Reading``.

    Raises:
        UserError: no folder of that layout, fewer than two classes, a class without pictures or too small for a part
            to be held out, a picture that cannot be decoded, a group in two parts.
    """
    folder = Path(folder).expanduser()
    skipped: list[Path] = []
    try:
        parts, tested = _parts(folder, skipped)
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}); check --config.data.dir") from error
    classes = tuple(parts["train"])
    listed = {}
    for name, part in parts.items():
        files, labels = _listed(part, classes)
        groups = index.groups(folder, files, group) if group else patients(files)
        listed[name] = Part(files, labels, groups)
    skipped = [path for path in skipped if not (group and path == folder / index.NAME)]
    if skipped:
        _say(folder, tuple(skipped))
    how = Reading(size, most_bytes, windows, group, fit=fit, value_range=value_range, max_pixels=max_pixels)
    return assemble(folder.resolve().name, listed, classes, tested, how)


def read_all(
    folder: Path, size: int, most_bytes: float = DECODED_BYTES, rules: Decoding = DEFAULT
) -> tuple[Split, list[Path], tuple[str, ...], ValueRange | None]:
    """Read ``folder/CLASS/PICTURE`` as one part; arguments and errors are those of ``read``, ``rules`` those of files.

    Returns:
        The N pictures in the order of classes and names, their files, the K names of classes, and the range of values.
    """
    folder, skipped = Path(folder).expanduser(), []
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check --config.data.dir")
    try:
        found = _classes(folder, skipped)
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}); check --config.data.dir") from error
    if skipped:
        _say(folder, tuple(skipped))
    files, labels = _listed(found, tuple(found))
    name = folder.resolve().name
    rules = with_range(name, files, rules)
    return Split(decode_all(name, files, size, most_bytes, rules), labels), files, tuple(found), rules.value_range


def named(inputs: Sequence[str]) -> list[Path]:
    """Return the picture files that a user named, one by one or as folders.

    Raises:
        UserError: none was named, or as ``pictures``.
    """
    if not inputs:
        raise UserError("nothing to look at; pass --input=PICTURE or --input=FOLDER, once for each")
    return [file for given in inputs for file in pictures(Path(given))]


def pictures(path: Path) -> list[Path]:
    """Return the picture files of a folder and of those within it, by name, or the one file that ``path`` is.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    path = path.expanduser()
    inside = path.rglob("*") if path.is_dir() else [path] if path.is_file() else None
    if inside is None:
        raise UserError(f"no file or folder {path}; check --input")
    found = [
        file
        for file in sorted(inside)
        if file.suffix.lower() in ENDINGS
        and not any(part.startswith((".", "__MACOSX")) for part in file.relative_to(path).parts)
    ]
    if not found:
        raise UserError(f"{path} has no pictures ({', '.join(ENDINGS)}); check --input")
    return found


def _parts(folder: Path, skipped: list[Path]) -> tuple[dict[str, Files], str]:
    """Return the files of ``train``, of ``test`` and of ``validation``, and the name of the folder ``test`` is from."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check --config.data.dir")
    below = {path.name.lower(): path for path in _entries(folder, [])[0]}
    top = below.get("train")
    if top is None or not _entries(top, [])[0]:  # a class may be called train
        return {"train": _classes(folder, skipped)}, ""
    found = [below[part] for part in TEST_PARTS if part in below and _entries(below[part], [])[0]]
    used = [top, *found[:2]]
    skipped += [path for path in folder.iterdir() if path not in used]
    parts = {part: _classes(path, skipped) for part, path in zip(("train", "test", "validation"), used, strict=False)}
    for path, part in zip(used, parts.values(), strict=True):
        if unknown := sorted(set(part) - set(parts["train"])):
            advice = nearest(unknown[0], parts["train"])
            raise UserError(f"{path / unknown[0]} is a class that {top} does not have; {advice}")
    return parts, found[0].name if found else ""


def _classes(folder: Path, skipped: list[Path]) -> Files:
    """Return the picture files of each class folder, in the order of their names."""
    folders, loose = _entries(folder, skipped)
    skipped += loose
    if len(folders) < 2:
        raise UserError(f"{folder} has fewer than two class folders ({len(folders)}); the layout is {LAYOUT}")
    classes = {}
    for path in folders:
        deeper, classes[path.name] = _entries(path, skipped)
        for below in deeper:
            series = sorted(file for file in below.rglob("*") if is_dicom(file) and file.is_file())
            classes[path.name] += series
            skipped += [] if series else [below]
        if not classes[path.name]:
            kinds = ", ".join(ENDINGS)
            raise UserError(f"{path} has no pictures ({kinds}); fill it or remove it, the layout is {LAYOUT}")
    return classes


def _entries(folder: Path, skipped: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the folders and the picture files in a folder, by name; what is hidden or neither joins ``skipped``."""
    folders, files = [], []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        hidden = path.name.startswith((".", "__MACOSX"))
        if not hidden and path.suffix.lower() in ENDINGS and not path.is_dir():
            files.append(path)
        elif not hidden and path.is_dir():
            folders.append(path)
        else:
            skipped.append(path)
    return folders, files


def _listed(files: Files, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """Return all files of a part, and their labels int32 (N,)."""
    index = {name: k for k, name in enumerate(classes)}
    labels = [index[name] for name, paths in files.items() for _ in paths]
    return [path for paths in files.values() for path in paths], np.asarray(labels, np.int32)


@functools.cache  # once a process, however often the set is read
def _say(folder: Path, skipped: tuple[Path, ...]) -> None:
    """Say in one line what is not read, the uppermost first."""
    first = sorted(skipped, key=lambda path: (len(path.parts), path))[:3]
    names = ", ".join(str(path.relative_to(folder)) for path in first) + (", ..." if len(skipped) > 3 else "")
    what = "1 file or folder" if len(skipped) == 1 else f"{len(skipped)} files or folders"
    tqdm.write(f"{folder}: skipped {what} beside the pictures: {names}", file=sys.stderr)
