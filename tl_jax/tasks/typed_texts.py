"""Inputs of ``--mode=predict`` for texts: sentences, pairs, lists of words, or files of them."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tl_jax.data.texts import Columns, read_examples
from tl_jax.errors import UserError
from tl_jax.tasks.details import PAIR

KINDS = {
    ".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".json": "jsonl", ".jsonl": "jsonl", ".conll": "conll",
    ".conllu": "conll",
}  # fmt: skip
_FOREIGN = (".xls", ".xlsx", ".ods", ".parquet", ".pdf", ".doc", ".docx", ".odt", ".html", ".zip", ".gz", ".md", ".rtf")
_ROOTED = re.compile(r"(/|\./|\.\./|~/|[A-Za-z]:\\)")


def read_inputs(inputs: Sequence[Any], task: str, pairs: bool, columns: Columns) -> list[Any]:
    """Return the texts that inputs stand for: each a str, a pair of str, or a list of words.

    Args:
        inputs: sentences, files (see ``KINDS``; a ``Path`` is always one), pairs (``FIRST ||| SECOND``, or a tuple), or
            lists of words.
        task: "text" or "tokens".
        pairs: whether the run was trained on pairs of texts; if not, " ||| " is text like other text.
        columns: of the training data, for CSV, TSV and JSON.

    Raises:
        UserError: a file that is not there or cannot be read, an empty text, something that is no text (None, NaN), or
            one text where two are needed.
    """
    found = []
    for value in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        if isinstance(value, os.PathLike):
            found += _of_file(_existing(Path(value).expanduser(), value), task, pairs, columns)
        elif not isinstance(value, str):
            found.append(_words_or_pair(value, task, pairs))
        elif (file := as_file(value)) is not None:
            found += _of_file(file, task, pairs, columns)
        else:
            found.append(_pair(value) if pairs else value)
    if not found or not all(text.strip() if isinstance(text, str) else "".join(text).strip() for text in found):
        raise UserError("nothing to predict; pass --input=TEXT, once for each sentence")
    return found


def as_file(value: str) -> Path | None:
    """Return the file that an input names, or None if it is a sentence.

    An input without blanks is a path if such a file exists, or if it has the ending of a file or is ASCII with a slash.
    One with blanks is a path if it begins as one does, with a slash or "./" say, and has such an ending.

    Raises:
        UserError: it looks like a path, and no file of it can be read here.
    """
    path = Path(os.path.expanduser(value))
    ending = path.suffix.lower() if path.suffix.lower() in (*KINDS, *_FOREIGN) else ""
    blanks = re.search(r"\s", value) is not None
    if blanks:
        looks = bool(ending) and _ROOTED.match(value) is not None
    else:
        looks = bool(ending) or value.isascii() and re.search(r"[/\\]", value) is not None
    looks = looks and "://" not in value  # an address is a text
    # A sentence that is longer than a file name may be is no error to os.path.
    return _existing(path, value) if looks or (os.path.isfile(path) and not blanks) else None


def _existing(path: Path, given: object) -> Path:
    """Return a path that is a file of a kind that is read, or refuse it; ``given`` is how it was written."""
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "there is no such file"
        raise UserError(f"--input={given}: {what}; pass a file ({', '.join(KINDS)}) or a sentence")
    if path.suffix.lower() in _FOREIGN:
        raise UserError(f"--input={given}: {path.suffix.lower()} is not read; save it as one of {', '.join(KINDS)}")
    return path


def _of_file(file: Path, task: str, pairs: bool, columns: Columns) -> list[Any]:
    kind = KINDS.get(file.suffix.lower(), "conll" if task == "tokens" else "lines")
    if kind == "conll" and task != "tokens":
        raise UserError(f"{file}: words in columns are for runs with config.task=tokens; pass whole texts")
    if kind != "conll" and task == "tokens":
        columns = columns._replace(names=(), text=columns.text[:1])  # those of a CoNLL file say nothing of tables
    texts = [example.text for example in read_examples(file, kind, columns, labelled=False)]
    return [_pair(text) for text in texts] if pairs and kind == "lines" else texts


def _words_or_pair(value: Any, task: str, pairs: bool) -> Any:
    what = "a sentence, a file, a pair of texts or a list of words"
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise UserError(f"an input is {value!r}, not {what}; pass str")
    parts = list(value)
    if strange := [part for part in parts if not isinstance(part, str)]:
        raise UserError(f"an input has {strange[0]!r} among its texts; pass str, and leave out what is missing")
    if task == "tokens":
        return parts
    if not pairs or len(parts) != 2:
        needed = "two texts" if pairs else "a text"
        raise UserError(f"an input is a list of {len(parts)}; this run takes {needed} for each input")
    return tuple(parts)


def _pair(value: str) -> tuple[str, str]:
    first, mark, second = value.partition(PAIR)
    if not mark or not first.strip() or not second.strip():
        raise UserError(f"{value[:60]!r} is one text, but the run was trained on pairs; write FIRST{PAIR}SECOND")
    return first, second
