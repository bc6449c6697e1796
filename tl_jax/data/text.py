"""Text data sets from files: TSV, CSV and JSON with labels, CoNLL columns of tagged words, plain lines."""

import codecs
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import dataset
from tl_jax.data.conll import OUTSIDE, find_scheme, has_prefix, read_sentences
from tl_jax.data.dataset import Dataset, Split, hold_out
from tl_jax.data.labels import LabelMap, check_class_names, clean_label, make_label_map
from tl_jax.data.text_rows import LineErrors, read_objects, read_table, split_lines
from tl_jax.data.walker import is_ignored
from tl_jax.utils.errors import UserError

_BOM_ENCODINGS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Line ends stay as they are. Other encodings are refused, not guessed: a wrong guess changes letters in silence.

    Raises:
        UserError: the file cannot be read, or is in another encoding; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path and its permissions") from error
    encoding = next((encoding for mark, encoding in _BOM_ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); "
            f"convert it, if it is Latin-1 with: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} has NUL characters, so it is no text in UTF-8; store it as UTF-8")
    return text


ENDINGS = {
    "tsv": ("tsv", "txt"),
    "csv": ("csv",),
    "jsonl": ("jsonl", "json"),
    "conll": ("conll", "conllu", "bio", "iob", "iob2", "txt", "", "tsv"),
    "lines": ("txt",),
}
# CoNLL-2002 and 2003 call their files eng.train, eng.testa (for choosing) and eng.testb (for testing).
CONLL_ENDINGS = {"train": "train", "testa": "validation", "testb": "test"}
HIDDEN_LABELS = {"-1", "?", ""}  # labels that published test sets have in place of the right ones


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


DEFAULT_COLUMNS = Columns()


class Example(NamedTuple):
    """A text (or two, or words), its label (or a tag for each word), and its line (or that of each word)."""

    text: Any
    label: Any
    line: Any


def read_text_dataset(folder: Path, kind: str, columns: Columns = DEFAULT_COLUMNS, share: str = "fifth") -> Dataset:
    """Read the splits in a folder, or a single file, of which a fifth is then held out for testing.

    Args:
        folder: with a file for each split, named as ``SPLIT_NAMES`` says: ``train.csv``, ``dev.csv``, ``test.csv``;
            for "conll" also ``eng.train``, ``eng.testa``, ``eng.testb``. Or a file.
        kind: "tsv" (quotes are text, unless the whole file is quoted as pandas quotes it), "csv" (comma, semicolon or
            tab, whichever gives the columns), "jsonl" (an object a line, or an array of objects), "conll" (a word a
            line, its tag the last of the columns, an empty line behind each sentence; see ``conll.py``) or
            "lines" (a text a line, no labels).
        columns: of the first four; "conll" needs them for the unusual only.
        share: that is held out if there is no test split, see ``dataset.hold_out``; without any, one class will do.

    Returns:
        A source whose ``images`` are texts: an object array (N,) of str, of pairs of str, or of lists of words. Its
        labels are int32 (N,), or for "conll" an object array (N,) of int32 arrays, a tag for each word. Classes are
        in the order of their names, or of their values if all are numbers, the tag "O" first.

    Raises:
        UserError: names the file and the lines: absent, empty, in another encoding, too few columns, no such column,
            an empty text or label, a value that is neither a text nor a number, or a label that the training split
            does not have.
    """
    folder = Path(folder).expanduser()
    files = _find_files(folder, kind)
    examples_by_split = {split: read_examples(file, kind, columns) for split, file in files.items()}
    labels = _make_label_map(files, examples_by_split, kind)
    if share and not labels.names[1:] and kind != "lines":
        raise UserError(
            f"{files['train']} has a single label, {labels.names[0]!r}; check which column holds the labels"
        )
    splits = {split: _make_split(examples, labels, kind, files[split]) for split, examples in examples_by_split.items()}
    name, classes = folder.resolve().stem, labels.names
    if "test" in splits:
        return Dataset(name, splits["train"], splits["test"], classes, files["test"].stem, splits.get("validation"))
    full, classless = splits["train"], kind in ("conll", "lines")
    strata = np.zeros(len(full.labels), np.int32) if classless else full.labels
    train, test = hold_out(name, strata, ("texts",) if classless else classes, share)
    train, test = (Split(full.inputs[rows], full.labels[rows]) for rows in (train, test))
    return Dataset(name, train, test, classes, "a fifth held out", splits.get("validation"))


def read_unlabelled(file: Path, kind: str, columns: Columns) -> list[Example | UserError]:
    """Read the texts of one file without labels; a damaged line has its error in its place.

    Args:
        file: to be read.
        kind: see ``read_text_dataset``.
        columns: see ``read_text_dataset``.

    Raises:
        UserError: the file cannot be read, is empty, or has no such columns.
    """
    if kind == "conll":
        return _read_tagged(file, columns, labelled=False)
    if kind == "lines":
        return list(read_examples(file, kind, columns))
    errors, found = LineErrors(file, keep=True), []
    rows = _read_rows(file, read_text(file), kind, columns, False, errors)
    damaged = errors.by_line()
    for line, row in rows:
        own = LineErrors(file, keep=True)  # of one row: a whole array of JSON may stand in one line
        example = _make_example(line, row, columns, False, own)
        found.append(damaged.get(line) or own.by_line().get(line) or example)
    return found


