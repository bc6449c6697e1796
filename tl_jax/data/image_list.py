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
from typing import NamedTuple

import numpy as np

from tl_jax.data import decode, dicom, duplicates
from tl_jax.data.dataset import (
    ALL_SPLIT_NAMES,
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
from tl_jax.data.registry import IMAGE_FILES, DatasetOptions, register_dataset
from tl_jax.data.text import read_text
from tl_jax.data.walker import PathGuard, find_file, normalize_unicode
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.log import warn_once

STUDY, NO_GROUPS = "study", "none"  # values of config.data.group beside names of columns


class FileList(NamedTuple):
    """N files, their labels int32 (N,), and the groups (N,) they belong to, None where nothing says so."""

    files: list[Path]
    labels: np.ndarray
    groups: np.ndarray | None = None


def with_dicom_groups(name: str, splits: Mapping[str, FileList], group: str = "") -> dict[str, FileList]:
    """Return the splits with what DICOM files say belongs together: their patient, or their study.

    Images that name neither, such as a PNG among DICOM files, are a group each, and a line says how many there are.
    Without any DICOM file there are no groups.

    Args:
        name: of the set.
        splits: of the set, without groups.
        group: "" for the patient (PatientID, or StudyInstanceUID in files without one), "study" for StudyInstanceUID,
            "none" for no groups.

    Raises:
        UserError: all DICOM files name one patient, as de-identified ones may; or "study", and there is no DICOM file.
    """
    files = [file for file_list in splits.values() for file in file_list.files]
    dicom_rows = [row for row, file in enumerate(files) if is_dicom(file)]
    if group == STUDY and not dicom_rows:
        raise UserError(
            f"{name}: config.data.group={STUDY!r} groups DICOM files, and there are none; name a column of index.csv"
        )
    if group == NO_GROUPS or not dicom_rows:
        return dict(splits)
    groups = [str(file) for file in files]
    read_owner = dicom.read_study if group == STUDY else dicom.read_patient
    owners = {}
    for row in dicom_rows:
        try:
            owners[row] = read_owner(files[row])
        except UserError:  # whoever decodes the files reports all that are damaged
            owners[row] = ""
    _check_owners(name, [owner for owner in owners.values() if owner], len(dicom_rows), group)
    known = {row: owner for row, owner in owners.items() if owner}
    for row, owner in known.items():
        groups[row] = owner
    if known and len(known) < len(files):
        warn_once(
            f"{name}: {len(files) - len(known)} of {len(files)} images name no {group or 'patient'}, each is a group "
            "of its own; name a column of index.csv with config.data.group if some belong together"
        )
    ends = list(itertools.accumulate(len(file_list.files) for file_list in splits.values()))
    grouped = np.asarray(groups) if known else None
    return {
        split: file_list._replace(groups=None if grouped is None else grouped[end - len(file_list.files) : end])
        for (split, file_list), end in zip(splits.items(), ends, strict=True)
    }


def _check_owners(name: str, owners: Sequence[str], files: int, group: str) -> None:
    """Refuse files that all name one patient, or one study: nothing could be held out, and it is rarely true."""
    if len(owners) < 2 or len(set(owners)) > 1:
        return
    what, tag = ("study", "StudyInstanceUID") if group == STUDY else ("patient", "PatientID")
    study = f"config.data.group={STUDY!r} groups by study, " if group != STUDY else ""
    raise UserError(
        f"{name}: {len(owners)} of {files} DICOM files name one {what} ({tag} {owners[0]!r}), as de-identified files "
        f"do; {study}config.data.group={NO_GROUPS!r} takes every file for itself, or name a column of index.csv"
    )


def build_dataset(
    name: str, splits: Mapping[str, FileList], classes: tuple[str, ...], test_origin: str, options: DatasetOptions
) -> Dataset:
    """Decode the files of ``splits`` ("train", and where there are "test" and "validation") into a data set.

    Without a test split a fifth is held out, the same at every call: of each class, or if there are groups of the
    groups, so that none is in both. A line says if two splits share an image, byte for byte.

    Raises:
        UserError: a group is in two parts, a class is too small for a part to be held out, or a file cannot be read.
    """
    if "test" not in splits:
        full = splits["train"]
        train, test = hold_out(name, full.labels, classes, options.share, full.groups)
        splits = {"train": _select_rows(full, train), "test": _select_rows(full, test)} | {
            split: rows for split, rows in splits.items() if split != "train"
        }
        test_origin = "a fifth held out"
    _check_disjoint_groups(splits)
    duplicates.report_duplicate_files(
        name, {s: p.files for s, p in splits.items()}, {s: p.labels for s, p in splits.items()}
    )
    splits = {split: splits[split] for split in ("train", "test", "validation") if split in splits}
    files = [file for split in splits.values() for file in split.files]
    decoding = decode.with_value_range(name, files, options.decoding)
    images = decode.decode_all(name, files, options.size, options.max_bytes, decoding, options.fit, options.shape)
    ends = np.cumsum([len(split.files) for split in splits.values()])
    built = [
        Split(slice_images(images, end - len(split.files), end), split.labels, split.groups, path_array(split.files))
        for split, end in zip(splits.values(), ends, strict=True)
    ]
    validation = built[2] if len(built) > 2 else None
    return Dataset(name, built[0], built[1], classes, test_origin, validation, decoding.value_range)


def _select_rows(file_list: FileList, rows: np.ndarray) -> FileList:
    groups = None if file_list.groups is None else file_list.groups[rows]
    return FileList([file_list.files[row] for row in rows], file_list.labels[rows], groups)


def _check_disjoint_groups(splits: Mapping[str, FileList]) -> None:
    """Refuse a group that is in two parts: a test on pictures of patients who were trained on shows nothing."""
    first_use: dict[str, tuple[str, Path]] = {}
    for name, file_list in splits.items():
        if file_list.groups is None:
            continue
        for group, file in zip(file_list.groups, file_list.files, strict=True):
            where, other = first_use.setdefault(group, (name, file))
            if where != name:
                raise UserError(
                    f"group {str(group)!r} is in two parts: {other} in {where}, {file} in {name}; "
                    "move all pictures of a group into one part, or group them otherwise with config.data.group (a "
                    f"column of index.csv, {STUDY!r} or {NO_GROUPS!r})"
                )


INDEX_NAME = "index.csv"
FILE_COLUMN, SPLIT_COLUMN = "file", "split"  # columns


class Index(NamedTuple):
    """The rows of an index, by the file that they are about, and the lines in which they stand."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    lines: dict[str, int]

    def location(self, file: str) -> str:
        """Return where the row of a file stands."""
        return f"{self.path}, line {self.lines[file]}"

    def column(self, name: str, field: str) -> dict[str, str]:
        """Return what a column says of each file; ``field`` of the configuration named it.

        Raises:
            UserError: there is no such column, or it is empty in a row.
        """
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r} (config.{field}); {nearest(name, self.columns)}")
        position = self.columns.index(name)
        for file, row in self.rows.items():
            if not row[position]:
                raise UserError(f"{self.location(file)}: no {name} for {file}; fill it in or remove the line")
        return {file: row[position] for file, row in self.rows.items()}


def read_index(path: Path) -> Index:
    """Read an index, a CSV file whose first line names the columns, ``file`` among them.

    Raises:
        UserError: no such file, not text, no column ``file``, a row of another length, or a file listed twice, however
            its path is written.
    """
    if not path.is_file():
        raise UserError(f"no index {path}; write one with the columns file, label, split and a group")
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        numbered_rows = [(reader.line_num, tuple(map(str.strip, row))) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"cannot read {path} ({error}); it must be a CSV file in UTF-8") from error
    columns = numbered_rows[0][1] if numbered_rows else ()
    if FILE_COLUMN not in columns:
        raise UserError(
            f"{path} has no column {FILE_COLUMN!r} in its first line (it has {', '.join(columns) or 'nothing'}); "
            "name the columns there"
        )
    rows: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, row in numbered_rows[1:]:
        if len(row) != len(columns):
            raise UserError(f"{path}, line {number}: {len(row)} values for {len(columns)} columns; mend the line")
        name = _normalize_path(row[columns.index(FILE_COLUMN)])
        if name in rows:
            raise UserError(f"{path}, line {number}: {name} is listed a second time; remove one of the lines")
        rows[name], lines[name] = row, number
    if not rows:
        raise UserError(f"{path} lists no files; add a line for each picture")
    return Index(path, columns, rows, lines)


def has_column(folder: Path, column: str) -> bool:
    """Whether ``column`` is to be looked for in ``folder/index.csv``.

    The words that ``with_dicom_groups`` knows are such only if there is no column of that name.

    Raises:
        UserError: the index cannot be read.
    """
    return column not in (STUDY, NO_GROUPS) or (
        (folder / INDEX_NAME).is_file() and column in read_index(folder / INDEX_NAME).columns
    )


def known_group(path: Path, options: DatasetOptions) -> str:
    """Return ``options.group``; "" if it is a column that the index of another set to be tested on does not have."""
    if not options.as_one_split or options.group in ("", STUDY, NO_GROUPS):
        return options.group
    if path.is_file() and options.group in read_index(path).columns:
        return options.group
    warn_once(f"{path}: no column {options.group!r} says which images belong together; intervals count each as new")
    return ""


def read_groups(folder: Path, files: Sequence[Path], column: str) -> np.ndarray:
    """Return what ``folder/index.csv`` says in ``column`` of each file (N,).

    Raises:
        UserError: the index cannot be read, has no such column, or does not list a file.
    """
    index = read_index(folder / INDEX_NAME)
    group_of = _group_column(index, column)
    names = [_normalize_path(str(file.relative_to(folder))) for file in files]
    missing = [name for name in names if name not in group_of]
    if missing:
        raise UserError(
            f"{index.path} does not list {missing[0]} ({len(missing)} of {len(names)} pictures are not there); "
            "add them, with paths as seen from its folder"
        )
    return np.asarray([group_of[name] for name in names])


def _group_column(index: Index, column: str) -> dict[str, str]:
    """Return the group of each file; spellings in which nobody sees a difference are one group.

    These are Unicode forms of a name, and if all groups are numbers 7 and 7.0, which a table program makes of 7.
    """
    groups = {file: normalize_unicode(group) for file, group in index.column(column, "data.group").items()}
    if all(map(is_number, groups.values())):
        return {file: re.sub(r"\.0*$", "", group) for file, group in groups.items()}
    return groups


def load_index(path: Path, options: DatasetOptions) -> Dataset:
    """Read the pictures that an index lists, with paths as seen from its folder.

    The column ``options.columns.label`` names the class, or if that is empty the file's folder does. The column
    ``split``, if there is one, names the split, by any name in ``SPLIT_NAMES``; beside train, a single other split is
    the test split.
    The column ``options.group``, if it is not empty, says what belongs together, or it is a word of
    ``with_dicom_groups``.

    If all classes are numbers, equal ones are one class: 1 and 1.0. Names that differ in their Unicode form only are
    one, of classes and of files.

    Args:
        path: of the index, or of the folder with ``index.csv``.
        options: see ``DatasetOptions``.

    Raises:
        UserError: whatever is wrong with the index, a file that is not there, or a class that train does not have.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"no folder or index {path}; check config.data.dir")
    index = read_index(path / INDEX_NAME if path.is_dir() else path)
    folder = index.path.parent
    label, group = options.columns.label, known_group(index.path, options)
    files = _find_files(index, options.decoding.outside)
    label_of = index.column(label, "data.label") if label else {n: f.parent.name for n, f in files.items()}
    classes, class_of = _find_classes(label_of, index.path, bool(label))
    column = group if group in index.columns or group not in ("", STUDY, NO_GROUPS) else ""
    group_of = _group_column(index, column) if column else None
    if len(classes) < 2 and not options.as_one_split:
        raise UserError(f"{index.path} has fewer than two classes ({', '.join(classes)}); check config.data.label")
    numbers, splits = {name: k for k, name in enumerate(classes)}, {}
    for split, names in _split_names(index).items():
        labels = np.asarray([numbers[class_of[name]] for name in names], np.int32)
        groups = np.asarray([group_of[name] for name in names]) if group_of else None
        splits[split] = FileList([files[name] for name in names], labels, groups)
    if group_of is None:
        splits = with_dicom_groups(folder.resolve().name, splits, group)
    splits, test_origin = with_test_split(splits), "test" if "test" in splits else "validation"
    unknown = sorted({int(k) for split in splits.values() for k in split.labels} - set(splits["train"].labels.tolist()))
    if unknown and not options.as_one_split:
        raise UserError(f"{index.path} has the class {classes[unknown[0]]!r} in no training row; add some, or leave it")
    return build_dataset(folder.resolve().name, splits, classes, test_origin, options)


