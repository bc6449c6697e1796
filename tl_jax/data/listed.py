"""Picture files with their classes, parts and groups, before they are decoded; made into a data set here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import decoding, dicom
from tl_jax.data.decoding import is_dicom
from tl_jax.data.pictures import DECODED_BYTES, Source, Split, as_names, between, held_out
from tl_jax.errors import UserError


class Reading(NamedTuple):
    """How picture files are read.

    Attributes:
        size: side in pixels into which pictures of differing sizes are fitted.
        most_bytes: of decoded pictures that may be kept on disk.
        windows: through which DICOM files of CT are seen, see ``dicom.read``.
        group: column of ``index.csv`` that says which pictures belong together; empty for none.
        label: column of ``index.csv`` that names the class; empty takes the name of a file's folder.
        fit: how they are fitted, see ``pictures.fit``.
    """

    size: int = 224
    most_bytes: float = DECODED_BYTES
    windows: tuple[Any, ...] = ()
    group: str = ""
    label: str = "label"
    fit: str = "crop"


class Part(NamedTuple):
    """N files, their labels int32 (N,), and the groups (N,) they belong to, None where nothing says so."""

    files: list[Path]
    labels: np.ndarray
    groups: np.ndarray | None = None


def patients(files: Sequence[Path]) -> np.ndarray | None:
    """Return the patients (N,) that DICOM files name; None where there are other pictures, or one names nobody."""
    if not files or not all(map(is_dicom, files)):
        return None
    found = [dicom.patient(file) for file in files]
    return np.asarray(found) if all(found) else None


def assemble(name: str, parts: Mapping[str, Part], classes: tuple[str, ...], tested: str, how: Reading) -> Source:
    """Decode the files of ``parts`` ("train", and where there are "test" and "validation") into a data set.

    Without a test part a fifth is held out, the same at every call: of each class, or where there are groups of the
    groups, so that none is in both parts.

    Raises:
        UserError: a group is in two parts, a class is too small for a part to be held out, or a file cannot be read.
    """
    if "test" not in parts:
        whole = parts["train"]
        train, test = held_out(name, whole.labels, classes, "fifth", whole.groups)
        parts = {"train": _take(whole, train), "test": _take(whole, test)} | {
            part: rows for part, rows in parts.items() if part != "train"
        }
        tested = "a fifth held out"
    _check_apart(parts)
    parts = {part: parts[part] for part in ("train", "test", "validation") if part in parts}
    files = [file for part in parts.values() for file in part.files]
    images = decoding.decode_all(name, files, how.size, how.most_bytes, how.windows, how.fit)
    ends = np.cumsum([len(part.files) for part in parts.values()])
    each = [
        Split(between(images, end - len(part.files), end), part.labels, part.groups, as_names(part.files))
        for part, end in zip(parts.values(), ends, strict=True)
    ]
    return Source(name, each[0], each[1], classes, tested, *each[2:])


def _take(part: Part, rows: np.ndarray) -> Part:
    groups = None if part.groups is None else part.groups[rows]
    return Part([part.files[row] for row in rows], part.labels[rows], groups)


def _check_apart(parts: Mapping[str, Part]) -> None:
    """Refuse a group that is in two parts: a test on pictures of patients who were trained on shows nothing."""
    seen: dict[str, tuple[str, Path]] = {}
    for name, part in parts.items():
        if part.groups is None:
            continue
        for group, file in zip(part.groups, part.files, strict=True):
            where, other = seen.setdefault(group, (name, file))
            if where != name:
                raise UserError(
                    f"group {str(group)!r} is in two parts: {other} in {where}, {file} in {name}; "
                    "move all pictures of a group into one part"
                )
