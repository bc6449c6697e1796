"""Text inputs of predictions: sentences, pairs, lists of words, or files."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tl_jax.data import text
from tl_jax.data.text import Columns, read_unlabelled
from tl_jax.tasks.error_analysis import PAIR
from tl_jax.train.task import as_list
from tl_jax.utils.errors import UserError

FILE_KINDS = {
    ".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".json": "jsonl", ".jsonl": "jsonl", ".conll": "conll",
    ".conllu": "conll",
}  # fmt: skip
_UNSUPPORTED = (
    ".xls",
    ".xlsx",
    ".ods",
    ".parquet",
    ".pdf",
    ".doc",
    ".docx",
    ".odt",
    ".html",
    ".zip",
    ".gz",
    ".md",
    ".rtf",
)
NOTHING = "no inputs; pass a sentence, or a file of texts"
_PATH_START = re.compile(r"(/|\./|\.\./|~/|[A-Za-z]:\\)")


def read_inputs(inputs: Sequence[Any], words: bool, pairs: bool, columns: Columns) -> list[Any]:
    """Return the texts of ``inputs``: each a str, a pair of str, or a list of words.

    A damaged line of a file is replaced by its UserError.

    Args:
        inputs: sentences, files (see ``FILE_KINDS``; a ``Path`` is always a file), pairs (``FIRST ||| SECOND``, or a
            tuple), or lists of words.
        words: whether each word gets a class, so that lists of words are inputs.
        pairs: whether the run was trained on pairs of texts; otherwise " ||| " is ordinary text.
        columns: columns of the training data, for CSV, TSV and JSON.

    Raises:
        UserError: A file is missing or unreadable, a text is empty or not a text (None, NaN), or a pair has one text.
    """
    texts: list[Any] = []
    for value in as_list(inputs):
        if isinstance(value, os.PathLike):
            texts += _read_file(_check_input_file(Path(value).expanduser(), value), words, pairs, columns)
        elif isinstance(value, str) and (file := find_input_file(value)) is not None:
            texts += _read_file(file, words, pairs, columns)
        else:
            texts.append(_check_text(value, words, pairs))
    if not texts:
        raise UserError(NOTHING)
    return texts


def read_other_columns(inputs: Sequence[Any], columns: Columns) -> list[dict[str, Any]] | None:
    """Return the columns of table files besides their texts, in the order of ``read_inputs``; None for other inputs."""
    rows: list[dict[str, Any]] = []
    for value in as_list(inputs):
        path = Path(value).expanduser() if isinstance(value, os.PathLike) else None
        path = find_input_file(value) if isinstance(value, str) else path
        kind = FILE_KINDS.get(path.suffix.lower()) if path else None
        if path is None or kind not in ("csv", "tsv", "jsonl"):
            return None
        rows += text.read_other_columns(path, kind, columns)
    return rows


def _check_text(value: Any, words: bool, pairs: bool) -> Any:
    """Return a text given as such: a str, a pair, or a list of words."""
    if not isinstance(value, str):
        value = _words_or_pair(value, words, pairs)
    elif pairs:
        value = _split_pair(value)
    if not (value if isinstance(value, str) else "".join(value)).strip():
        raise UserError(NOTHING)
    return value


def find_input_file(value: str) -> Path | None:
    """Return the file that an input names; None if it is a sentence.

    An input without spaces is a path if the file exists, if it has a file extension, or if it is ASCII with a slash.
    One with spaces is a path if it starts like one, for example with a slash or "./", and has a file extension.

    Raises:
        UserError: The input looks like a path, but is not a readable file.
    """
    path = Path(os.path.expanduser(value))
    ending = path.suffix.lower() if path.suffix.lower() in (*FILE_KINDS, *_UNSUPPORTED) else ""
    has_blanks = re.search(r"\s", value) is not None
    if has_blanks:
        is_path = bool(ending) and _PATH_START.match(value) is not None
    else:
        is_path = bool(ending) or value.isascii() and re.search(r"[/\\]", value) is not None
    is_path = is_path and "://" not in value  # a URL is a text
    # os.path.isfile returns False for a sentence that exceeds the limit of file names.
    return _check_input_file(path, value) if is_path or (os.path.isfile(path) and not has_blanks) else None


def _check_input_file(path: Path, value: object) -> Path:
    """Return a path of a supported file. Raises UserError otherwise; ``value`` is the input as written."""
    suffix, kinds = path.suffix.lower(), ", ".join(FILE_KINDS)
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "file not found"
        raise UserError(f"input {value}: {problem}; pass a file ({kinds}) or a sentence")
    if suffix in _UNSUPPORTED:
        raise UserError(f"input {value}: {suffix} is not supported; save it as one of {kinds}")
    return path


def _read_file(file: Path, words: bool, pairs: bool, columns: Columns) -> list[Any]:
    kind = FILE_KINDS.get(file.suffix.lower(), "conll" if words else "lines")
    if kind == "conll" and not words:
        raise UserError(f"{file}: columns of words need a run that tags words (config.task=tokens); pass full texts")
    if kind != "conll" and words:
        columns = columns._replace(names=(), text=columns.text[:1])  # CoNLL columns do not apply to tables
    rows = [row if isinstance(row, UserError) else row.text for row in read_unlabelled(file, kind, columns)]
    return [_try_split_pair(row) for row in rows] if pairs and kind == "lines" else rows


def _try_split_pair(text: str | UserError) -> Any:
    """Return the pair of texts in a line of a file, or its error."""
    if isinstance(text, UserError):
        return text
    try:
        return _split_pair(text)
    except UserError as error:
        return error


def _words_or_pair(value: Any, words: bool, pairs: bool) -> Any:
    expected = "a sentence, a file, a pair of texts or a list of words"
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise UserError(f"input {value!r}: not {expected}; pass str")
    texts = list(value)
    if not_text := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f"input with {not_text[0]!r}: not a text; pass str, and omit missing values")
    if words:
        return texts
    if not pairs or len(texts) != 2:
        needed = "two texts" if pairs else "a text"
        raise UserError(f"input with {len(texts)} texts: this run takes {needed} per input")
    return tuple(texts)


def _split_pair(value: str) -> tuple[str, str]:
    first, mark, second = value.partition(PAIR)
    if not mark or not first.strip() or not second.strip():
        raise UserError(f"input {value[:60]!r}: one text, but the run takes pairs; write FIRST{PAIR}SECOND")
    return first, second
