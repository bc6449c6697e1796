"""Text data sets by name: from files, TFDS, and the docstrings of installed libraries, which need no files.

name           text                                          label                          source
"docs"         first paragraph of a docstring                its subpackage                 SciPy
"docs_names"   sentences, as words                           whether words are code: CODE   SciPy
"docs_corpus"  paragraphs                                    none, for masked LM            ``CORPUS_PACKAGES``

The docstrings vary slightly with the versions of these libraries; none is copied into tl_jax.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data import registry, text, tfds, tfds_files
from tl_jax.data.dataset import Dataset, Split, split_test
from tl_jax.data.labels import class_indices
from tl_jax.data.registry import DatasetOptions, register_dataset, register_fallback
from tl_jax.data.text import OUTSIDE, Columns
from tl_jax.utils.disk_cache import code_digest
from tl_jax.utils.download import cache_dir
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import add_checksum, read_json

Rows = tuple[list[Any], list[Any], Sequence[str]]  # texts, labels, classes
TARGET_PACKAGE = "scipy"
CORPUS_PACKAGES = (
    "numpy", "sklearn", "jax", "flax", "optax", "matplotlib", "h5py", "PIL", "orbax", "absl", "asyncio", "email",
)  # fmt: skip
MIN_WORDS, MAX_WORDS = 4, 120
MIN_EXAMPLES = 80  # per class
SPLIT_PERCENT = {"test": 20, "validation": 10}  # the others are for training
CORPUS_PERCENT = {"test": 3, "validation": 3}
LAYOUT = "train.* in it"  # of a folder with texts
COLUMN_FIELDS = ("columns", "label", "text")  # fields of the columns
_CODE = re.compile(r"``(.+?)``|`([^`<]+)`")
_WORD = re.compile(r"\w+|[^\w\s]")


@functools.cache
def load_docstrings(name: str) -> Dataset:
    """Return a data set of docstrings by name, as ``text.read_text_dataset`` does.

    Extracting it takes some seconds; the result is cached until the versions of the libraries change.
    """
    make_rows = {"docs": make_docs, "docs_names": make_docs_names, "docs_corpus": make_docs_corpus}[name]
    stamps = [
        os.stat(root).st_mtime_ns
        for package in (TARGET_PACKAGE, *CORPUS_PACKAGES)
        for root in _package_folders(package)
    ]
    key = hashlib.sha256(repr((code_digest("data"), stamps)).encode()).hexdigest()[:16]
    file = cache_dir() / "data" / f"{name}-{key}.json"
    with contextlib.suppress(UserError, ValueError, TypeError, LookupError):  # missing or damaged: extract again
        return _make_dataset(name, *read_json(file)["rows"])
    rows = make_rows()
    with contextlib.suppress(OSError):  # optional
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(add_checksum({"rows": rows})))
        temporary.replace(file)
    return _make_dataset(name, *rows)


def make_docs() -> Rows:
    """Return first paragraphs of SciPy's docstrings, labelled by subpackage."""
    package_of: dict[str, str] = {}
    for module, docstring in docstrings(TARGET_PACKAGE):
        paragraph = strip_markup(paragraphs(docstring)[0])
        module_path = module.split(".")
        if len(module_path) > 2 and has_usual_length(paragraph):
            package_of.setdefault(paragraph, module_path[1])
    counts = Counter(package_of.values())
    classes = tuple(sorted(name for name, n in counts.items() if n >= MIN_EXAMPLES and not name.startswith("_")))
    label_of = {text: classes.index(name) for text, name in package_of.items() if name in classes}
    return list(label_of), list(label_of.values()), classes


def make_docs_names() -> Rows:
    """Return sentences of SciPy's docstrings as words, tagged by whether they are marked up as code."""
    classes = (OUTSIDE, "B-CODE", "I-CODE")
    sentences: dict[str, tuple[list[str], list[int]]] = {}
    for _, docstring in docstrings(TARGET_PACKAGE):
        for paragraph in paragraphs(docstring):
            words, tags = tag_code(paragraph)
            if MIN_WORDS <= len(words) <= MAX_WORDS and any(tags):
                sentences.setdefault(" ".join(words), (words, tags))
    return [words for words, _ in sentences.values()], [tags for _, tags in sentences.values()], classes


