"""Predictions for what a user passes: a few rows for the screen, or any number of them written to a table."""

import csv
import html
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data.decode import decode_file, is_image
from tl_jax.tasks.error_analysis import thumbnail
from tl_jax.train.logging import say
from tl_jax.train.task import Task, as_list, unread
from tl_jax.train.workdir import write_json
from tl_jax.utils import disk
from tl_jax.utils.errors import UserError, combine_errors, join_errors
from tl_jax.utils.progress import progress_bar

MAX_SHOWN = 100  # rows on the screen
MAX_PATH = 1000  # letters of an input that may be a path
ENDINGS = (".csv", ".jsonl")
SAY_SECONDS = 10.0  # between two lines about the rate, where no bar is shown
Row = Mapping[str, Any]


class Prediction(NamedTuple):
    """What a network says of one input.

    Attributes:
        input: file or text.
        label: the most likely class; "" where a kind of task has no class for each input, or the input is damaged.
        probability: of it.
        probabilities: of all K classes by name, the most likely first.
        details: all that is said: boxes, entities, an embedding's person, or the ``error`` of a damaged input.
    """

    input: str
    label: str
    probability: float
    probabilities: Mapping[str, float]
    details: Mapping[str, Any]

    def describe(self) -> str:
        """Return in a few words what is said."""
        if "error" in self.details:
            return f"error: {self.details['error']}"
        if self.probabilities:
            return f"{self.label} {self.probability:.3f}"
        if "boxes" in self.details:
            return ", ".join(f"{box['class']} {box['score']:.2f}" for box in self.details["boxes"]) or "no boxes"
        if "entities" in self.details:
            found = (f"{entity['text']} ({entity['kind']})" for entity in self.details["entities"])
            return ", ".join(found) or "no entities"
        return self.label


class Predictions(list[Prediction]):
    """Predictions in the order of their inputs; a table, with small images, in a notebook."""

    def __repr__(self) -> str:
        lines = [f"{each.input}: {each.describe()}" for each in self[:MAX_SHOWN]]
        more = [f"... and {len(self) - MAX_SHOWN:,} more"] if len(self) > MAX_SHOWN else []
        return "\n".join([*lines, *more]) or "no predictions"

    def _repr_html_(self) -> str:
        cells = (map(html.escape, (each.input, each.describe())) for each in self[:MAX_SHOWN])
        images = map(_thumbnail, self[:MAX_SHOWN])
        rows = "".join(
            f"<tr><td>{image}</td><td>{'</td><td>'.join(row)}</td></tr>"
            for image, row in zip(images, cells, strict=True)
        )
        more = f"... and {len(self) - MAX_SHOWN:,} more" if len(self) > MAX_SHOWN else ""
        return f"<table><tr><th></th><th>input</th><th>prediction</th></tr>{rows}</table>{more}"


def _thumbnail(prediction: Prediction) -> str:
    """Return the image of a prediction as HTML; nothing for a text, or a file that cannot be read."""
    path = Path(prediction.input) if len(prediction.input) < MAX_PATH else Path()
    if "error" in prediction.details or not is_image(path) or not path.is_file():
        return ""
    try:
        return f'<img src="{thumbnail(decode_file(path))}">'
    except UserError:  # of 16 bits, say
        return ""


def as_prediction(row: Row, top: int | None = None) -> Prediction:
    """Return a row of ``Task.predict`` with the most likely class; ``top`` as for ``top_classes``."""
    probabilities = top_classes(row.get("probabilities", {}), top)
    label = next(iter(probabilities), str(row.get("person") or ""))
    return Prediction(row["input"], label, probabilities.get(label, math.nan), probabilities, row)


class Written(NamedTuple):
    """A table of predictions: its path, how many inputs it has, how many of them have an error, and the seconds."""

    path: Path
    inputs: int
    damaged: int
    seconds: float


def predict(task: Task, variables: Any, inputs: Any, embeddings: bool = False) -> list[dict[str, Any]]:
    """Return the row of each input, see ``Task.predict``.

    Raises:
        UserError: not one of the inputs can be read; it names the first ones, each with the reason.
    """
    rows = list(task.predict(variables, task.read_inputs(as_list(inputs)), embeddings))
    return _check_readable(rows)


