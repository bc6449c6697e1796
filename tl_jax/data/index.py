"""Pictures listed in a file ``index.csv``: which class each has, which part it is for, and what belongs together."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_jax.data.listed import Part, Reading, assemble, patients
from tl_jax.data.pictures import Source
from tl_jax.errors import UserError, nearest

NAME = "index.csv"
FILE, SPLIT = "file", "split"  # columns
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
}  # fmt: skip


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
        UserError: no such file, not text, no column ``file``, a row of another length, or a file listed twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            found = [(reader.line_num, tuple(map(str.strip, row))) for row in reader if row]
    except FileNotFoundError:
        raise UserError(f"no index {path}; write one with the columns file, label, split and a group") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} ({error}); it must be a CSV file in UTF-8") from error
    columns = found[0][1] if found else ()
    if FILE not in columns:
        raise UserError(f"{path} has no column {FILE!r} in its first line (it has {', '.join(columns) or 'nothing'})")
    rows: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, row in found[1:]:
        if len(row) != len(columns):
            raise UserError(f"{path}, line {number}: {len(row)} values for {len(columns)} columns; mend the line")
        name = row[columns.index(FILE)]
        if name in rows:
            raise UserError(f"{path}, line {number}: {name} is listed a second time; remove one of the lines")
        rows[name], lines[name] = row, number
    if not rows:
        raise UserError(f"{path} lists no files; add a line for each picture")
    return Index(path, columns, rows, lines)


def groups(folder: Path, files: Sequence[Path], column: str) -> np.ndarray:
    """Return what ``folder/index.csv`` says in ``column`` of each file (N,).

    Raises:
        UserError: the index cannot be read, has no such column, or does not list a file.
    """
    index = read(folder / NAME)
    found = index.column(column, "data.group")
    names = [str(file.relative_to(folder)) for file in files]
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{index.path} does not list {missing[0]} ({len(missing)} of {len(names)} pictures are not there); "
            "add them, with paths as seen from its folder"
        )
    return np.asarray([found[name] for name in names])


def source(path: Path, how: Reading) -> Source:
    """Read the pictures that an index lists, with paths as seen from its folder.

    The column ``how.label`` names the class, or where that is empty the file's folder does; ``split`` (train,
    validation or test), where it is there, the part; ``how.group``, where it is not empty, what belongs together.

    Args:
        path: of the index, or of the folder with ``index.csv``.
        how: see ``Reading``.

    Raises:
        UserError: whatever is wrong with the index, a file that is not there, or a class that train does not have.
    """
    path = Path(path).expanduser()
    index = read(path / NAME if path.is_dir() else path)
    folder = index.path.parent
    files = {name: folder / name for name in index.rows}
    for name, file in files.items():
        if not file.is_file():
            raise UserError(f"{index.at(name)}: no file {name} in {folder}; mend the line or add the file")
    named = index.column(how.label, "data.label") if how.label else {n: f.parent.name for n, f in files.items()}
    group = index.column(how.group, "data.group") if how.group else None
    classes = tuple(sorted(set(named.values()), key=lambda name: name.zfill(9) if name.isdigit() else name))
    if len(classes) < 2:
        raise UserError(f"{index.path} has fewer than two classes ({', '.join(classes)}); check config.data.label")
    parts = {}
    for part, names in _parts(index).items():
        own = [files[name] for name in names]
        labels = np.asarray([classes.index(named[name]) for name in names], np.int32)
        parts[part] = Part(own, labels, np.asarray([group[n] for n in names]) if group else patients(own))
    unknown = sorted({int(k) for part in parts.values() for k in part.labels} - set(parts["train"].labels.tolist()))
    if unknown:
        raise UserError(f"{index.path} has the class {classes[unknown[0]]!r} in no training row; add some, or leave it")
    return assemble(folder.resolve().name, parts, classes, "test", how)


def _parts(index: Index) -> dict[str, list[str]]:
    """Return the files of each part, in the order of the index."""
    if SPLIT not in index.columns:
        return {"train": list(index.rows)}
    parts: dict[str, list[str]] = {}
    for name, said in index.column(SPLIT, "data.dir").items():
        if said.lower() not in SPLITS:
            raise UserError(f"{index.at(name)}: split {said!r}; write train, validation or test")
        parts.setdefault(SPLITS[said.lower()], []).append(name)
    if "train" not in parts:
        raise UserError(f"{index.path} has no row with the split train; add some")
    return parts
