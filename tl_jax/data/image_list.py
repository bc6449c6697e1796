"""Image data sets from lists of files, such as ``index.csv``, with class, split and group of each image.

Images of one group, such as a patient, are kept in one split.
"""

import csv
import io
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import decode, dicom, duplicates
from tl_jax.data.damage import print_once
from tl_jax.data.dataset import (
    ALL_SPLIT_NAMES,
    DECODED_BYTES,
    Dataset,
    Split,
    hold_out,
    parse_split,
    path_array,
    slice_images,
    with_test_split,
)
from tl_jax.data.decode import is_dicom
from tl_jax.data.labels import is_number, make_label_map
from tl_jax.data.text import read_text
from tl_jax.data.value_range import ValueRange
from tl_jax.data.walker import PathGuard, find_file, normalize_unicode
from tl_jax.utils.errors import UserError, nearest

STUDY, NONE = "study", "none"  # values of config.data.group beside names of columns


class Reading(NamedTuple):
    """How picture files are read.

    Attributes:
        size: side in pixels into which pictures of differing sizes are fitted.
        most_bytes: of decoded pictures that may be kept on disk.
        windows: through which DICOM files of CT are seen, see ``dicom.read_dicom``.
        group: column of ``index.csv`` that says which images belong together, or a value of ``with_groups``.
        label: column of ``index.csv`` that names the class; empty takes the name of a file's folder.
        fit: how they are fitted, see ``dataset.fit_image``.
        value_range: of images with more than 8 bits; None takes the ends of the whole set.
        max_pixels: of an image; 0 for Pillow's limit.
        outside: whether files outside the data folder are read, see ``walker.PathGuard``.
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
    owner = dicom.read_study if group == STUDY else dicom.read_patient
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
        print_once(
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


def assemble(name: str, parts: Mapping[str, Part], classes: tuple[str, ...], tested: str, how: Reading) -> Dataset:
    """Decode the files of ``parts`` ("train", and where there are "test" and "validation") into a data set.

    Without a test split a fifth is held out, the same at every call: of each class, or if there are groups of the
    groups, so that none is in both. A line says if two splits share an image, byte for byte.

    Raises:
        UserError: a group is in two parts, a class is too small for a part to be held out, or a file cannot be read.
    """
    if "test" not in parts:
        whole = parts["train"]
        train, test = hold_out(name, whole.labels, classes, "fifth", whole.groups)
        parts = {"train": _take(whole, train), "test": _take(whole, test)} | {
            part: rows for part, rows in parts.items() if part != "train"
        }
        tested = "a fifth held out"
    _check_apart(parts)
    duplicates.report_duplicate_files(
        name, {s: p.files for s, p in parts.items()}, {s: p.labels for s, p in parts.items()}
    )
    parts = {part: parts[part] for part in ("train", "test", "validation") if part in parts}
    files = [file for part in parts.values() for file in part.files]
    rules = decode.with_value_range(name, files, decode.Decoding(how.windows, how.value_range, how.max_pixels))
    images = decode.decode_all(name, files, how.size, how.most_bytes, rules, how.fit)
    ends = np.cumsum([len(part.files) for part in parts.values()])
    each = [
        Split(slice_images(images, end - len(part.files), end), part.labels, part.groups, path_array(part.files))
        for part, end in zip(parts.values(), ends, strict=True)
    ]
    validation = each[2] if len(each) > 2 else None
    return Dataset(name, each[0], each[1], classes, tested, validation, rules.value_range)


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


NAME = "index.csv"
FILE, SPLIT = "file", "split"  # columns


class Index(NamedTuple):
    """The rows of an index, by the file that they are about, and the lines in which they stand."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    lines: dict[str, int]

    def at(self, file: str) -> str:
        """Return where the row of a file stands."""
        return f"{self.path}, line {self.lines[file]}"

    def column(self, name: str, field: str) -> dict[str, str]:
        """Return what a column says of each file; ``field`` of the configuration named it.

        Raises:
            UserError: there is no such column, or it is empty in a row.
        """
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r} (config.{field}); {nearest(name, self.columns)}")
        at = self.columns.index(name)
        for file, row in self.rows.items():
            if not row[at]:
                raise UserError(f"{self.at(file)}: no {name} for {file}; fill it in or remove the line")
        return {file: row[at] for file, row in self.rows.items()}