def _check_readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows, or raise the errors of all of them."""
    errors = _errors(rows)
    if len(errors) == len(rows):
        raise combine_errors("the inputs", errors, unread(len(errors), len(rows)))
    return rows


def show(task: Task, variables: Any, inputs: Any, folder: Path) -> list[dict[str, Any]]:
    """Tell the row of each input, keep them as ``predictions.json``, and draw what is found on images into a folder."""
    listed = task.read_inputs(as_list(inputs))
    rows = _check_readable(list(task.predict(variables, listed)))
    say(format_rows(task, rows))
    write_json(folder / "predictions.json", rows)
    if paths := task.draw_predictions(rows, listed, folder):
        say("pictures: " + ", ".join(map(str, paths)))
    return rows


def format_rows(task: Task, rows: Sequence[Row]) -> str:
    """Return the first rows as text, and what is to be said of all of them."""
    readable, errors = [row for row in rows if "error" not in row], _errors(rows)
    lines = [task.draw_prediction(row) for row in readable[:MAX_SHOWN]]
    if len(readable) > MAX_SHOWN:
        lines.append(f"... and {len(readable) - MAX_SHOWN:,} more inputs: see predictions.json")
    if errors:
        lines.append(f"{unread(len(errors), len(rows))}: {join_errors(errors)}")
    return "\n".join(lines)


def _errors(rows: Sequence[Row]) -> list[UserError]:
    return [UserError(row["error"]) for row in rows if "error" in row]


def top_classes(probabilities: Mapping[str, float], top: int | None) -> dict[str, float]:
    """Return the most likely classes, the likeliest first; all of them if ``top`` is None."""
    order = sorted(probabilities, key=lambda name: -probabilities[name])
    return {name: probabilities[name] for name in order[:top]}


def write(
    task: Task, variables: Any, inputs: Any, path: str | Path, top: int | None = None, embeddings: bool = False
) -> Written:
    """Write the row of each input, in order, to a table; a batch of them is in memory at a time.

    A damaged input has its ``error`` in its row, and the others go on. In a .csv file what is no number or name is
    JSON, and each class has a column ``probability_CLASS``, or with ``top`` each rank its ``label_2`` and
    ``probability_2``. A .jsonl file has an object a line.

    Args:
        task: of the run.
        variables: trained.
        inputs: see ``Task.read_inputs``.
        path: of the table, whose ending is one of ``ENDINGS``. It is put in place when it is complete.
        top: how many classes are kept, the most likely ones; None for all.
        embeddings: whether the features of each input go to ``NAME.embeddings.npy`` beside the table: float32 (N, D),
            a row for each of the table's, NaN for damaged inputs.

    Raises:
        UserError: another ending, a file that is itself an input, no input that can be read, or a full disk.
    """
    inputs = as_list(inputs)
    path = check_output(path, inputs)
    images = task.read_inputs(inputs)
    start, errors, damaged = time.monotonic(), [], 0
    matrix = path.with_name(f"{path.stem}.embeddings.npy")
    with disk.atomic_write(path) as temporary, _EmbeddingFile(matrix if embeddings else None) as embedding_file:
        # A file name need not be UTF-8.
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            write_row = _row_writer(file, path.suffix, _columns(task, top), top)
            for row in _with_progress(task.predict(variables, images, embeddings), len(images)):
                embedding_file.add(row.pop("embedding", None))
                if "error" in row:
                    damaged += 1
                    errors += [UserError(row["error"])] if len(errors) < MAX_SHOWN else []
                write_row(row)
        if damaged == len(images):
            raise combine_errors("the inputs", errors, unread(damaged, len(images)))
    written = Written(path, len(images), damaged, time.monotonic() - start)
    rate = f"{written.inputs:,} inputs in {written.seconds:.1f} s ({written.inputs / written.seconds:,.0f}/s)"
    beside = f" and {matrix.name}" if embeddings else ""
    say(f"{rate}: {path}{beside}" + (f"; {unread(damaged, len(images))}: {join_errors(errors)}" if damaged else ""))
    return written


def check_output(path: str | Path, inputs: Sequence[Any]) -> Path:
    """Return the path of a table to write, or say what is wrong with it."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"output {path} must end in {' or '.join(ENDINGS)}")
    named = [Path(os.path.expanduser(value)) for value in inputs if isinstance(value, Path) or _may_be_path(value)]
    if path.exists() and any(value.is_file() and value.samefile(path) for value in named):
        raise UserError(f"output {path} is an input, too; choose another name")
    return path


