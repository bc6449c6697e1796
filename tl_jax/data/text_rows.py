"""Read rows of tables and JSON files: TSV, CSV and JSON, with the line where each row begins.

Errors are collected, so that one message reports all invalid lines.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax.data.labels import is_number
from tl_jax.utils.errors import UserError

Cells = list[tuple[int, list[str]]]  # line number, cells
Rows = list[tuple[int, dict[str, Any]]]  # line number, column -> value
_DELIMITERS = {"tsv": "\t", "csv": ","}
_BLANKS = re.compile(r"[ \t\n\r]*")  # JSON whitespace
_OTHER_DELIMITERS = (",", ";", "\t")
JSON_ERRORS = (ValueError, RecursionError)  # raised for invalid or too deeply nested JSON
MAX_CELL = 2**31 - 1  # characters, the limit of the csv module
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment")  # usual headers of the label column
LINES_SHOWN = 5  # invalid lines in a message


class LineErrors:
    """Errors of the lines in one file.

    ``add`` records an error, ``raise_if_any`` raises one UserError for all of them.

    Attributes:
        file: path of the file.
        keep: whether to keep the errors in ``by_line`` instead of raising them.
        lines: line number, problem and action of each error.
    """

    def __init__(self, file: Path, keep: bool = False):
        self.file, self.keep = file, keep
        self.lines: list[tuple[int, str, str]] = []

    def by_line(self) -> dict[int, UserError]:
        """Return line number -> error, the first of each line."""
        return {line: UserError(f"{self.file}:{line}: {problem}; {what}") for line, problem, what in self.lines[::-1]}

    def add(self, line: int, problem: str, action: str) -> None:
        """Record the problem of a line, and the action to fix it."""
        self.lines.append((line, problem, action))

    def raise_if_any(self) -> None:
        """Raise a UserError with the first errors and their number, if there are any."""
        if self.keep or not self.lines:
            return
        line, problem, action = self.lines[0]
        more = ""
        if len(self.lines) > 1:
            others = "; ".join(f"line {line}: {problem}" for line, problem, _ in self.lines[1:LINES_SHOWN])
            dots = ", ..." if len(self.lines) > LINES_SHOWN else ""
            more = f" ({len(self.lines):,} invalid lines; also {others}{dots})"
        raise UserError(f"{self.file}:{line}: {problem}; {action}{more}")


def read_table(
    errors: LineErrors, text: str, kind: str, names: Sequence[str], needed: Sequence[str], label: str = ""
) -> Rows:
    """Read the rows of a TSV or CSV file.

    Args:
        errors: collects the errors of the file.
        text: content of the file.
        kind: "tsv" or "csv". Another delimiter (comma, semicolon or tab) is used if only it gives the needed columns.
        names: names of the columns; empty if the first line has them. If all rows have one column fewer, there are no
            labels. If the first line names the text columns nevertheless, it is used as the header.
        needed: names of the text columns.
        label: name of the label column.

    Raises:
        UserError: unbalanced quotes, rows of another length, or two columns of one name; it gives the lines.
    """
    csv.field_size_limit(MAX_CELL)
    lines = split_lines(text)
    delimiter, spaced = _find_delimiter(lines, kind, tuple(names), needed)
    rows = tab_separated(lines, kind) if delimiter == "\t" else _quoted(errors, lines, delimiter, spaced)
    rows = [(line, row) for line, row in rows if any(cell.strip() for cell in row)]
    if rows and (not names or _is_header(rows[0][1], needed)):
        names, rows = [name.strip() for name in rows[0][1]], rows[1:]
        duplicate = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
        if duplicate:
            raise UserError(f"{errors.file}: two columns are named {duplicate!r}; rename one of them")
    elif rows and {len(row) for _, row in rows} == {len(names) - 1}:
        names = [name for name in names if name != label]
    elif label in names and _is_other_header([row for _, row in rows], list(names).index(label)):
        missing = next(name for name in needed if name not in rows[0][1])
        raise UserError(
            f"{errors.file}: the header ({', '.join(rows[0][1])}) has no column {missing!r}; set config.data.text and "
            "config.data.label to names in it"
        )
    else:
        _check_width(errors, rows, names)
    return _named_rows(errors, rows, names)


def _check_width(errors: LineErrors, rows: Cells, names: Sequence[str]) -> None:
    """Refuse names of columns, for a file without a header, that are not as many as each line has."""
    widths = {len(row) for _, row in rows}
    if len(rows) > 1 and len(widths) == 1 and (width := widths.pop()) != len(names):
        raise UserError(
            f"{errors.file}: {width} columns in each line, but config.data.columns has {len(names)} "
            f"({', '.join(names)}); set it to their names, or to () if the first line has them"
        )


def _is_header(cells: Sequence[str], needed: Sequence[str]) -> bool:
    names = [cell.strip() for cell in cells]
    return all(name in names for name in needed) and not any(map(is_number, names))


def _is_other_header(rows: Sequence[Sequence[str]], label: int) -> bool:
    """Return whether the first row is a header, by its label cell, which no other row has."""
    cells = [row[label].strip().lower() for row in rows if len(row) > label]
    return len(cells) > 1 and cells[0] in LABEL_NAMES and cells[0] not in cells[1:]


def _named_rows(errors: LineErrors, rows: Cells, names: Sequence[str]) -> Rows:
    named_rows = []
    for line, row in rows:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):  # perhaps an unquoted comma
            errors.add(line, f"{len(row)} columns, not {len(names)} ({', '.join(names)})", "correct the line")
        named_rows.append((line, dict(zip(names, row, strict=False))))
    errors.raise_if_any()
    return named_rows


def split_lines(text: str) -> list[str]:
    """Split a text into lines at line feeds, and at carriage returns before or instead of them, only."""
    text = text.replace("\r\n", "\n")
    if "\n" not in text.rstrip("\r"):
        text = text.replace("\r", "\n")  # classic Mac OS
    return text.split("\n")  # U+2028 and others are text


def _find_delimiter(lines: Sequence[str], kind: str, names: tuple[str, ...], needed: Sequence[str]) -> tuple[str, bool]:
    """Return the delimiter, and whether a blank follows it in the first line."""
    default = _DELIMITERS[kind]
    head = next((line for line in lines if line.strip()), "")
    for delimiter in dict.fromkeys((default, *_OTHER_DELIMITERS)):
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
    return default, False


def _quoted(errors: LineErrors, lines: Sequence[str], delimiter: str, spaced: bool = False) -> Cells:
    feed = (line + "\n" for line in lines)
    reader, rows, begin = csv.reader(feed, delimiter=delimiter, skipinitialspace=spaced, strict=True), [], 1
    while True:  # quoted text may span lines
        try:
            row = next(reader, None)
        except csv.Error as error:
            if not errors.keep:
                raise UserError(f"{errors.file}:{reader.line_num}: {error}; correct the quotes") from None
            errors.add(begin, str(error), "correct the quotes")
            row = [str(error)]
        if row is None:
            return rows
        rows.append((begin, row))
        begin = reader.line_num + 1


def tab_separated(lines: Sequence[str], kind: str) -> Cells:
    """Return the cells of lines separated by tabs.

    In a TSV file, quotes are text, unless the whole file is quoted as by pandas and Excel: writing the cells with
    quotes reproduces the file. In a CSV file, balanced quotes are quotes.
    """
    if any('"' in line for line in lines):
        try:
            rows = _quoted(LineErrors(Path()), lines, "\t")
        except UserError:
            rows = []
        if rows and (kind == "csv" or _is_quoted(lines, [row for _, row in rows])):
            return rows
    return [(i, line.split("\t")) for i, line in enumerate(lines, start=1)]


def _is_quoted(lines: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    full_text = "\n".join(lines).rstrip("\n")
    minimal = io.StringIO()
    csv.writer(minimal, delimiter="\t", lineterminator="\n").writerows(rows)
    if minimal.getvalue().rstrip("\n") == full_text:
        return True
    all_quoted = ("\t".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows)
    text_quoted = (
        "\t".join(c if is_number(c) or not c else f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row) for row in rows
    )
    return any(
        "\n".join(line for line in candidate if line).rstrip("\n") == full_text
        for candidate in (all_quoted, text_quoted)
    )


def read_objects(errors: LineErrors, text: str, needed: Sequence[str]) -> Rows:
    """Read the objects of a JSON file: one per line, or one array of them, alone or as the only list of an object.

    Args:
        errors: collects the errors of the file.
        text: content of the file.
        needed: names of the text columns; an object with one of them is a row, whatever else it has.

    Raises:
        UserError: other content; it gives the lines.
    """
    array = _read_array(text, needed)
    if array is not None:
        return list(array)
    rows = []
    for i, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except JSON_ERRORS as error:
            if not rows and i == 1 and _is_one_value(text):
                raise UserError(
                    f"{errors.file}: one JSON value without a list of objects; write one object per line "
                    "(pandas: orient='records', lines=True)"
                ) from None
            errors.add(i, f"not JSON ({error})", "write one object per line")
            value = {}
        if not isinstance(value, dict):
            errors.add(i, f"{type(value).__name__}, not an object", "write one object per line")
            value = {}
        rows.append((i, value))
    errors.raise_if_any()
    return rows


def _is_one_value(text: str) -> bool:
    try:
        json.loads(text)
    except JSON_ERRORS:
        return False
    return True


def _read_array(text: str, needed: Sequence[str]) -> Iterable[tuple[int, dict[str, Any]]] | None:
    """Return the objects of a text that is one array of them, with their lines; else None."""
    try:
        content = json.loads(text)
    except JSON_ERRORS:
        return None
    if isinstance(content, Mapping):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) != 1 or any(name in content for name in needed):
            return None
        content = lists[0]
    if not isinstance(content, list) or not _are_objects(content):
        return None
    return list(_located(text, content))


def _are_objects(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _located(text: str, values: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of an array with their line numbers."""
    decoder, position = json.JSONDecoder(), _array_begin(text)
    line = text.count("\n", 0, position) + 1
    for value in values:
        begin = text.index("{", position)
        line, position = line + text.count("\n", position, begin), begin
        yield line, value
        end = decoder.raw_decode(text, position)[1]
        line, position = line + text.count("\n", position, end), end


def _array_begin(text: str) -> int:
    """Return the start of the array in valid JSON that is an array, or an object with one."""
    decoder, position = json.JSONDecoder(), _past_blanks(text, 0)
    array_start = position
    while text[position] in "{,":  # a name follows
        position = decoder.raw_decode(text, _past_blanks(text, position + 1))[1]
        begin = _past_blanks(text, text.index(":", position) + 1)
        array_start = begin if text[begin] == "[" else array_start  # the last of duplicate names counts
        position = _past_blanks(text, decoder.raw_decode(text, begin)[1])
    return array_start


def _past_blanks(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    assert match
    return match.end()
