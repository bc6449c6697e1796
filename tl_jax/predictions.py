"""Predictions on user inputs: shown in the terminal, or written to a table."""

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

MAX_SHOWN = 100  # rows in the terminal
MAX_PATH = 1000  # characters of an input that may be a path
ENDINGS = (".csv", ".jsonl")
SAY_SECONDS = 10.0  # seconds between two progress lines, if there is no progress bar
Row = Mapping[str, Any]


class Prediction(NamedTuple):
    """The prediction for one input.

    Attributes:
        input: file or text.
        label: the most likely class; "" if the task has no class per input, or the input is unreadable.
        probability: probability of ``label``.
        probabilities: class -> probability for all K classes, in decreasing order.
        details: the full prediction: boxes, entities, the person of an embedding, or the ``error`` of an input.
    """

    input: str
    label: str
    probability: float
    probabilities: Mapping[str, float]
    details: Mapping[str, Any]

    def describe(self) -> str:
        """Return the prediction as a short text."""
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
    """Predictions in the order of the inputs; a notebook shows them as a table with thumbnails."""

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
    """Return the image of a prediction as HTML; "" for a text, or an unreadable file."""
    path = Path(prediction.input) if len(prediction.input) < MAX_PATH else Path()
    if "error" in prediction.details or not is_image(path) or not path.is_file():
        return ""
    try:
        return f'<img src="{thumbnail(decode_file(path))}">'
    except UserError:  # for example an image of 16 bits
        return ""


def as_prediction(row: Row, top: int | None = None) -> Prediction:
    """Convert a row of ``Task.predict``; ``top`` as in ``top_classes``."""
    probabilities = top_classes(row.get("probabilities", {}), top)
    label = next(iter(probabilities), str(row.get("person") or ""))
    return Prediction(row["input"], label, probabilities.get(label, math.nan), probabilities, row)


class Written(NamedTuple):
    """A written table: its path, numbers of inputs and of damaged inputs, and duration in seconds."""

    path: Path
    inputs: int
    damaged: int
    seconds: float


def predict(task: Task, variables: Any, inputs: Any, embeddings: bool = False) -> list[dict[str, Any]]:
    """Return the row of each input, see ``Task.predict``.

    Raises:
        UserError: no input is readable; it gives the reasons for the first ones.
    """
    rows = list(task.predict(variables, task.read_inputs(as_list(inputs)), embeddings))
    return _check_readable(rows)


def _check_readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows; raise a UserError with the reasons if none is readable."""
    errors = _errors(rows)
    if len(errors) == len(rows):
        raise combine_errors("the inputs", errors, unread(len(errors), len(rows)))
    return rows


def show(task: Task, variables: Any, inputs: Any, folder: Path) -> list[dict[str, Any]]:
    """Log the rows, write ``predictions.json`` to a folder, and draw detections there."""
    listed = task.read_inputs(as_list(inputs))
    rows = _check_readable(list(task.predict(variables, listed)))
    say(format_rows(task, rows))
    write_json(folder / "predictions.json", rows)
    if paths := task.draw_predictions(rows, listed, folder):
        say("figures: " + ", ".join(map(str, paths)))
    return rows


def format_rows(task: Task, rows: Sequence[Row]) -> str:
    """Return the first rows and a summary of the errors as text."""
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
    """Return the ``top`` most likely classes in decreasing order; all if ``top`` is None."""
    order = sorted(probabilities, key=lambda name: -probabilities[name])
    return {name: probabilities[name] for name in order[:top]}


def write(
    task: Task, variables: Any, inputs: Any, path: str | Path, top: int | None = None, embeddings: bool = False
) -> Written:
    """Write the row of each input, in order, to a table; one batch is in memory at a time.

    The row of an unreadable input has its ``error``. The other columns of a table of texts, such as ids, follow the
    input; those named like a column of predictions get the prefix ``input_``. In a .csv file, values other than numbers
    and names are JSON, and each class has a column ``probability_CLASS``; with ``top``, each rank has columns such as
    ``label_2`` and ``probability_2``. A .jsonl file has one object per line.

    Args:
        task: task of the run.
        variables: trained variables.
        inputs: see ``Task.read_inputs``.
        path: path of the table, with a suffix of ``ENDINGS``. The file appears when it is complete.
        top: keep only the ``top`` most likely classes; None for all.
        embeddings: whether to write the features of each input to ``NAME.embeddings.npy`` next to the table: float32
            (N, D), one row per row of the table, NaN for unreadable inputs.

    Raises:
        UserError: an unknown suffix, an output that is an input, no readable input, or a full disk.
    """
    inputs = as_list(inputs)
    path = check_output(path, inputs)
    listed, others = task.read_inputs(inputs), _other_columns(task, inputs, top)
    start, errors, damaged = time.monotonic(), [], 0
    matrix = path.with_name(f"{path.stem}.embeddings.npy")
    with disk.atomic_write(path) as temporary, _EmbeddingFile(matrix if embeddings else None) as embedding_file:
        # A file name need not be UTF-8.
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            columns = _columns(task, top)
            columns[1:1] = dict.fromkeys(name for row in others for name in row)
            write_row = _row_writer(file, path.suffix, columns, top)
            for i, row in enumerate(_with_progress(task.predict(variables, listed, embeddings), len(listed))):
                embedding_file.add(row.pop("embedding", None))
                if "error" in row:
                    damaged += 1
                    errors += [UserError(row["error"])] if len(errors) < MAX_SHOWN else []
                write_row({"input": row["input"], **(others[i] if others else {}), **row})
        if damaged == len(listed):
            raise combine_errors("the inputs", errors, unread(damaged, len(listed)))
    written = Written(path, len(listed), damaged, time.monotonic() - start)
    rate = f"{written.inputs:,} inputs in {written.seconds:.1f} s ({_rate(written.inputs / written.seconds)})"
    beside = f" and {matrix.name}" if embeddings else ""
    say(f"{rate}: {path}{beside}" + (f"; {unread(damaged, len(listed))}: {join_errors(errors)}" if damaged else ""))
    return written


def check_output(path: str | Path, inputs: Sequence[Any]) -> Path:
    """Return the path of a table; raise a UserError if it cannot be written."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"output {path}: unknown suffix; use {' or '.join(ENDINGS)}")
    named = [Path(os.path.expanduser(value)) for value in inputs if isinstance(value, Path) or _may_be_path(value)]
    if path.exists() and any(value.is_file() and value.samefile(path) for value in named):
        raise UserError(f"output {path}: also an input; choose another name")
    return path