def read_examples(file: Path, kind: str, columns: Columns) -> list[Example]:
    """Read the labelled examples of one file, or the lines of one without labels.

    Args:
        file: to be read.
        kind: see ``read_text_dataset``.
        columns: see ``read_text_dataset``.
    """
    if kind == "conll":
        return [example for example in _read_tagged(file, columns, True) if isinstance(example, Example)]
    text, errors = read_text(file), LineErrors(file)
    if not text.strip():
        raise UserError(f"{file} is empty; fill it, or take it away")
    if kind == "lines":
        lines = enumerate(split_lines(text), start=1)
        return [Example(line.strip(), "", i) for i, line in lines if line.strip()]
    rows = _read_rows(file, text, kind, columns, True, errors)
    examples = [_make_example(line, row, columns, True, errors) for line, row in rows]
    errors.raise_if_any()
    return examples


def _read_tagged(file: Path, columns: Columns, labelled: bool) -> list[Example | UserError]:
    """Read the sentences of a CoNLL file; without labels, a damaged one has its error in its place."""
    text = read_text(file)
    if not text.strip():
        raise UserError(f"{file} is empty; fill it, or take it away")
    word = columns.text[0] if columns.names else ""
    return [
        row if isinstance(row, UserError) else Example(row.words, tuple(map(clean_label, row.tags)), row.lines)
        for row in read_sentences(file, text, columns.names, word, columns.label, labelled)
    ]


