"""Image data sets from lists of files, such as ``index.csv``, with the class, split and group of each image.

Images of one group, such as a patient, stay in one split.
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

STUDY, NO_GROUPS = "study", "none"  # values of config.data.group besides column names


class FileList(NamedTuple):
    """N files, their labels int32 (N,), and their groups (N,), None if unknown."""

    files: list[Path]
    labels: np.ndarray
    groups: np.ndarray | None = None


def with_dicom_groups(name: str, splits: Mapping[str, FileList], group: str = "") -> dict[str, FileList]:
    """Return the splits with groups from DICOM files: the patient, or the study.

    An image without one, such as a PNG, is a group of its own; a log line gives their number. Without DICOM
    files there are no groups.

    Args:
        name: name of the data set.
        splits: splits of the data set, without groups.
        group: "" for the patient (PatientID, or StudyInstanceUID in files without one), "study" for StudyInstanceUID,
            "none" for no groups.

    Raises:
        UserError: all DICOM files have one patient, as de-identified ones may; or "study" without a DICOM file.
    """
    files = [file for file_list in splits.values() for file in file_list.files]
    dicom_rows = [row for row, file in enumerate(files) if is_dicom(file)]
    if group == STUDY and not dicom_rows:
        raise UserError(
            f"{name}: config.data.group={STUDY!r} needs DICOM files, and there are none; name a column of index.csv"
        )
    if group == NO_GROUPS or not dicom_rows:
        return dict(splits)
    groups = [str(file) for file in files]
    read_owner = dicom.read_study if group == STUDY else dicom.read_patient
    owners = {}
    for row in dicom_rows:
        try:
            owners[row] = read_owner(files[row])
        except UserError:  # decoding reports all damaged files
            owners[row] = ""
    _check_owners(name, [owner for owner in owners.values() if owner], len(dicom_rows), group)
    known = {row: owner for row, owner in owners.items() if owner}
    for row, owner in known.items():
        groups[row] = owner
    if known and len(known) < len(files):
        warn_once(
            f"{name}: {len(files) - len(known)} of {len(files)} images have no {group or 'patient'} and are groups of "
            "their own; name a column of index.csv with config.data.group if some belong together"
        )
    ends = list(itertools.accumulate(len(file_list.files) for file_list in splits.values()))
    grouped = np.asarray(groups) if known else None
    return {
        split: file_list._replace(groups=None if grouped is None else grouped[end - len(file_list.files) : end])
        for (split, file_list), end in zip(splits.items(), ends, strict=True)
    }


def _check_owners(name: str, owners: Sequence[str], files: int, group: str) -> None:
    """Refuse files that all have one patient or study: nothing could be held out, and it is rarely true."""
    if len(owners) < 2 or len(set(owners)) > 1:
        return
    what, tag = ("study", "StudyInstanceUID") if group == STUDY else ("patient", "PatientID")
    study = f"config.data.group={STUDY!r} to group by study, " if group != STUDY else ""
    raise UserError(
        f"{name}: {len(owners)} of {files} DICOM files have one {what} ({tag} {owners[0]!r}), as de-identified files "
        f"do; set {study}config.data.group={NO_GROUPS!r} for no groups, or a column of index.csv"
    )


def build_dataset(
    name: str, splits: Mapping[str, FileList], classes: tuple[str, ...], test_origin: str, options: DatasetOptions
) -> Dataset:
    """Build a data set by decoding the files of ``splits`` ("train", and optionally "test" and "validation").

    Without a test split, a fixed fifth is held out: of each class, or of the groups if there are any. A line reports
    an identical image file in two splits.

    Raises:
        UserError: a group is in two splits, a class is too small to hold any out, or a file cannot be read.
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
    """Refuse a group in two splits, which would test on patients of the training split."""
    first_use: dict[str, tuple[str, Path]] = {}
    for name, file_list in splits.items():
        if file_list.groups is None:
            continue
        for group, file in zip(file_list.groups, file_list.files, strict=True):
            where, other = first_use.setdefault(group, (name, file))
            if where != name:
                raise UserError(
                    f"group {str(group)!r} is in two splits: {other} in {where}, {file} in {name}; move all images of "
                    "a group into one split, or change config.data.group (a "
                    f"column of index.csv, {STUDY!r} or {NO_GROUPS!r})"
                )