def read(path: Path) -> Index:
    """Read an index, a CSV file whose first line names the columns, ``file`` among them.

    Raises:
        UserError: no such file, not text, no column ``file``, a row of another length, or a file listed twice, however
            its path is written.
    """
    if not path.is_file():
        raise UserError(f"no index {path}; write one with the columns file, label, split and a group")
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        found = [(reader.line_num, tuple(map(str.strip, row))) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"cannot read {path} ({error}); it must be a CSV file in UTF-8") from error
    columns = found[0][1] if found else ()
    if FILE not in columns:
        raise UserError(
            f"{path} has no column {FILE!r} in its first line (it has {', '.join(columns) or 'nothing'}); "
            "name the columns there"
        )
    rows: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, row in found[1:]:
        if len(row) != len(columns):
            raise UserError(f"{path}, line {number}: {len(row)} values for {len(columns)} columns; mend the line")
        name = _normal(row[columns.index(FILE)])
        if name in rows:
            raise UserError(f"{path}, line {number}: {name} is listed a second time; remove one of the lines")
        rows[name], lines[name] = row, number
    if not rows:
        raise UserError(f"{path} lists no files; add a line for each picture")
    return Index(path, columns, rows, lines)


def has_column(folder: Path, column: str) -> bool:
    """Whether ``column`` is to be looked for in ``folder/index.csv``.

    The words that ``with_groups`` knows are such only if there is no column of that name.

    Raises:
        UserError: the index cannot be read.
    """
    return column not in (STUDY, NONE) or ((folder / NAME).is_file() and column in read(folder / NAME).columns)


def groups(folder: Path, files: Sequence[Path], column: str) -> np.ndarray:
    """Return what ``folder/index.csv`` says in ``column`` of each file (N,).

    Raises:
        UserError: the index cannot be read, has no such column, or does not list a file.
    """
    index = read(folder / NAME)
    found = _group_column(index, column)
    names = [_normal(str(file.relative_to(folder))) for file in files]
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{index.path} does not list {missing[0]} ({len(missing)} of {len(names)} pictures are not there); "
            "add them, with paths as seen from its folder"
        )
    return np.asarray([found[name] for name in names])


def _group_column(index: Index, column: str) -> dict[str, str]:
    """Return the group of each file; spellings in which nobody sees a difference are one group.

    These are Unicode forms of a name, and if all groups are numbers 7 and 7.0, which a table program makes of 7.
    """
    found = {file: normalize_unicode(group) for file, group in index.column(column, "data.group").items()}
    if all(map(is_number, found.values())):
        return {file: re.sub(r"\.0*$", "", group) for file, group in found.items()}
    return found