def _may_be_path(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(ENDINGS)


def _columns(task: Task, top: int | None) -> list[str]:
    """Return the columns of a CSV table."""
    columns = ["input"]
    for name in task.prediction_columns:
        if name != "probabilities":
            columns.append(name)
        elif top is None:
            columns += ["label", "probability", *(f"probability_{name}" for name in task.classes)]
        else:
            ranks = range(1, min(top, len(task.classes)) + 1)
            columns += [f"{name}_{rank}" if rank > 1 else name for rank in ranks for name in ("label", "probability")]
    return [*columns, "error"]


def _row_writer(file: Any, ending: str, columns: Sequence[str], top: int | None) -> Callable[[Row], None]:
    """Return what writes a row to a file that is open."""
    if ending.lower() == ".jsonl":
        return lambda row: file.write(json.dumps(_ranked(row, top), ensure_ascii=False) + "\n")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    return lambda row: writer.writerow({name: _cell(value) for name, value in _flat(row, top).items()})


def _ranked(row: Row, top: int | None) -> dict[str, Any]:
    """Return a row with the likeliest class as ``label``."""
    if "probabilities" not in row:
        return dict(row)
    kept = top_classes(row["probabilities"], top)
    label = next(iter(kept))
    return {"input": row["input"], "label": label, "probability": kept[label], "probabilities": kept}


def _flat(row: Row, top: int | None) -> dict[str, Any]:
    """Return a row whose probabilities have a column each."""
    ranked = _ranked(row, top)
    kept = ranked.pop("probabilities", None)
    if kept is None:
        return ranked
    if top is None:
        return {**ranked, **{f"probability_{name}": value for name, value in kept.items()}}
    ranks = {f"label_{rank}": name for rank, name in enumerate(kept, start=1) if rank > 1}
    values = {f"probability_{rank}": value for rank, value in enumerate(kept.values(), start=1) if rank > 1}
    return {**ranked, **ranks, **values}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _with_progress(rows: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """Yield rows with a bar on a terminal, and a line now and then elsewhere: how many, the rate and what is left."""
    bar = progress_bar(rows, desc="predicting", total=total, leave=False, mininterval=0.5, unit=" inputs")
    start = said = 0.0
    for number, row in enumerate(bar):
        yield row
        start = start or time.monotonic()  # of the second one: before the first, the network is compiled
        said = said or start
        if bar.disable and number and time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            rate = number / (said - start)
            say(f"{number + 1:,} of {total:,} inputs, {rate:,.0f}/s, {round((total - number - 1) / rate)} s left")


class _EmbeddingFile:
    """A matrix float32 (N, D) in NumPy's format that is written row by row, and put in place when it is complete."""

    def __init__(self, path: Path | None):
        self._path, self._rows, self._width, self._missing = path, 0, 0, 0

    def __enter__(self) -> "_EmbeddingFile":
        if self._path is not None:
            self._writing = disk.atomic_write(self._path)
            self._file = self._writing.__enter__().open("w+b")
        return self

    def add(self, embedding: np.ndarray | None) -> None:
        """Append a row; None for an input without one."""
        if self._path is None:
            return
        if embedding is None and not self._width:  # the width is not known yet
            self._missing += 1
            return
        if embedding is not None and not self._width:
            self._width = len(embedding)
            self._write_header(0)
            for _ in range(self._missing):
                self.add(None)
        row = np.full(self._width, np.nan) if embedding is None else embedding
        self._file.write(np.asarray(row, np.float32).tobytes())
        self._rows += 1

    def _write_header(self, rows: int) -> None:
        """Write the header; NumPy leaves room in it for the number of rows to grow."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __exit__(self, *error: Any) -> None:
        if self._path is None:
            return
        if error[0] is None:
            self._file.seek(0)
            self._write_header(self._rows)
        self._file.close()
        self._writing.__exit__(*error)
