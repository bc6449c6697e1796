"""Rows of tables and of JSON files: TSV, CSV and JSON, with the line where each row begins."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax.data.damage import LineErrors
from tl_jax.data.labels import is_number
from tl_jax.utils.errors import UserError

Cells = list[tuple[int, list[str]]]  # line, its cells
Rows = list[tuple[int, dict[str, Any]]]  # line, column -> value
_DELIMITERS = {"tsv": "\t", "csv": ","}
_BLANKS = re.compile(r"[ \t\n\r]*")  # of JSON
_OTHERS = (",", ";", "\t")
DAMAGED = (ValueError, RecursionError)  # what JSON raises that is none, or is nested too deeply
MAX_CELL = 2**31 - 1  # letters of a cell that the csv module takes


def read_table(file: Path, text: str, kind: str, names: Sequence[str], needed: Sequence[str], label: str = "") -> Rows:
    """Read the rows of a TSV or CSV file.

    Args:
        file: for messages.
        text: of the file.
        kind: "tsv" or "csv". Another delimiter (comma, semicolon or tab) is taken if the needed columns are found with
            it and not with the usual one.
        names: of the columns; empty if the first line has them. If all rows have one column fewer, there are no labels.
            If the first line names the text's columns all the same, as a file to predict may, it counts.
        needed: names of the columns with the text.
        label: name of the column with the label.

    Raises:
        UserError: damaged quotes, rows of another length, two columns of one name; the message names the lines.
    """
    csv.field_size_limit(MAX_CELL)
    lines = split_lines(text)
    delimiter, spaced = _layout(lines, kind, tuple(names), needed)
    rows = tab_separated(lines, kind) if delimiter == "\t" else _quoted(file, lines, delimiter, spaced)
    rows = [(line, row) for line, row in rows if any(cell.strip() for cell in row)]
    if rows and (not names or _is_header(rows[0][1], needed)):
        names, rows = [name.strip() for name in rows[0][1]], rows[1:]
        twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
        if twice:
            raise UserError(f"{file}: two columns are called {twice!r}; rename one of them")
    elif rows and {len(row) for _, row in rows} == {len(names) - 1}:
        names = [name for name in names if name != label]
    return _named(file, rows, names)


def _is_header(cells: Sequence[str], needed: Sequence[str]) -> bool:
    found = [cell.strip() for cell in cells]
    return all(name in found for name in needed) and not any(map(is_number, found))


def _named(file: Path, rows: Cells, names: Sequence[str]) -> Rows:
    found, damage = [], LineErrors(file)
    for line, row in rows:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):  # an unquoted comma, say
            damage.add(line, f"{len(row)} columns, not {len(names)} ({', '.join(names)})", "mend the line")
        found.append((line, dict(zip(names, row, strict=False))))
    damage.raise_if_any()
    return found


def split_lines(text: str) -> list[str]:
    """Return the lines of a text. Only line feeds, and carriage returns before or instead of them, end a line."""
    text = text.replace("\r\n", "\n")
    if "\n" not in text.rstrip("\r"):
        text = text.replace("\r", "\n")  # as the first Macintoshes wrote it
    return text.split("\n")  # others, such as U+2028, are text


def _layout(lines: Sequence[str], kind: str, names: tuple[str, ...], needed: Sequence[str]) -> tuple[str, bool]:
    """Return the delimiter, and whether blanks follow it in the first line."""
    usual = _DELIMITERS[kind]
    head = next((line for line in lines if line.strip()), "")
    for delimiter in dict.fromkeys((usual, *_OTHERS)):
        try:
            cells = next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            continue
        stripped = [cell.strip() for cell in cells]
        spaced = not names and delimiter != "\t" and f"{delimiter} " in head
        if not names and all(name in stripped for name in needed):
            return delimiter, spaced
        if names and kind == "csv" and len(names) > 1 and len(cells) == len(names):
            return delimiter, False
    return usual, False


def _quoted(file: Path, lines: Sequence[str], delimiter: str, spaced: bool = False) -> Cells:
    feed = (line + "\n" for line in lines)
    reader, rows, begin = csv.reader(feed, delimiter=delimiter, skipinitialspace=spaced, strict=True), [], 1
    try:
        for row in reader:  # quoted text may go over several lines
            rows.append((begin, row))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: {error}; mend its quotes") from None
    return rows


def tab_separated(lines: Sequence[str], kind: str) -> Cells:
    """Return the cells of lines with tabs between them.

    In a TSV file quotes are text, unless all of the file is quoted as pandas and Excel do it: writing what was read
    with quotes gives the same file again. In a CSV file they are quotes, as far as they are complete.
    """
    if any('"' in line for line in lines):
        try:
            rows = _quoted(Path(), lines, "\t")
        except UserError:
            rows = []
        if rows and (kind == "csv" or _is_quoted(lines, [row for _, row in rows])):
            return rows
    return [(i, line.split("\t")) for i, line in enumerate(lines, start=1)]


def _is_quoted(lines: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    whole = "\n".join(lines).rstrip("\n")
    minimal = io.StringIO()
    csv.writer(minimal, delimiter="\t", lineterminator="\n").writerows(rows)
    if minimal.getvalue().rstrip("\n") == whole:
        return True
    always = ("\t".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows)
    texts = (
        "\t".join(c if is_number(c) or not c else f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row) for row in rows
    )
    return any("\n".join(line for line in each if line).rstrip("\n") == whole for each in (always, texts))


def read_objects(file: Path, text: str, needed: Sequence[str]) -> Rows:
    """Read the objects of a JSON file: one a line, or one array of them, by itself or as the only list of an object.

    Args:
        file: for messages.
        text: of the file.
        needed: names of the columns with the text; an object that has one of them is a row, whatever else it holds.

    Raises:
        UserError: something else; the message names the lines.
    """
    array = _array(text, needed)
    if array is not None:
        return list(array)
    found, damage = [], LineErrors(file)
    for i, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except DAMAGED as error:
            if not found and i == 1 and _is_one_value(text):
                raise UserError(
                    f"{file}: one JSON value, but no list of objects; write one object a line "
                    "(pandas: orient='records', lines=True)"
                ) from None
            damage.add(i, f"not JSON ({error})", "write one object a line")
            continue
        if not isinstance(value, dict):
            damage.add(i, f"{type(value).__name__}, not an object", "write one object a line")
            continue
        found.append((i, value))
    damage.raise_if_any()
    return found


def _is_one_value(text: str) -> bool:
    try:
        json.loads(text)
    except DAMAGED:
        return False
    return True


def _array(text: str, needed: Sequence[str]) -> Iterable[tuple[int, dict[str, Any]]] | None:
    """Return the objects of a text that is one array of them with their lines, else None."""
    try:
        whole = json.loads(text)
    except DAMAGED:
        return None
    if isinstance(whole, Mapping):
        lists = [value for value in whole.values() if isinstance(value, list)]
        if len(lists) != 1 or any(name in whole for name in needed):
            return None
        whole = lists[0]
    if not isinstance(whole, list) or not _are_objects(whole):
        return None
    return list(_located(text, whole))


def _are_objects(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _located(text: str, values: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of an array with the lines where they begin."""
    decoder, at = json.JSONDecoder(), _array_begin(text)
    line = text.count("\n", 0, at) + 1
    for value in values:
        begin = text.index("{", at)
        line, at = line + text.count("\n", at, begin), begin
        yield line, value
        end = decoder.raw_decode(text, at)[1]
        line, at = line + text.count("\n", at, end), end


def _array_begin(text: str) -> int:
    """Return where the array begins in valid JSON that is one, or an object with one value that is."""
    decoder, at = json.JSONDecoder(), _past_blanks(text, 0)
    found = at
    while text[at] in "{,":  # before a name
        at = decoder.raw_decode(text, _past_blanks(text, at + 1))[1]
        begin = _past_blanks(text, text.index(":", at) + 1)
        found = begin if text[begin] == "[" else found  # of a name that comes twice the last counts
        at = _past_blanks(text, decoder.raw_decode(text, begin)[1])
    return found


def _past_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found
    return found.end()