def _may_be_path(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(ENDINGS)


def _other_columns(task: Task, inputs: Sequence[Any], top: int | None) -> list[dict[str, Any]]:
    """Return further columns of the inputs; those named like one of the predictions get the prefix ``input_``."""
    rows = task.input_columns(inputs) or []
    names = list(dict.fromkeys(name for row in rows for name in row))
    taken, renamed = {*_columns(task, top), *task.prediction_columns}, {}
    for name in names:
        new = name
        while new in taken or (new != name and new in names):
            new = f"input_{new}"
        taken.add(new)
        renamed[name] = new
    return [{renamed[name]: value for name, value in row.items()} for row in rows]


def _columns(task: Task, top: int | None) -> list[str]:
    """Return the column names of a CSV table."""
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
    """Return a function that writes a row to an open file."""
    if ending.lower() == ".jsonl":
        return lambda row: file.write(json.dumps(_ranked(row, top), ensure_ascii=False) + "\n")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    return lambda row: writer.writerow({name: _cell(value) for name, value in _flat(row, top).items()})


def _ranked(row: Row, top: int | None) -> dict[str, Any]:
    """Return a row with the most likely class as ``label``."""
    if "probabilities" not in row:
        return dict(row)
    kept = top_classes(row["probabilities"], top)
    label = next(iter(kept))
    others = {name: value for name, value in row.items() if name != "probabilities"}
    return {**others, "label": label, "probability": kept[label], "probabilities": kept}


def _flat(row: Row, top: int | None) -> dict[str, Any]:
    """Return a row with one column per probability."""
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
    """Yield rows with a progress bar in a terminal, else with a log line every ``SAY_SECONDS``."""
    bar = progress_bar(rows, desc="predicting", total=total, leave=False, mininterval=0.5, unit=" inputs")
    start = said = 0.0
    for number, row in enumerate(bar):
        yield row
        start = start or time.monotonic()  # excludes the first row, which includes compilation
        said = said or start
        if bar.disable and number and time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            rate = number / (said - start)
            say(f"{number + 1:,} of {total:,} inputs, {_rate(rate)}, {round((total - number - 1) / rate)} s left")


def _rate(value: float) -> str:
    """Return "1,234/s", or "0.12/s" for a slow machine."""
    return f"{value:,.0f}/s" if value >= 10 else f"{value:.2g}/s"


class _EmbeddingFile:
    """A float32 matrix (N, D) in NumPy's format, written row by row; the file appears when it is complete."""

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
        if embedding is None and not self._width:  # width still unknown
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
        """Write the header, in which NumPy leaves space for the number of rows."""
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
