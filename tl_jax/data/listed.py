"""Picture files with their classes, parts and groups, before they are decoded; made into a data set here."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import copies, decoding, dicom
from tl_jax.data.decoding import is_dicom
from tl_jax.data.notices import say_once
from tl_jax.data.pictures import DECODED_BYTES, Source, Split, as_names, between, held_out
from tl_jax.data.value_range import ValueRange
from tl_jax.errors import UserError

STUDY, NONE = "study", "none"  # values of config.data.group beside names of columns


class Reading(NamedTuple):
    """How picture files are read.

    Attributes:
        size: side in pixels into which pictures of differing sizes are fitted.
        most_bytes: of decoded pictures that may be kept on disk.
        windows: through which DICOM files of CT are seen, see ``dicom.read``.
        group: column of ``index.csv`` that says which images belong together, or a value of ``with_groups``.
        label: column of ``index.csv`` that names the class; empty takes the name of a file's folder.
        fit: how they are fitted, see ``pictures.fit``.
        value_range: of images with more than 8 bits; None takes the ends of the whole set.
        max_pixels: of an image; 0 for Pillow's limit.
        outside: whether files outside the data folder are read, see ``walker.Inside``.
    """

    size: int = 224
    most_bytes: float = DECODED_BYTES
    windows: tuple[Any, ...] = ()
    group: str = ""
    label: str = "label"
    fit: str = "crop"
    value_range: ValueRange | None = None
    max_pixels: int = 0
    outside: bool = False


class Part(NamedTuple):
    """N files, their labels int32 (N,), and the groups (N,) they belong to, None where nothing says so."""

    files: list[Path]
    labels: np.ndarray
    groups: np.ndarray | None = None


def with_groups(name: str, parts: Mapping[str, Part], group: str = "") -> dict[str, Part]:
    """Return the splits with what DICOM files say belongs together: their patient, or their study.

    Images that name neither, such as a PNG among DICOM files, are a group each, and a line says how many there are.
    Without any DICOM file there are no groups.

    Args:
        name: of the set.
        parts: of the set, without groups.
        group: "" for the patient (PatientID, or StudyInstanceUID in files without one), "study" for StudyInstanceUID,
            "none" for no groups.

    Raises:
        UserError: all DICOM files name one patient, as de-identified ones may; or "study", and there is no DICOM file.
    """
    files = [file for part in parts.values() for file in part.files]
    slices = [row for row, file in enumerate(files) if is_dicom(file)]
    if group == STUDY and not slices:
        raise UserError(
            f"{name}: config.data.group={STUDY!r} groups DICOM files, and there are none; name a column of index.csv"
        )
    if group == NONE or not slices:
        return dict(parts)
    groups = [str(file) for file in files]
    owner = dicom.study if group == STUDY else dicom.patient
    owners = {}
    for row in slices:
        try:
            owners[row] = owner(files[row])
        except UserError:  # whoever decodes the files reports all that are damaged
            owners[row] = ""
    _check_owners(name, [each for each in owners.values() if each], len(slices), group)
    named = {row: each for row, each in owners.items() if each}
    for row, each in named.items():
        groups[row] = each
    if named and len(named) < len(files):
        say_once(
            f"{name}: {len(files) - len(named)} of {len(files)} images name no {group or 'patient'}, each is a group "
            "of its own; name a column of index.csv with config.data.group if some belong together"
        )
    ends = list(itertools.accumulate(len(part.files) for part in parts.values()))
    grouped = np.asarray(groups) if named else None
    return {
        split: part._replace(groups=None if grouped is None else grouped[end - len(part.files) : end])
        for (split, part), end in zip(parts.items(), ends, strict=True)
    }


def _check_owners(name: str, owners: Sequence[str], files: int, group: str) -> None:
    """Refuse files that all name one patient, or one study: nothing could be held out, and it is rarely true."""
    if len(owners) < 2 or len(set(owners)) > 1:
        return
    what, tag = ("study", "StudyInstanceUID") if group == STUDY else ("patient", "PatientID")
    study = f"config.data.group={STUDY!r} groups by study, " if group != STUDY else ""
    raise UserError(
        f"{name}: {len(owners)} of {files} DICOM files name one {what} ({tag} {owners[0]!r}), as de-identified files "
        f"do; {study}config.data.group={NONE!r} takes every file for itself, or name a column of index.csv"
    )


def assemble(name: str, parts: Mapping[str, Part], classes: tuple[str, ...], tested: str, how: Reading) -> Source:
    """Decode the files of ``parts`` ("train", and where there are "test" and "validation") into a data set.

    Without a test split a fifth is held out, the same at every call: of each class, or if there are groups of the
    groups, so that none is in both. A line says if two splits share an image, byte for byte.

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
    copies.tell_files(name, {s: p.files for s, p in parts.items()}, {s: p.labels for s, p in parts.items()})
    parts = {part: parts[part] for part in ("train", "test", "validation") if part in parts}
    files = [file for part in parts.values() for file in part.files]
    rules = decoding.with_range(name, files, decoding.Decoding(how.windows, how.value_range, how.max_pixels))
    images = decoding.decode_all(name, files, how.size, how.most_bytes, rules, how.fit)
    ends = np.cumsum([len(part.files) for part in parts.values()])
    each = [
        Split(between(images, end - len(part.files), end), part.labels, part.groups, as_names(part.files))
        for part, end in zip(parts.values(), ends, strict=True)
    ]
    validation = each[2] if len(each) > 2 else None
    return Source(name, each[0], each[1], classes, tested, validation, rules.value_range)


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
                    "move all pictures of a group into one part, or group them otherwise with config.data.group (a "
                    f"column of index.csv, {STUDY!r} or {NONE!r})"
                )
