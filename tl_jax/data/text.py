"""Text data sets from files: TSV, CSV and JSON with labels, CoNLL columns of tagged words, and plain lines."""

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

    Line ends are unchanged. Other encodings are refused rather than guessed, as a wrong guess silently changes letters.

    Raises:
        UserError: the file cannot be read, or has another encoding; the message gives the line.
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
            f"convert it (from Latin-1: iconv -f LATIN1 -t UTF-8 {path.name})"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} has NUL characters, so it is not UTF-8 text; save it as UTF-8")
    return text


ENDINGS = {
    "tsv": ("tsv", "txt"),
    "csv": ("csv",),
    "jsonl": ("jsonl", "json"),
    "conll": ("conll", "conllu", "bio", "iob", "iob2", "txt", "", "tsv"),
    "lines": ("txt",),
}
# CoNLL-2002 and 2003 name their files eng.train, eng.testa (validation) and eng.testb (test).
CONLL_ENDINGS = {"train": "train", "testa": "validation", "testb": "test"}
HIDDEN_LABELS = {"-1", "?", ""}  # placeholders for unpublished labels of test sets


class Columns(NamedTuple):
    """Columns of text files.

    Attributes:
        names: names of all columns, for files without a header; empty if the first line has them.
        text: names of the one or two text columns.
        label: name of the label column.
    """

    names: tuple[str, ...] = ()
    text: tuple[str, ...] = ("text",)
    label: str = "label"


DEFAULT_COLUMNS = Columns()


class Example(NamedTuple):
    """A text (or two, or words), its label (or a tag per word), and its line (or that of each word)."""

    text: Any
    label: Any
    line: Any


def read_text_dataset(folder: Path, kind: str, columns: Columns = DEFAULT_COLUMNS, share: str = "fifth") -> Dataset:
    """Read the splits in a folder, or a single file, of which a fifth is then held out for testing.

    Args:
        folder: a folder with one file per split, named as in ``SPLIT_NAMES``: ``train.csv``, ``dev.csv``, ``test.csv``;
            for "conll" also ``eng.train``, ``eng.testa``, ``eng.testb``. Or a file.
        kind: "tsv" (quotes are text, unless the whole file is quoted as by pandas), "csv" (comma, semicolon or tab,
            whichever gives the columns), "jsonl" (one object per line, or an array of objects), "conll" (one word per
            line, its tag in the last column, an empty line after each sentence; see ``conll.py``) or "lines" (one text
            per line, no labels).
        columns: columns for the first four kinds; "conll" needs them only for unusual files.
        share: share to hold out without a test split, see ``dataset.hold_out``; with "", a single class is allowed.

    Returns:
        A data set whose inputs are texts: an object array (N,) of str, of pairs of str, or of lists of words. Its
        labels are int32 (N,), or for "conll" an object array (N,) of int32 arrays, one tag per word. Classes are
        sorted by name, or by value if all are numbers, with the tag "O" first.

    Raises:
        UserError: the file is missing, empty or in another encoding, has too few columns, not the named ones, an empty
            text or label, a value that is neither text nor number, or a label that is not in train; it gives the file
            and the lines.
    """
    folder = Path(folder).expanduser()
    files = _find_files(folder, kind)
    examples_by_split = {split: read_examples(file, kind, columns) for split, file in files.items()}
    labels = _make_label_map(files, examples_by_split, kind)
    if share and not labels.names[1:] and kind != "lines":
        raise UserError(f"{files['train']}: all labels are {labels.names[0]!r}; check config.data.label")
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
    """Read the texts of one file without labels; an invalid line is replaced by its error.

    Args:
        file: path of the file.
        kind: see ``read_text_dataset``.
        columns: see ``read_text_dataset``.

    Raises:
        UserError: the file cannot be read, is empty, or lacks the columns.
    """
    if kind == "conll":
        return _read_tagged(file, columns, labelled=False)
    if kind == "lines":
        return list(read_examples(file, kind, columns))
    errors, found = LineErrors(file, keep=True), []
    rows = _read_rows(file, read_text(file), kind, columns, False, errors)
    damaged = errors.by_line()
    for line, row in rows:
        own = LineErrors(file, keep=True)  # per row, as a JSON array may be a single line
        example = _make_example(line, row, columns, False, own)
        found.append(damaged.get(line) or own.by_line().get(line) or example)
    return found