def source(path: Path, how: Reading) -> Dataset:
    """Read the pictures that an index lists, with paths as seen from its folder.

    The column ``how.label`` names the class, or if that is empty the file's folder does. The column ``split``, if there
    is one, names the split, by any name in ``SPLIT_NAMES``; beside train, a single other split is the test split. The
    column ``how.group``, if it is not empty, says what belongs together, or it is a word of ``with_groups``.

    If all classes are numbers, equal ones are one class: 1 and 1.0. Names that differ in their Unicode form only are
    one, of classes and of files.

    Args:
        path: of the index, or of the folder with ``index.csv``.
        how: see ``Reading``.

    Raises:
        UserError: whatever is wrong with the index, a file that is not there, or a class that train does not have.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"no folder or index {path}; check config.data.dir")
    index = read(path / NAME if path.is_dir() else path)
    folder = index.path.parent
    files = _files(index, how.outside)
    given = index.column(how.label, "data.label") if how.label else {n: f.parent.name for n, f in files.items()}
    classes, named = _classes(given, index.path, bool(how.label))
    column = how.group if how.group in index.columns or how.group not in ("", STUDY, NONE) else ""
    group = _group_column(index, column) if column else None
    if len(classes) < 2:
        raise UserError(f"{index.path} has fewer than two classes ({', '.join(classes)}); check config.data.label")
    numbers, parts = {name: k for k, name in enumerate(classes)}, {}
    for part, names in _parts(index).items():
        labels = np.asarray([numbers[named[name]] for name in names], np.int32)
        own = np.asarray([group[name] for name in names]) if group else None
        parts[part] = Part([files[name] for name in names], labels, own)
    if group is None:
        parts = with_groups(folder.resolve().name, parts, how.group)
    parts, tested = with_test_split(parts), "test" if "test" in parts else "validation"
    unknown = sorted({int(k) for part in parts.values() for k in part.labels} - set(parts["train"].labels.tolist()))
    if unknown:
        raise UserError(f"{index.path} has the class {classes[unknown[0]]!r} in no training row; add some, or leave it")
    return assemble(folder.resolve().name, parts, classes, tested, how)


def _parts(index: Index) -> dict[str, list[str]]:
    """Return the files of each part, in the order of the index."""
    if SPLIT not in index.columns:
        return {"train": list(index.rows)}
    parts: dict[str, list[str]] = {}
    for name, said in index.column(SPLIT, "data.dir").items():
        split = parse_split(said)
        if split is None:
            raise UserError(
                f"{index.at(name)}: split {said!r}; write train, validation or test (or one of {ALL_SPLIT_NAMES})"
            )
        parts.setdefault(split, []).append(name)
    if "train" not in parts:
        raise UserError(f"{index.path} has no row with the split train; add some")
    return parts


def _normal(name: str) -> str:
    """Return a path in the one form in which paths are compared: ``./a/x.png`` and ``a\\x.png`` are ``a/x.png``."""
    return normalize_unicode(os.path.normpath(name.replace("\\", "/")))


def _files(index: Index, outside: bool) -> dict[str, Path]:
    """Return the file of each row.

    Raises:
        UserError: files are not there; the message says how many. Or a file is listed twice, once with its whole path,
            or is outside the folder of the index and not allowed there.
    """
    files, absent, inside = {}, [], PathGuard(index.path.parent, outside)
    for name in index.rows:
        file = find_file(index.path.parent, name)
        if file is None:
            absent.append(name)
        else:
            files[name] = inside.check(file, index.at(name))
    if absent:
        count = f" ({len(absent)} of {len(index.rows)} files are not there)" if len(absent) > 1 else ""
        where = index.path.parent
        raise UserError(f"{index.at(absent[0])}: no file {absent[0]} in {where}{count}; mend the line or add the file")
    seen: dict[str, str] = {}
    for name, file in files.items():
        other = seen.setdefault(os.path.abspath(file), name)
        if other != name:
            raise UserError(f"{index.at(name)}: {name} is {other}, listed a second time; remove one of the lines")
    return files


def _classes(given: Mapping[str, str], path: Path, spelled: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of the classes in their order, and the class of each file.

    Args:
        given: file -> label.
        path: of the index.
        spelled: whether labels are from a column, where equal numbers are one class, and no names of folders.
    """
    names = {file: normalize_unicode(label) for file, label in given.items()}
    if spelled:
        made = make_label_map(list(given.values()), path)
        if made.numeric:
            numbers = {file: made.index(label) for file, label in given.items()}
            return made.names, {file: made.names[k] for file, k in numbers.items() if k is not None}
    return tuple(sorted(set(names.values()), key=lambda name: name.zfill(9) if name.isdigit() else name)), names