INDEX_NAME = "index.csv"
FILE_COLUMN, SPLIT_COLUMN = "file", "split"  # columns


class Index(NamedTuple):
    """The rows of an index by file, and their line numbers."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    lines: dict[str, int]

    def location(self, file: str) -> str:
        """Return the position of a file's row as text."""
        return f"{self.path}, line {self.lines[file]}"

    def column(self, name: str, field: str) -> dict[str, str]:
        """Return file -> value of a column; ``field`` is the configuration field that names it.

        Raises:
            UserError: there is no such column, or it has an empty cell.
        """
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r} (config.{field}); {nearest(name, self.columns)}")
        position = self.columns.index(name)
        for file, row in self.rows.items():
            if not row[position]:
                raise UserError(f"{self.location(file)}: no {name} for {file}; fill it in, or remove the line")
        return {file: row[position] for file, row in self.rows.items()}


def read_index(path: Path) -> Index:
    """Read an index, a CSV file with a header that includes ``file``.

    Raises:
        UserError: no such file, not text, no column ``file``, a row of another length, or a file that is listed twice,
            even with another path.
    """
    if not path.is_file():
        raise UserError(f"no index {path}; write one with the columns file, label, split and that of a group")
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        numbered_rows = [(reader.line_num, tuple(map(str.strip, row))) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"cannot read {path} ({error}); it must be a CSV file in UTF-8") from error
    columns = numbered_rows[0][1] if numbered_rows else ()
    if FILE_COLUMN not in columns:
        raise UserError(
            f"{path}: no column {FILE_COLUMN!r} in the first line (columns: {', '.join(columns) or 'none'}); "
            "add a header with it"
        )
    rows: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, row in numbered_rows[1:]:
        if len(row) != len(columns):
            raise UserError(f"{path}, line {number}: {len(row)} values for {len(columns)} columns; correct the line")
        name = _normalize_path(row[columns.index(FILE_COLUMN)])
        if name in rows:
            raise UserError(f"{path}, line {number}: {name} is listed twice; remove one of the lines")
        rows[name], lines[name] = row, number
    if not rows:
        raise UserError(f"{path} lists no files; add a line for each image")
    return Index(path, columns, rows, lines)


def has_column(folder: Path, column: str) -> bool:
    """Return whether ``column`` is a column of ``folder/index.csv``.

    The reserved words of ``with_dicom_groups`` are used only if no column has that name.

    Raises:
        UserError: the index cannot be read.
    """
    return column not in (STUDY, NO_GROUPS) or (
        (folder / INDEX_NAME).is_file() and column in read_index(folder / INDEX_NAME).columns
    )


def known_group(path: Path, options: DatasetOptions) -> str:
    """Return ``options.group``; "" if the index of another test set lacks that column."""
    if not options.as_one_split or options.group in ("", STUDY, NO_GROUPS):
        return options.group
    if path.is_file() and options.group in read_index(path).columns:
        return options.group
    warn_once(f"{path}: no column {options.group!r} for groups; intervals assume independent images")
    return ""


def read_groups(folder: Path, files: Sequence[Path], column: str) -> np.ndarray:
    """Return the value of ``column`` in ``folder/index.csv`` for each file (N,).

    Raises:
        UserError: the index cannot be read, has no such column, or does not list a file.
    """
    index = read_index(folder / INDEX_NAME)
    group_of = _group_column(index, column)
    names = [_normalize_path(str(file.relative_to(folder))) for file in files]
    missing = [name for name in names if name not in group_of]
    if missing:
        raise UserError(
            f"{index.path}: {missing[0]} is missing ({len(missing)} of {len(names)} images); add the files, with paths "
            "relative to the index"
        )
    return np.asarray([group_of[name] for name in names])


