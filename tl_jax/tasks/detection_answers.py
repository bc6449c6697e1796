"""What a trained detector finds on pictures of a user: boxes for JSON, as lines, and drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data import batches
from tl_jax.data.boxes import COLUMNS, letterbox
from tl_jax.data.decoding import decode
from tl_jax.data.folder import named
from tl_jax.data.pictures import Split
from tl_jax.report import boxes as drawing
from tl_jax.train import devices
from tl_jax.train.metrics import extract

FOLDER = "predictions"  # of drawn pictures, in that of the run


def answer(
    predict: Any,
    classes: Sequence[str],
    shape: tuple[int, int],
    least: float,
    size: int,
    variables: Any,
    inputs: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """Return for each picture its boxes in pixels of the file, the surest first, for JSON, and all of it as text.

    Args:
        predict: (variables, batch) -> boxes (N, D, 6).
        classes: K names.
        shape: (H, W) of the pictures that the detector was trained on.
        least: score of the boxes that are said.
        size: pictures at once, at most.
        variables: trained.
        inputs: picture files, and folders of such.
    """
    files = named(inputs)
    size = min(size, devices.whole(len(files)))
    found, lines = [], []
    for first in range(0, len(files), size):
        some = files[first : first + size]
        for file, own in zip(some, _boxes(predict, shape, size, variables, some), strict=True):
            rows = [_said(row, classes) for row in own if row[-1] >= least]
            found.append({"input": str(file), "boxes": rows})
            lines += [f"{file}: {len(rows)} boxes with a score of {least:g} or more", *map(_line, rows)]
    return found, "\n".join(lines)


def illustrate(classes: Sequence[str], found: Sequence[Mapping[str, Any]], run: Path) -> list[Path]:
    """Draw what was found on the pictures; write a PNG for each to ``run/predictions``."""
    out = run / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for row in found:
        name, taken = Path(row["input"]).stem, {path.stem for path in paths}
        unique = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(found) + 2))) if n not in taken)
        boxes = np.array([each["box"] for each in row["boxes"]]).reshape(-1, 4)
        numbers = [classes.index(each["class"]) for each in row["boxes"]]
        texts = [f"{each['class']} {each['score']:.2f}" for each in row["boxes"]]
        paths.append(drawing.draw(decode(Path(row["input"])), boxes, numbers, texts, out / f"{unique}.png"))
    return paths


def _boxes(predict: Any, shape: tuple[int, int], size: int, variables: Any, files: Sequence[Path]) -> list[np.ndarray]:
    """Return the boxes (D, 6) of each picture in pixels of its file."""
    pictures = [decode(file) for file in files]
    fitted, scales = zip(*(letterbox(picture, shape) for picture in pictures), strict=True)
    split = Split(np.stack(fitted), np.zeros((len(files), 1, COLUMNS), np.float32))  # nobody reads these labels
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