def read_other_columns(file: Path, kind: str, columns: Columns) -> list[dict[str, Any]]:
    """Return the columns of a table besides its texts, one dict for each example of ``read_unlabelled``.

    Those of a damaged line are empty.
    """
    errors = LineErrors(file, keep=True)
    rows = _read_rows(file, read_text(file), kind, columns, False, errors)
    damaged = errors.by_line()
    return [
        {} if line in damaged else {name: value for name, value in row.items() if name not in columns.text}
        for line, row in rows
    ]


def read_examples(file: Path, kind: str, columns: Columns) -> list[Example]:
    """Read the labelled examples of one file, or the lines of one without labels.

    Args:
        file: path of the file.
        kind: see ``read_text_dataset``.
        columns: see ``read_text_dataset``.
    """
    if kind == "conll":
        return [example for example in _read_tagged(file, columns, True) if isinstance(example, Example)]
    text, errors = read_text(file), LineErrors(file)
    if not text.strip():
        raise UserError(f"{file}: empty; add examples, or remove the file")
    if kind == "lines":
        lines = enumerate(split_lines(text), start=1)
        return [Example(line.strip(), "", i) for i, line in lines if line.strip()]
    rows = _read_rows(file, text, kind, columns, True, errors)
    examples = [_make_example(line, row, columns, True, errors) for line, row in rows]
    errors.raise_if_any()
    return examples


def _read_tagged(file: Path, columns: Columns, labelled: bool) -> list[Example | UserError]:
    """Read the sentences of a CoNLL file; without labels, an invalid one is replaced by its error."""
    text = read_text(file)
    if not text.strip():
        raise UserError(f"{file}: empty; add sentences, or remove the file")
    word = columns.text[0] if columns.names else ""
    return [
        row if isinstance(row, UserError) else Example(row.words, tuple(map(clean_label, row.tags)), row.lines)
        for row in read_sentences(file, text, columns.names, word, columns.label, labelled)
    ]