def make_docs_corpus() -> Rows:
    """Return unlabelled paragraphs of the docstrings of ``CORPUS_PACKAGES``."""
    texts: dict[str, None] = {}
    for package in CORPUS_PACKAGES:
        for _, docstring in docstrings(package):
            texts |= {
                strip_markup(paragraph): None
                for paragraph in paragraphs(docstring)
                if has_usual_length(strip_markup(paragraph))
            }
    return list(texts), [0] * len(texts), ("text",)


@functools.cache
def docstrings(package: str) -> tuple[tuple[str, str], ...]:
    """Return (dotted module, docstring) of every definition in a package; files are parsed, not imported."""
    entries = []
    for root in _package_folders(package):
        for file in sorted(root.rglob("*.py")):
            module_path = file.relative_to(root).with_suffix("").parts
            if not any(name.startswith("test") or name == "externals" for name in module_path):
                entries += [(".".join((package, *module_path)), text) for text in _docstrings(file)]
    return tuple(entries)


def _package_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    if not roots:
        raise UserError(f"{package}, the source of these texts, is not installed; pip install {package}")
    return list(map(Path, roots))


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add_newdoc":  # docstrings of C code
            text = next((a.value for a in node.args if isinstance(a, ast.Constant) and "\n" in str(a.value)), None)
            text = inspect.cleandoc(text) if isinstance(text, str) else None
        else:
            continue
        if text and text.strip():
            yield text.strip()


def paragraphs(text: str) -> list[str]:
    """Return the prose paragraphs of a docstring, one line each, without examples, headings and lists."""
    prose = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if not any(re.match(r">>>|\.\. |[-=~*]{3,}|[\w*, ]+ : |:\w+", line) for line in lines):
            prose.append(" ".join(lines))
    return prose or [text.splitlines()[0]]


def strip_markup(text: str) -> str:
    """Return a text without markup."""
    return " ".join(re.sub(r":\w+:`", "`", text).replace("`", "").replace("*", "").split())


def tag_code(text: str) -> tuple[list[str], list[int]]:
    """Return words and their tags: 1 where code begins, 2 where it continues, 0 elsewhere."""
    text = re.sub(r":\w+:`", "`", text)
    words: list[str] = []
    tags: list[int] = []
    end = 0
    for match in [*_CODE.finditer(text), None]:
        outside = _WORD.findall(text[end : match.start() if match else len(text)].replace("`", "").replace("*", ""))
        words, tags = words + outside, tags + [0] * len(outside)
        if match:
            inside = _WORD.findall(match[1] or match[2])
            words, tags, end = words + inside, tags + [1, *[2] * len(inside)][: len(inside)], match.end()
    return words, tags


def has_usual_length(text: str) -> bool:
    """Return whether the number of words is within the limits."""
    return MIN_WORDS <= len(text.split()) <= MAX_WORDS


def _make_dataset(name: str, texts: Sequence[Any], labels: Sequence[Any], classes: Sequence[str]) -> Dataset:
    """Sort and split texts by a hash of each, so that the split of a text does not depend on other texts."""
    hashes = [int(hashlib.sha256(repr(text).encode()).hexdigest()[:16], 16) for text in texts]
    order = np.argsort(np.asarray(hashes, np.uint64))
    images = np.empty(len(texts), object)
    images[:] = [texts[i] for i in order]
    is_tagged = isinstance(labels[0], list)
    values = np.empty(len(labels), object if is_tagged else np.int32)
    values[:] = [np.asarray(labels[i], np.int32) if is_tagged else labels[i] for i in order]
    buckets = np.asarray([hashes[i] % 100 for i in order])
    shares = CORPUS_PERCENT if name == "docs_corpus" else SPLIT_PERCENT
    masks = {"test": buckets < shares["test"], "train": buckets >= sum(shares.values())}
    masks["validation"] = ~(masks["test"] | masks["train"])
    splits = {split: Split(images[rows], values[rows]) for split, rows in masks.items()}
    return Dataset(
        name, splits["train"], splits["test"], tuple(classes), f"{shares['test']} % held out", splits["validation"]
    )


