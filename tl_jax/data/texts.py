"""Texts from files: TSV, CSV, JSON lines with a text or two and a label, CoNLL columns of tagged words, plain lines."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data.pictures import Source, Split, held_out
from tl_jax.errors import UserError

ENDINGS = {
    "tsv": ("tsv", "txt"),
    "csv": ("csv",),
    "jsonl": ("jsonl", "json"),
    "conll": ("conll", "txt", ""),
    "lines": ("txt",),
}
PARTS = {"train": ("train",), "test": ("test",), "validation": ("dev", "valid", "validation", "val")}
OUTSIDE = "O"  # tag of a word that belongs to nothing


class Columns(NamedTuple):
    """Where in a line things stand.

    Attributes:
        names: of the columns, for files that begin without them; empty where the first line has them.
        text: names of the columns with the text, one or two.
        label: name of the column with the label.
    """

    names: tuple[str, ...] = ()
    text: tuple[str, ...] = ("text",)
    label: str = "label"


FIRST_LINE = Columns()


class Example(NamedTuple):
    """A text (or two, or words), its label (or a tag for each word), and the line where it begins."""

    text: Any
    label: Any
    line: int


def read(folder: Path, kind: str, columns: Columns = FIRST_LINE) -> Source:
    """Read ``folder/{train,dev,test}.ENDING``, or a single file, of which a fifth is then held out for testing.

    Args:
        folder: with the files, or the file.
        kind: "tsv" (nothing is quoted), "csv" (with quotes), "jsonl" (an object a line), "conll" (a word a line, its
            tag the last of the columns, an empty line behind each sentence) or "lines" (a text a line, no labels).
        columns: of the first three.

    Returns:
        A source whose ``images`` are texts: an object array (N,) of str, of pairs of str, or of lists of words. Its
        labels are int32 (N,), or for "conll" an object array (N,) of int32 arrays, a tag for each word. Classes are
        in the order of their names, numbers in that of their values, the tag "O" first.

    Raises:
        UserError: names the file and the line: absent, empty, not UTF-8, too few columns, no such column, or a label
            that the training part does not have.
    """
    folder = Path(folder).expanduser()
    files = _files(folder, kind)
    parts = {part: _examples(file, kind, columns) for part, file in files.items()}
    classes = _classes(parts["train"], kind)
    if len(classes) < 2 and kind != "lines":
        raise UserError(f"{files['train']} has a single label, {classes[0]!r}; check which column holds the labels")
    if kind == "conll":
        _check_tags(files["train"], parts["train"], classes)
    numbers = {name: i for i, name in enumerate(classes)}
    splits = {part: _split(examples, numbers, kind, files[part]) for part, examples in parts.items()}
    name = folder.resolve().stem
    if "test" in splits:
        return Source(name, splits["train"], splits["test"], classes, files["test"].stem, splits.get("validation"))
    whole, classless = splits["train"], kind in ("conll", "lines")
    labels = np.zeros(len(whole.labels), np.int32) if classless else whole.labels
    train, test = held_out(name, labels, ("texts",) if classless else classes, "fifth")
    cut = [Split(whole.images[rows], whole.labels[rows]) for rows in (train, test)]
    return Source(name, *cut, classes, "a fifth held out", splits.get("validation"))


def _files(folder: Path, kind: str) -> dict[str, Path]:
    if folder.is_file():
        return {"train": folder}
    if not folder.is_dir():
        raise UserError(f"no folder or file {folder}; check --config.data.dir")
    found = {}
    for part, stems in PARTS.items():
        names = [f"{stem}.{ending}".rstrip(".") for stem in stems for ending in ENDINGS[kind]]
        there = [folder / name for name in names if (folder / name).is_file()]
        if there:
            found[part] = there[0]
    if "train" not in found:
        raise UserError(f"{folder} has no train.{ENDINGS[kind][0]}; put it there, or pass a single file")
    return found


def _examples(file: Path, kind: str, columns: Columns) -> list[Example]:
    lines = _lines(file)
    if kind == "conll":
        found = list(_sentences(file, lines))
    elif kind == "lines":
        found = [Example(line.strip(), "", i) for i, line in lines if line.strip()]
    elif kind == "jsonl":
        found = [_example(file, i, _object(file, i, line), columns) for i, line in lines if line.strip()]
    else:
        found = list(_rows(file, lines, kind, columns))
    if not found:
        raise UserError(f"{file} is empty; fill it, or take it away")
    return found


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a UTF-8 file without their ends."""
    found = []
    for i, line in enumerate(file.read_bytes().split(b"\n"), start=1):  # other breaks, such as U+2028, are text
        try:
            found.append((i, line.decode("utf-8-sig" if i == 1 else "utf-8").rstrip("\r")))
        except UnicodeDecodeError as e:
            raise UserError(f"{file}:{i}: byte {e.start + 1} is not UTF-8; save the file as UTF-8") from None
    return found