def _read_rows(
    file: Path, text: str, kind: str, columns: Columns, labelled: bool, errors: LineErrors
) -> Sequence[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a table or of JSON, with their line numbers."""
    if kind == "jsonl":
        rows = read_objects(errors, text, columns.text)
    else:
        rows = read_table(errors, text, kind, columns.names, columns.text, columns.label)
    if not rows:
        raise UserError(f"{file}: empty; add examples, or remove the file")
    _check_columns(file, rows, columns, labelled)
    return rows


def _find_files(folder: Path, kind: str) -> dict[str, Path]:
    """Return the file of each split, or a single file as "train"."""
    if folder.is_file():
        return {"train": folder}
    if not folder.is_dir():
        raise UserError(f"no folder or file {folder}; check config.data.dir")
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not is_ignored(path.name)]
    names: dict[str, Path] = {}
    for ending in (*ENDINGS[kind], *(CONLL_ENDINGS if kind == "conll" else ())):  # the first suffix takes precedence
        known = set(names)
        for path in paths:
            split = _split_name(path, kind) if path.suffix.lower().removeprefix(".") == ending else ""
            if not split or split in known:
                continue
            if split in names:
                both = f"{names[split].name} and {path.name}"
                raise UserError(f"{folder}: {both} are both of the {split} split; rename or merge one of them")
            names[split] = path
    if "train" not in names:
        file_names = [path.name for path in paths]
        more = f" (there: {', '.join(file_names[:5])}{', ...' if len(file_names) > 5 else ''})" if file_names else ""
        other = " or eng.train, eng.testa, eng.testb" if kind == "conll" else ""
        endings = ", ".join(f".{ending}" if ending else "none" for ending in ENDINGS[kind])
        raise UserError(
            f"{folder} has no train.{ENDINGS[kind][0]}{more}; name the files train, test and dev{other} with one of "
            f"the suffixes {endings}, or pass a single file"
        )
    return {split: names[split] for split in dataset.SPLIT_NAMES if split in names}


def _split_name(path: Path, kind: str) -> str:
    """Return the split of a file name, or ""."""
    ending = path.suffix.lower().removeprefix(".")
    if kind == "conll" and ending in CONLL_ENDINGS:
        return CONLL_ENDINGS[ending]
    return (dataset.parse_split(path.stem) or "") if ending in ENDINGS[kind] else ""


def _check_columns(file: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], columns: Columns, labelled: bool) -> None:
    """Refuse a file in which a column is missing from all rows."""
    row = rows[0][1]
    for name in (*columns.text, *((columns.label,) if labelled else ())):
        if any(name in row for _, row in rows):
            continue
        if name == columns.label and all(text in row for text in columns.text):
            known = dataset.parse_split(file.stem)
            if known in ("test", "validation"):
                raise UserError(
                    f"{file}: no column {name!r}, so it cannot be evaluated; move it out of the folder, and predict "
                    f"from {file.name}"
                )
        field = "text" if name in columns.text else "label"
        raise UserError(
            f"{file}: no column {name!r} (columns: {', '.join(map(str, row)) or 'none'}); set config.data.{field}, or "
            "config.data.columns for a file without a header"
        )


def _make_example(
    line: int, row: Mapping[str, Any], columns: Columns, labelled: bool, line_errors: LineErrors
) -> Example:
    texts = []
    for name in columns.text:
        value = row.get(name)
        problem = _value_problem(value) or ("" if str(value).strip() else "is empty")
        if problem:
            line_errors.add(line, f"the text in {name!r} {problem}", "fill it in, or remove the line")
        texts.append(str(value))
    label = row.get(columns.label, "") if labelled else ""
    if labelled:
        problem = _value_problem(label)
        if problem:
            line_errors.add(
                line, f"the label in {columns.label!r} {problem}", "write a name or a number, or remove the line"
            )
        elif not str(label).strip():
            line_errors.add(line, f"no label in the column {columns.label!r}", "fill it in, or remove the line")
    return Example(texts[0] if len(texts) == 1 else tuple(texts), str(label).strip(), line)


def _value_problem(value: Any) -> str:
    """Return why a JSON value is neither text nor a number, or ""."""
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
    """Return the ``tags`` of entities whose kind is among the training tags.

    Only the length or position of such an entity is new: I-LOC if training has only B-LOC.
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
    """Refuse a tag without a prefix among prefixed ones: its entities would silently be counted as words."""
    prefixed_tags = sorted(tag for tag in train_tags if has_prefix(tag))
    if not prefixed_tags or find_scheme(sorted(train_tags)).name not in ("", "IO"):
        return
    if not any(tag[0].upper() in "BI" for tag in prefixed_tags):
        return  # parts of speech with such names
    line_errors = LineErrors(file)
    for example in train:
        for line, tag in zip(example.line, example.label, strict=True):
            if tag.upper() != OUTSIDE and tag not in prefixed_tags:
                line_errors.add(line, f"tag {tag!r} among tags such as {prefixed_tags[0]}", "correct it")
    if not line_errors.lines:
        letters = ", ".join(sorted({tag[0] for tag in prefixed_tags}))
        raise UserError(f"{file}: the prefixes of the tags ({letters}) are of no known scheme; use BIO, for example")
    line_errors.raise_if_any()


def _make_split(examples: Sequence[Example], labels: LabelMap, kind: str, file: Path) -> Split:
    texts = np.empty(len(examples), object)
    tagged, line_errors = kind == "conll", LineErrors(file)
    numbers = np.empty(len(examples), object if tagged else np.int32)
    known = ", ".join(labels.names[:8])
    action = f"correct it, or add it to the training split (which has {known})"
    if all(example.label in HIDDEN_LABELS for example in examples) and kind not in ("conll", "lines"):
        action = f"if it is a placeholder, move {file.name} out of the folder, and predict from it"
    for i, example in enumerate(examples):
        texts[i] = example.text
        tags, lines = (example.label, example.line) if tagged else ((example.label,), (example.line,))
        indices = [labels.index(tag) for tag in tags]
        for index, tag, line in zip(indices, tags, lines, strict=True):
            if index is None:
                line_errors.add(line, f"label {tag!r} is not in the training split", action)
        if None not in indices:
            numbers[i] = np.asarray(indices, np.int32) if tagged else indices[0]
    line_errors.raise_if_any()
    return Split(texts, numbers)
