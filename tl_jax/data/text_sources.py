"""Text sets by name: files, what the installed libraries say of themselves, and TFDS."""

from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data import docs, sources, texts, tfds_files
from tl_jax.data.labels import class_numbers
from tl_jax.data.pictures import Source, Split, cut_test
from tl_jax.data.texts import Columns
from tl_jax.errors import UserError

EMBEDDED = ("docs", "docs_names", "docs_corpus")


def load(name: str, data_dir: str = "", columns: Columns = texts.FIRST_LINE) -> Source:
    """Load a text set by name.

    Args:
        name: "docs", "docs_names" or "docs_corpus" (see ``docs``; no files needed), "tsv", "csv", "jsonl", "conll" or
            "lines" (files under ``data_dir``, see ``texts.read``), or any TFDS set with text features and a class
            label, such as "ag_news_subset".
        data_dir: folder or file with the texts, or TFDS folder; empty for TFDS' own default.
        columns: where text and label stand; in TFDS, the names of its features.

    Raises:
        UserError: the set is absent, or its files cannot be read; the message names file and line.
    """
    if name in EMBEDDED:
        return docs.load(name)
    if name in texts.ENDINGS:
        if not data_dir:
            raise UserError(f"config.data.name={name} needs files; pass --config.data.dir=FOLDER, with train.* in it")
        return texts.read(Path(data_dir), name, columns)
    return tfds_source(name, data_dir, columns)


def tfds_source(name: str, data_dir: str, columns: Columns) -> Source:
    """Read a prepared TFDS set of texts; parts that were published without labels are left out."""
    builder = sources.prepared(name, data_dir)
    features = builder.info.features
    absent = [each for each in (*columns.text, columns.label) if each not in features]
    if absent or not hasattr(features[columns.label], "names"):
        raise UserError(
            f"data set {name!r} has {', '.join(features)}; set config.data.text to its texts and config.data.label to "
            "its class label"
        )
    names = sources.own_splits(builder, name)
    title, classes = f"{name}:{builder.info.version}", tfds_files.class_names(builder, columns.label)
    found = {split: _read(builder, names[split], columns) for split in names}
    hidden = {split: int((part.labels < 0).sum()) for split, part in found.items()}
    for split, count in hidden.items():
        if count and (split == "train" or count < len(found[split].labels)):
            what = f"{count:,} of {len(found[split].labels):,} {names[split]} examples have no label"
            raise UserError(f"data set {name!r}: {what}; choose another set, or label them")
    train = found.pop("train")
    labelled = [split for split in ("test", "validation") if split in found and not hidden[split]]
    if not labelled:
        return cut_test(title, train, classes, "fifth")
    tested, *other = labelled
    return Source(title, train, found[tested], classes, names[tested], *(found[split] for split in other))


def _read(builder: Any, part: str, columns: Columns) -> Split:
    records = tfds_files.Records(builder, part)
    texts, numbers = np.empty(len(records), object), np.empty(len(records), np.int64)
    for row, record in enumerate(records):
        values = tuple(_text(record, name) for name in columns.text)
        texts[row] = values[0] if len(values) == 1 else values
        numbers[row] = record.number(columns.label)
    classes = builder.info.features[columns.label].num_classes
    return Split(texts, class_numbers(numbers, classes, records.where, hidden=True))


def _text(record: tfds_files.Record, name: str) -> str:
    text = record.content(name)
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise UserError(
            f"{record.where}: the feature {name!r} holds {text[:40]!r}, which is not UTF-8; prepare the data set again"
        ) from None