def _rows(file: Path, lines: Sequence[tuple[int, str]], kind: str, columns: Columns) -> Iterator[Example]:
    if kind == "tsv":
        rows = [(i, line.split("\t")) for i, line in lines if line.strip()]
    else:
        reader, rows = csv.reader((line + "\n" for _, line in lines), strict=True), []
        try:
            for row in reader:  # quoted text may go over several lines
                rows.append((reader.line_num, row))
        except csv.Error as e:
            raise UserError(f"{file}:{reader.line_num}: {e}; mend its quotes") from None
        rows = [(i, row) for i, row in rows if any(cell.strip() for cell in row)]
    names = list(columns.names)
    if not names and rows:
        names, rows = rows[0][1], rows[1:]
    for i, row in rows:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):  # an unquoted comma, say
            raise UserError(f"{file}:{i}: {len(row)} columns, not {len(names)} ({', '.join(names)}); mend the line")
        yield _example(file, i, dict(zip(names, row, strict=False)), columns)


def _object(file: Path, line: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as e:
        raise UserError(f"{file}:{line}: not JSON ({e}); write one object a line") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}:{line}: {type(found).__name__}, not an object; write one object a line")
    return found


def _example(file: Path, line: int, row: dict[str, Any], columns: Columns) -> Example:
    for name in (*columns.text, columns.label):
        if name not in row:
            raise UserError(
                f"{file}:{line}: no column {name!r} (there are {', '.join(map(str, row)) or 'none'}); "
                "set config.data.text, data.label or, for files that begin without names, data.columns"
            )
    texts, label = tuple(str(row[name]) for name in columns.text), str(row[columns.label]).strip()
    if not label:
        raise UserError(f"{file}:{line}: no label in the column {columns.label!r}; write it, or take the line away")
    return Example(texts[0] if len(texts) == 1 else texts, label, line)


def _sentences(file: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Example]:
    words: list[str] = []
    tags: list[str] = []
    begin = 1
    for i, line in [*lines, (len(lines) + 1, "")]:
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise UserError(f"{file}:{i}: one column, {cells[0]!r}; a line is a word and, at its end, a tag")
            begin = begin if words else i
            words.append(cells[0])
            tags.append(cells[-1])
        elif words:
            yield Example(words, tuple(tags), begin)
            words, tags = [], []


def _classes(train: Sequence[Example], kind: str) -> tuple[str, ...]:
    seen = {tag for e in train for tag in e.label} if kind == "conll" else {e.label for e in train}
    numeric = all(name.lstrip("-").isdigit() for name in seen)
    return tuple(sorted(seen, key=lambda name: (name != OUTSIDE, int(name) if numeric else 0, name)))


def _check_tags(file: Path, train: Sequence[Example], classes: Sequence[str]) -> None:
    """Refuse a tag that is none of IOB's among such that are: entities would silently be counted as words."""
    usual = [tag for tag in classes if re.fullmatch("[A-Z]-.+", tag)]
    if not usual:
        return
    for example in train:
        for j, tag in enumerate(example.label):
            if tag != OUTSIDE and tag not in usual:
                raise UserError(f"{file}:{example.line + j}: tag {tag!r} among tags such as {usual[0]}; mend it")


def _split(examples: Sequence[Example], numbers: dict[str, int], kind: str, file: Path) -> Split:
    texts = np.empty(len(examples), object)
    labels = np.empty(len(examples), object if kind == "conll" else np.int32)
    for i, example in enumerate(examples):
        texts[i] = example.text
        for j, name in enumerate(example.label if kind == "conll" else (example.label,)):
            if name not in numbers:
                raise UserError(
                    f"{file}:{example.line + j}: label {name!r} is never seen in training "
                    f"(there: {', '.join(list(numbers)[:8])}); mend it, or add it to the training part"
                )
        if kind == "conll":
            labels[i] = np.asarray([numbers[name] for name in example.label], np.int32)
        else:
            labels[i] = numbers[example.label]
    return Split(texts, labels)