@register_dataset("index", fields=(*IMAGE_FILES, "group", "label", "outside", "windows"), layout="index.csv in it")
def load_listed(options: DatasetOptions) -> Dataset:
    """Images that an index.csv lists, with their class, split and group."""
    return load_index(Path(options.folder), options)


def _split_names(index: Index) -> dict[str, list[str]]:
    """Return the files of each part, in the order of the index."""
    if SPLIT_COLUMN not in index.columns:
        return {"train": list(index.rows)}
    splits: dict[str, list[str]] = {}
    for name, value in index.column(SPLIT_COLUMN, "data.dir").items():
        split = parse_split(value)
        if split is None:
            raise UserError(
                f"{index.location(name)}: split {value!r}; write train, validation or test "
                f"(or one of {ALL_SPLIT_NAMES})"
            )
        splits.setdefault(split, []).append(name)
    if "train" not in splits:
        raise UserError(f"{index.path} has no row with the split train; add some")
    return splits


def _normalize_path(name: str) -> str:
    """Return a path in the one form in which paths are compared: ``./a/x.png`` and ``a\\x.png`` are ``a/x.png``."""
    return normalize_unicode(os.path.normpath(name.replace("\\", "/")))


def _find_files(index: Index, outside: bool) -> dict[str, Path]:
    """Return the file of each row.

    Raises:
        UserError: files are not there; the message says how many. Or a file is listed twice, once with its whole path,
            or is outside the folder of the index and not allowed there.
    """
    files, missing, guard = {}, [], PathGuard(index.path.parent, outside)
    for name in index.rows:
        file = find_file(index.path.parent, name)
        if file is None:
            missing.append(name)
        else:
            files[name] = guard.check(file, index.location(name))
    if missing:
        count = f" ({len(missing)} of {len(index.rows)} files are not there)" if len(missing) > 1 else ""
        where = index.path.parent
        raise UserError(
            f"{index.location(missing[0])}: no file {missing[0]} in {where}{count}; mend the line or add the file"
        )
    name_of: dict[str, str] = {}
    for name, file in files.items():
        other = name_of.setdefault(os.path.abspath(file), name)
        if other != name:
            raise UserError(f"{index.location(name)}: {name} is {other}, listed a second time; remove one of the lines")
    return files


def _find_classes(labels: Mapping[str, str], path: Path, from_column: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of the classes in their order, and the class of each file.

    Args:
        labels: file -> label.
        path: of the index.
        from_column: whether labels are from a column, where equal numbers are one class, and no names of folders.
    """
    names = {file: normalize_unicode(label) for file, label in labels.items()}
    if from_column:
        label_map = make_label_map(list(labels.values()), path)
        if label_map.numeric:
            numbers = {file: label_map.index(label) for file, label in labels.items()}
            return label_map.names, {file: label_map.names[k] for file, k in numbers.items() if k is not None}
    return tuple(sorted(set(names.values()), key=lambda name: name.zfill(9) if name.isdigit() else name)), names
