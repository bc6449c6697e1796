"""Rows of tables and of JSON files: TSV, CSV and JSON, with the line where each row begins.

Messages about damaged lines are gathered, so that one run names all of them.
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

Cells = list[tuple[int, list[str]]]  # line, its cells
Rows = list[tuple[int, dict[str, Any]]]  # line, column -> value
_DELIMITERS = {"tsv": "\t", "csv": ","}
_BLANKS = re.compile(r"[ \t\n\r]*")  # of JSON
_OTHER_DELIMITERS = (",", ";", "\t")
JSON_ERRORS = (ValueError, RecursionError)  # what JSON raises that is none, or is nested too deeply
MAX_CELL = 2**31 - 1  # letters of a cell that the csv module takes
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment")  # as headers call the column of labels
LINES_SHOWN = 5  # damaged lines in a message


class LineErrors:
    """What is wrong with the lines of one file.

    ``add`` notes a line, ``raise_if_any`` raises one UserError for all of them, if there are any.

    Attributes:
        file: that they are in.
        keep: whether damaged lines are wanted beside the others, so that nothing is raised; ``by_line`` has them.
        lines: of each damaged one the number, what is wrong, and what to do about it.
    """

    def __init__(self, file: Path, keep: bool = False):
        self.file, self.keep = file, keep
        self.lines: list[tuple[int, str, str]] = []

    def by_line(self) -> dict[int, UserError]:
        """Return the error of each damaged line; what was noted first counts."""
        return {line: UserError(f"{self.file}:{line}: {problem}; {what}") for line, problem, what in self.lines[::-1]}

    def add(self, line: int, problem: str, action: str) -> None:
        """Note what is wrong with a line, and what to do about it."""
        self.lines.append((line, problem, action))

    def raise_if_any(self) -> None:
        """Raise a UserError that names the first lines and the number of all, if there are any."""
        if self.keep or not self.lines:
            return
        line, problem, action = self.lines[0]
        more = ""
        if len(self.lines) > 1:
            others = "; ".join(f"line {line}: {problem}" for line, problem, _ in self.lines[1:LINES_SHOWN])
            dots = ", ..." if len(self.lines) > LINES_SHOWN else ""
            more = f" ({len(self.lines):,} damaged lines in all; also {others}{dots})"
        raise UserError(f"{self.file}:{line}: {problem}; {action}{more}")


def read_table(
    errors: LineErrors, text: str, kind: str, names: Sequence[str], needed: Sequence[str], label: str = ""
) -> Rows:
    """Read the rows of a TSV or CSV file.

    Args:
        errors: of the file; it says whether damaged lines are kept.
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
    delimiter, spaced = _find_delimiter(lines, kind, tuple(names), needed)
    rows = tab_separated(lines, kind) if delimiter == "\t" else _quoted(errors, lines, delimiter, spaced)
    rows = [(line, row) for line, row in rows if any(cell.strip() for cell in row)]
    if rows and (not names or _is_header(rows[0][1], needed)):
        names, rows = [name.strip() for name in rows[0][1]], rows[1:]
        duplicate = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
        if duplicate:
            raise UserError(f"{errors.file}: two columns are called {duplicate!r}; rename one of them")
    elif rows and {len(row) for _, row in rows} == {len(names) - 1}:
        names = [name for name in names if name != label]
    elif label in names and _is_other_header([row for _, row in rows], list(names).index(label)):
        missing = next(name for name in needed if name not in rows[0][1])
        raise UserError(
            f"{errors.file}: its first line ({', '.join(rows[0][1])}) is a header without the column {missing!r}; set "
            "config.data.text and config.data.label to names that it has"
        )
    return _named_rows(errors, rows, names)


def _is_header(cells: Sequence[str], needed: Sequence[str]) -> bool:
    names = [cell.strip() for cell in cells]
    return all(name in names for name in needed) and not any(map(is_number, names))


def _is_other_header(rows: Sequence[Sequence[str]], label: int) -> bool:
    """Whether the first of the rows names columns, by its cell of the label, which no other row has."""
    cells = [row[label].strip().lower() for row in rows if len(row) > label]
    return len(cells) > 1 and cells[0] in LABEL_NAMES and cells[0] not in cells[1:]


def _named_rows(errors: LineErrors, rows: Cells, names: Sequence[str]) -> Rows:
    named_rows = []
    for line, row in rows:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):  # an unquoted comma, say
            errors.add(line, f"{len(row)} columns, not {len(names)} ({', '.join(names)})", "mend the line")
        named_rows.append((line, dict(zip(names, row, strict=False))))
    errors.raise_if_any()
    return named_rows


def split_lines(text: str) -> list[str]:
    """Return the lines of a text. Only line feeds, and carriage returns before or instead of them, end a line."""
    text = text.replace("\r\n", "\n")
    if "\n" not in text.rstrip("\r"):
        text = text.replace("\r", "\n")  # as the first Macintoshes wrote it
    return text.split("\n")  # others, such as U+2028, are text


def _find_delimiter(lines: Sequence[str], kind: str, names: tuple[str, ...], needed: Sequence[str]) -> tuple[str, bool]:
    """Return the delimiter, and whether blanks follow it in the first line."""
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
    while True:  # quoted text may go over several lines
        try:
            row = next(reader, None)
        except csv.Error as error:
            if not errors.keep:
                raise UserError(f"{errors.file}:{reader.line_num}: {error}; mend its quotes") from None
            errors.add(begin, str(error), "mend its quotes")
            row = [str(error)]
        if row is None:
            return rows
        rows.append((begin, row))
        begin = reader.line_num + 1


def tab_separated(lines: Sequence[str], kind: str) -> Cells:
    """Return the cells of lines with tabs between them.

    In a TSV file quotes are text, unless all of the file is quoted as pandas and Excel do it: writing what was read
    with quotes gives the same file again. In a CSV file they are quotes, as far as they are complete.
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
    """Read the objects of a JSON file: one a line, or one array of them, by itself or as the only list of an object.

    Args:
        errors: of the file; it says whether damaged lines are kept.
        text: of the file.
        needed: names of the columns with the text; an object that has one of them is a row, whatever else it holds.

    Raises:
        UserError: something else; the message names the lines.
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
                    f"{errors.file}: one JSON value, but no list of objects; write one object a line "
                    "(pandas: orient='records', lines=True)"
                ) from None
            errors.add(i, f"not JSON ({error})", "write one object a line")
            value = {}
        if not isinstance(value, dict):
            errors.add(i, f"{type(value).__name__}, not an object", "write one object a line")
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
    """Return the objects of a text that is one array of them with their lines, else None."""
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
    """Yield the objects of an array with the lines where they begin."""
    decoder, position = json.JSONDecoder(), _array_begin(text)
    line = text.count("\n", 0, position) + 1
    for value in values:
        begin = text.index("{", position)
        line, position = line + text.count("\n", position, begin), begin
        yield line, value
        end = decoder.raw_decode(text, position)[1]
        line, position = line + text.count("\n", position, end), end


def _array_begin(text: str) -> int:
    """Return where the array begins in valid JSON that is one, or an object with one value that is."""
    decoder, position = json.JSONDecoder(), _past_blanks(text, 0)
    array_start = position
    while text[position] in "{,":  # before a name
        position = decoder.raw_decode(text, _past_blanks(text, position + 1))[1]
        begin = _past_blanks(text, text.index(":", position) + 1)
        array_start = begin if text[begin] == "[" else array_start  # of a name that comes twice the last counts
        position = _past_blanks(text, decoder.raw_decode(text, begin)[1])
    return array_start


def _past_blanks(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    assert match
    return match.end()
