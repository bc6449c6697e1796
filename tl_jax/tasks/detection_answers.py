"""What a trained detector finds on pictures of a user: boxes for JSON, as lines, and drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data import batches
from tl_jax.data.boxes import COLUMNS, letterbox
from tl_jax.data.decoding import Decoding, decode
from tl_jax.data.folder import named
from tl_jax.data.pictures import Split
from tl_jax.report import boxes as drawing
from tl_jax.tasks import file_answers
from tl_jax.train import devices
from tl_jax.train.metrics import extract

FOLDER = "predictions"  # of drawn pictures, in that of the run


def answer(
    predict: Any,
    classes: Sequence[str],
    shape: tuple[int, int],
    least: float,
    decoding: Decoding,
    size: int,
    variables: Any,
    inputs: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """Return for each picture its boxes, the surest first, for JSON, and all of it as text.

    Boxes are in pixels of the picture the right way up, as its EXIF orientation says. A file that cannot be read has
    its error instead; where that is every file, it is a UserError.

    Args:
        predict: (variables, batch) -> boxes (N, D, 6).
        classes: K names.
        shape: (H, W) of the pictures that the detector was trained on.
        least: score of the boxes that are said.
        decoding: how files become pixels, as in training.
        size: pictures at once, at most.
        variables: trained.
        inputs: picture files, and folders of such.
    """
    files = named(inputs, decoding.outside)
    size = min(size, devices.whole(len(files)))
    found, lines, errors = {}, [], []
    for some, pictures in file_answers.decoded(files, decoding, size, errors):
        for file, own in zip(some, _boxes(predict, shape, size, variables, pictures), strict=True):
            rows = [_said(row, classes) for row in own if row[-1] >= least]
            found[file] = {"boxes": rows}
            lines += [f"{file}: {len(rows)} boxes with a score of {least:g} or more", *map(_line, rows)]
    return file_answers.rows(files, found, errors), "\n".join([*lines, *file_answers.summary(files, errors)])


def illustrate(classes: Sequence[str], decoding: Decoding, found: Sequence[Mapping[str, Any]], run: Path) -> list[Path]:
    """Draw what was found on the pictures; write a PNG for each that could be read to ``run/predictions``."""
    out = run / FOLDER
    paths: list[Path] = []
    for row in found:
        if "error" in row:
            continue
        name, taken = Path(row["input"]).stem, {path.stem for path in paths}
        unique = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(found) + 2))) if n not in taken)
        boxes = np.array([each["box"] for each in row["boxes"]]).reshape(-1, 4)
        numbers = [classes.index(each["class"]) for each in row["boxes"]]
        texts = [f"{each['class']} {each['score']:.2f}" for each in row["boxes"]]
        paths.append(drawing.draw(decode(Path(row["input"]), decoding), boxes, numbers, texts, out / f"{unique}.png"))
    return paths


def _boxes(
    predict: Any, shape: tuple[int, int], size: int, variables: Any, pictures: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the boxes (D, 6) of each picture in its pixels."""
    fitted, scales = zip(*(letterbox(picture, shape) for picture in pictures), strict=True)
    split = Split(np.stack(fitted), np.zeros((len(pictures), 1, COLUMNS), np.float32))  # nobody reads these labels
    found = extract(predict, variables, batches.eval_batches(split, size)).astype(np.float64)
    for own, picture, scale in zip(found, pictures, scales, strict=True):
        height, width = picture.shape[:2]
        own[:, :4] = np.clip(own[:, :4] / scale, 0, [width, height, width, height])
    return list(found)


def _said(row: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "class": classes[int(row[4])],
        "score": round(float(row[5]), 4),
        "box": [round(v, 1) for v in row[:4].tolist()],
    }


def _line(row: Mapping[str, Any]) -> str:
    return f"  {row['class']}  {row['score']:.3f}  " + " ".join(f"{value:.1f}" for value in row["box"])