def _read_rows(
    file: Path, text: str, kind: str, columns: Columns, labelled: bool, errors: LineErrors
) -> Sequence[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a table or of JSON, with the lines where they begin."""
    if kind == "jsonl":
        rows = read_objects(errors, text, columns.text)
    else:
        rows = read_table(errors, text, kind, columns.names, columns.text, columns.label)
    if not rows:
        raise UserError(f"{file} is empty; fill it, or take it away")
    _check_columns(file, rows, columns, labelled)
    return rows


def _find_files(folder: Path, kind: str) -> dict[str, Path]:
    """Return the file of each split, or the single one as "train"."""
    if folder.is_file():
        return {"train": folder}
    if not folder.is_dir():
        raise UserError(f"no folder or file {folder}; check config.data.dir")
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not is_ignored(path.name)]
    names: dict[str, Path] = {}
    for ending in (*ENDINGS[kind], *(CONLL_ENDINGS if kind == "conll" else ())):  # the first ending of a split counts
        known = set(names)
        for path in paths:
            split = _split_name(path, kind) if path.suffix.lower().removeprefix(".") == ending else ""
            if not split or split in known:
                continue
            if split in names:
                both = f"{names[split].name} and {path.name}"
                raise UserError(f"{folder}: both {both} name the {split} split; rename or merge one of them")
            names[split] = path
    if "train" not in names:
        file_names = [path.name for path in paths]
        more = f" (there: {', '.join(file_names[:5])}{', ...' if len(file_names) > 5 else ''})" if file_names else ""
        other = " or eng.train, eng.testa, eng.testb" if kind == "conll" else ""
        endings = ", ".join(f".{ending}" if ending else "none" for ending in ENDINGS[kind])
        raise UserError(
            f"{folder} has no train.{ENDINGS[kind][0]}{more}; files are called train, test and dev{other}, with one of "
            f"the endings {endings}; rename them, or pass a single file"
        )
    return {split: names[split] for split in dataset.SPLIT_NAMES if split in names}


def _split_name(path: Path, kind: str) -> str:
    """Return the split that a file name stands for, or nothing."""
    ending = path.suffix.lower().removeprefix(".")
    if kind == "conll" and ending in CONLL_ENDINGS:
        return CONLL_ENDINGS[ending]
    return (dataset.parse_split(path.stem) or "") if ending in ENDINGS[kind] else ""


def _check_columns(file: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], columns: Columns, labelled: bool) -> None:
    """Refuse a file that lacks a column in all of its rows."""
    line, row = rows[0]
    for name in (*columns.text, *((columns.label,) if labelled else ())):
        if any(name in row for _, row in rows):
            continue
        if name == columns.label and all(text in row for text in columns.text):
            known = dataset.parse_split(file.stem)
            if known in ("test", "validation"):
                raise UserError(
                    f"{file}: no column {name!r}, so nothing can be measured on it; move it out of the folder, and "
                    f"predict from {file.name}"
                )
        raise UserError(
            f"{file}:{line}: no column {name!r} (there are {', '.join(map(str, row)) or 'none'}); "
            "set config.data.text, data.label or, for files that begin without names, data.columns"
        )


def _make_example(
    line: int, row: Mapping[str, Any], columns: Columns, labelled: bool, line_errors: LineErrors
) -> Example:
    texts = []
    for name in columns.text:
        value = row.get(name)
        problem = _value_problem(value) or ("" if str(value).strip() else "is empty")
        if problem:
            line_errors.add(line, f"the text in {name!r} {problem}", "write it, or take the line away")
        texts.append(str(value))
    label = row.get(columns.label, "") if labelled else ""
    if labelled:
        problem = _value_problem(label)
        if problem:
            line_errors.add(
                line, f"the label in {columns.label!r} {problem}", "write a name or a number, or take it away"
            )
        elif not str(label).strip():
            line_errors.add(line, f"no label in the column {columns.label!r}", "write it, or take the line away")
    return Example(texts[0] if len(texts) == 1 else tuple(texts), str(label).strip(), line)


def _value_problem(value: Any) -> str:
    """Return why a value of JSON is neither a text nor a number, or nothing."""
    if value is None:
        return "is null"
    if isinstance(value, bool):
        return f"is {str(value).lower()}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}"
    return f"is a {type(value).__name__}" if isinstance(value, (list, dict)) else ""


def _make_label_map(
    files: Mapping[str, Path], examples_by_split: Mapping[str, Sequence[Example]], kind: str
) -> LabelMap:
    train = examples_by_split["train"]
    if kind != "conll":
        return make_label_map([example.label for example in train], files["train"], OUTSIDE)
    train_tags = {tag for example in train for tag in example.label}
    check_class_names(train_tags, files["train"])
    _check_tags(files["train"], train, train_tags)
    other_tags = {
        tag for split, examples in examples_by_split.items() if split != "train" for e in examples for tag in e.label
    }
    classes = sorted(
        train_tags | _known_kind_tags(other_tags - train_tags, train_tags), key=lambda tag: (tag != OUTSIDE, tag)
    )
    return LabelMap(tuple(classes), {tag: i for i, tag in enumerate(classes)}, False)


def _known_kind_tags(tags: Iterable[str], train_tags: set[str]) -> set[str]:
    """Return those of ``tags`` that belong to entities of a kind that is among the tags seen in training.

    They are read, since only the length or position of such an entity is new: I-LOC where training has B-LOC alone.
    """
    scheme = find_scheme(sorted(train_tags))
    kinds = (
        {scheme.kind(tag) for tag in train_tags if tag != scheme.outside} if scheme.name not in ("", "IO") else set()
    )
    known_tags = set()
    for tag in tags:
        wider = find_scheme(sorted({*train_tags, tag}))
        if kinds and wider.name == scheme.name and tag != wider.outside and wider.kind(tag) in kinds:
            known_tags.add(tag)
    return known_tags


def _check_tags(file: Path, train: Sequence[Example], train_tags: set[str]) -> None:
    """Refuse a tag without a prefix among such that have one: entities would silently be counted as words."""
    prefixed_tags = sorted(tag for tag in train_tags if has_prefix(tag))
    if not prefixed_tags or find_scheme(sorted(train_tags)).name not in ("", "IO"):
        return
    if not any(tag[0].upper() in "BI" for tag in prefixed_tags):
        return  # parts of speech that look like it
    line_errors = LineErrors(file)
    for example in train:
        for line, tag in zip(example.line, example.label, strict=True):
            if tag.upper() != OUTSIDE and tag not in prefixed_tags:
                line_errors.add(line, f"tag {tag!r} among tags such as {prefixed_tags[0]}", "mend it")
    if not line_errors.lines:
        letters = ", ".join(sorted({tag[0] for tag in prefixed_tags}))
        raise UserError(f"{file}: the prefixes of the tags ({letters}) belong to no known scheme; use BIO, for example")
    line_errors.raise_if_any()


def _make_split(examples: Sequence[Example], labels: LabelMap, kind: str, file: Path) -> Split:
    texts = np.empty(len(examples), object)
    tagged, line_errors = kind == "conll", LineErrors(file)
    numbers = np.empty(len(examples), object if tagged else np.int32)
    known = ", ".join(labels.names[:8])
    action = f"mend it, or add it to the training split (there: {known})"
    if all(example.label in HIDDEN_LABELS for example in examples) and kind not in ("conll", "lines"):
        action = f"if it stands for hidden labels, take {file.name} away and predict from it"
    for i, example in enumerate(examples):
        texts[i] = example.text
        tags, lines = (example.label, example.line) if tagged else ((example.label,), (example.line,))
        indices = [labels.index(tag) for tag in tags]
        for index, tag, line in zip(indices, tags, lines, strict=True):
            if index is None:
                line_errors.add(line, f"label {tag!r} is never seen in training", action)
        if None not in indices:
            numbers[i] = np.asarray(indices, np.int32) if tagged else indices[0]
    line_errors.raise_if_any()
    return Split(texts, numbers)