def _group_column(index: Index, column: str) -> dict[str, str]:
    """Return the group of each file; spellings that look the same are one group.

    These are Unicode forms of a name and, if all groups are numbers, 7 and 7.0, as spreadsheets write it.
    """
    groups = {file: normalize_unicode(group) for file, group in index.column(column, "data.group").items()}
    if all(map(is_number, groups.values())):
        return {file: re.sub(r"\.0*$", "", group) for file, group in groups.items()}
    return groups


def load_index(path: Path, options: DatasetOptions) -> Dataset:
    """Read the images that an index lists, with paths relative to it.

    The class is in the column ``options.columns.label``, or is the folder of the file if that is empty. An optional
    column ``split`` holds any name in ``SPLIT_NAMES``; a single other split besides train is the test split.
    ``options.group`` is a column of groups, or a word of ``with_dicom_groups``.

    If all classes are numbers, equal ones are one class: 1 and 1.0. Names of classes and files that differ only in
    their Unicode form are equal.

    Args:
        path: path of the index, or of a folder with ``index.csv``.
        options: see ``DatasetOptions``.

    Raises:
        UserError: the index is invalid, a file is missing, or train lacks a class.
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
        raise UserError(f"{index.path}: no training row has the class {classes[unknown[0]]!r}; add some, or remove it")
    return build_dataset(folder.resolve().name, splits, classes, test_origin, options)


@register_dataset("index", fields=(*IMAGE_FILES, "group", "label", "outside", "windows"), layout="index.csv in it")
def load_listed(options: DatasetOptions) -> Dataset:
    """Images that an index.csv lists, with their class, split and group."""
    return load_index(Path(options.folder), options)


def _split_names(index: Index) -> dict[str, list[str]]:
    """Return the files of each split, in the order of the index."""
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
        raise UserError(f"{index.path}: no row has the split train; add some")
    return splits


def _normalize_path(name: str) -> str:
    """Return a path in a form for comparison: ``./a/x.png`` and ``a\\x.png`` are ``a/x.png``."""
    return normalize_unicode(os.path.normpath(name.replace("\\", "/")))


def _find_files(index: Index, outside: bool) -> dict[str, Path]:
    """Return the file of each row.

    Raises:
        UserError: files are missing (with their number), a file is listed twice by different paths, or a file is
            outside the folder of the index without ``outside``.
    """
    files, missing, guard = {}, [], PathGuard(index.path.parent, outside)
    for name in index.rows:
        file = find_file(index.path.parent, name)
        if file is None:
            missing.append(name)
        else:
            files[name] = guard.check(file, index.location(name))
    if missing:
        count = f" ({len(missing)} of {len(index.rows)} files are missing)" if len(missing) > 1 else ""
        where = index.path.parent
        raise UserError(
            f"{index.location(missing[0])}: no file {missing[0]} in {where}{count}; correct the line, or add the file"
        )
    name_of: dict[str, str] = {}
    for name, file in files.items():
        other = name_of.setdefault(os.path.abspath(file), name)
        if other != name:
            raise UserError(f"{index.location(name)}: {name} is listed twice, also as {other}; remove one of the lines")
    return files


def _find_classes(labels: Mapping[str, str], path: Path, from_column: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the sorted class names, and the class of each file.

    Args:
        labels: file -> label.
        path: path of the index.
        from_column: whether labels are from a column, where equal numbers are one class, rather than folder names.
    """
    names = {file: normalize_unicode(label) for file, label in labels.items()}
    if from_column:
        label_map = make_label_map(list(labels.values()), path)
        if label_map.numeric:
            numbers = {file: label_map.index(label) for file, label in labels.items()}
            return label_map.names, {file: label_map.names[k] for file, k in numbers.items() if k is not None}
    return tuple(sorted(set(names.values()), key=lambda name: name.zfill(9) if name.isdigit() else name)), names
