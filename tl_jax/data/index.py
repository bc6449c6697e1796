"""Pictures listed in a file ``index.csv``: which class each has, which part it is for, and what belongs together."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_jax.data.labels import is_number, make_labels
from tl_jax.data.listed import NONE, STUDY, Part, Reading, assemble, with_groups
from tl_jax.data.pictures import Source
from tl_jax.data.split_names import ALL, split_of, with_test
from tl_jax.data.text_files import read_text
from tl_jax.data.walker import Inside, find_file, one_form
from tl_jax.errors import UserError, nearest

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

    The words that ``listed.with_groups`` knows are such only if there is no column of that name.

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
    found = {file: one_form(group) for file, group in index.column(column, "data.group").items()}
    if all(map(is_number, found.values())):
        return {file: re.sub(r"\.0*$", "", group) for file, group in found.items()}
    return found


def source(path: Path, how: Reading) -> Source:
    """Read the pictures that an index lists, with paths as seen from its folder.

    The column ``how.label`` names the class, or if that is empty the file's folder does. The column ``split``, if there
    is one, names the split, by any name in ``split_names``; beside train, a single other split is the test split. The
    column ``how.group``, if it is not empty, says what belongs together, or it is a word of ``listed.with_groups``.

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
    parts, tested = with_test(parts), "test" if "test" in parts else "validation"
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
        split = split_of(said)
        if split is None:
            raise UserError(f"{index.at(name)}: split {said!r}; write train, validation or test (or one of {ALL})")
        parts.setdefault(split, []).append(name)
    if "train" not in parts:
        raise UserError(f"{index.path} has no row with the split train; add some")
    return parts


def _normal(name: str) -> str:
    """Return a path in the one form in which paths are compared: ``./a/x.png`` and ``a\\x.png`` are ``a/x.png``."""
    return one_form(os.path.normpath(name.replace("\\", "/")))


def _files(index: Index, outside: bool) -> dict[str, Path]:
    """Return the file of each row.

    Raises:
        UserError: files are not there; the message says how many. Or a file is listed twice, once with its whole path,
            or is outside the folder of the index and not allowed there.
    """
    files, absent, inside = {}, [], Inside(index.path.parent, outside)
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
    names = {file: one_form(label) for file, label in given.items()}
    if spelled:
        made = make_labels(list(given.values()), path)
        if made.numeric:
            numbers = {file: made.index(label) for file, label in given.items()}
            return made.names, {file: made.names[k] for file, k in numbers.items() if k is not None}
    return tuple(sorted(set(names.values()), key=lambda name: name.zfill(9) if name.isdigit() else name)), names