@register_dataset("docs", "docs_names", "docs_corpus", inputs="texts")
def load_installed(options: DatasetOptions) -> Dataset:
    """Docstrings of installed libraries: with their subpackage, with tags of code, or without labels."""
    return load_docstrings(options.name)


@register_dataset("conll", "csv", "jsonl", "tsv", inputs="texts", fields=COLUMN_FIELDS, layout=LAYOUT)
@register_dataset("lines", inputs="texts", layout=LAYOUT)
def load_files(options: DatasetOptions) -> Dataset:
    """Texts in one file per split, in the format of the name."""
    return text.read_text_dataset(Path(options.folder), options.name, options.columns, options.share)


@register_fallback("texts", fields=("dir", *COLUMN_FIELDS))  # features are columns
def load_prepared(options: DatasetOptions) -> Dataset:
    """A prepared TFDS data set of texts with any other name."""
    return read_tfds(options.name, options.folder, options.columns)


def load(name: str, data_dir: str = "", columns: Columns = text.DEFAULT_COLUMNS) -> Dataset:
    """Load a text data set by name.

    Args:
        name: name of a registered data set, see ``registry.register_dataset``: "docs", "docs_names" or "docs_corpus"
            (see ``load_docstrings``; no files needed), "tsv", "csv", "jsonl", "conll" or "lines" (files in
            ``data_dir``, see ``text.read_text_dataset``), ...; or of any TFDS data set with text features and a class
            label, such as "ag_news_subset".
        data_dir: folder or file of the texts, or TFDS folder; empty for TFDS' default.
        columns: columns of text and label; for TFDS, the names of features.

    Raises:
        UserError: the data set is missing, or its files cannot be read; it gives the file and line.
    """
    return registry.read_dataset("texts", DatasetOptions(name, data_dir, columns=columns))


def read_tfds(name: str, data_dir: str, columns: Columns) -> Dataset:
    """Read a prepared TFDS data set of texts, without splits that were published without labels."""
    builder = tfds.open_prepared(name, data_dir, "texts")
    features = builder.info.features
    missing = [feature for feature in (*columns.text, columns.label) if feature not in features]
    if missing or not hasattr(features[columns.label], "names"):
        raise UserError(
            f"data set {name!r} has the features {', '.join(features)}; set config.data.text to its texts and "
            "config.data.label to its class label"
        )
    names = tfds.builder_splits(builder, name)
    title, classes = f"{name}:{builder.info.version}", tfds_files.class_names(builder, columns.label)
    splits = {split: _read_split(builder, names[split], columns) for split in names}
    num_unlabelled = {split: int((split_data.labels < 0).sum()) for split, split_data in splits.items()}
    for split, count in num_unlabelled.items():
        if count and (split == "train" or count < len(splits[split].labels)):
            problem = f"{count:,} of {len(splits[split].labels):,} {names[split]} examples have no label"
            raise UserError(f"data set {name!r}: {problem}; choose another data set, or label them")
    train = splits.pop("train")
    labelled = [split for split in ("test", "validation") if split in splits and not num_unlabelled[split]]
    if not labelled:
        return split_test(title, train, classes, "fifth")
    test_name, *remaining = labelled
    validation = splits[remaining[0]] if remaining else None
    return Dataset(title, train, splits[test_name], classes, names[test_name], validation)


def _read_split(builder: Any, split: str, columns: Columns) -> Split:
    records = tfds_files.Records(builder, split)
    texts, numbers = np.empty(len(records), object), np.empty(len(records), np.int64)
    for row, record in enumerate(records):
        values = tuple(_decode_text(record, name) for name in columns.text)
        texts[row] = values[0] if len(values) == 1 else values
        numbers[row] = record.number(columns.label)
    classes = builder.info.features[columns.label].num_classes
    return Split(texts, class_indices(numbers, classes, records.where, allow_missing=True))


def _decode_text(record: tfds_files.Record, name: str) -> str:
    text = record.content(name)
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise UserError(
            f"{record.where}: the feature {name!r} is not UTF-8 ({text[:40]!r}); prepare the data set again"
        ) from None
