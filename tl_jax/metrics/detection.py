"""Mean average precision of boxes, computed with COCO's own code."""

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tl_jax.data.detection import CLASS, CROWD
from tl_jax.metrics import Batch, Evaluation
from tl_jax.metrics.sequence import Evaluator
from tl_jax.utils.errors import join_names
from tl_jax.utils.extras import require_extra

ALL_SIZES, MAX_DETECTIONS = 0, -1  # indices of COCO's areas and numbers of boxes: every size, 100 boxes per image
MAX_LISTED = 5  # class names in a message


def box_evaluator(classes: Sequence[str]) -> Evaluator:
    """Return the evaluator of boxes (N, D, 6), rows (x0, y0, x1, y1, class, score), against labels (N, M, 6).

    ``map`` is the mean over occurring classes of the average precision, itself a mean over IoU thresholds of 0.5 to
    0.95 in steps of 0.05; ``map50`` is that at 0.5. Precision is sampled at 101 values of recall. Crowds are ignored.
    """
    return functools.partial(_evaluate_boxes, tuple(classes))


def _evaluate_boxes(classes: tuple[str, ...], predictions: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    truth, boxes = [], []
    for rows, batch in zip(predictions, batches, strict=True):
        real = np.asarray(batch["mask"]) > 0
        truth += list(np.asarray(batch["label"])[real])
        boxes += list(np.asarray(rows)[real])
    precision = average_precisions(truth, boxes, len(classes))  # (T, K)
    known = np.isfinite(precision[0])
    values = {"map": float(precision[:, known].mean()), "map50": float(precision[0, known].mean())}
    counts = [
        sum(int(((row[:, CLASS] == k) & (row[:, CROWD] == 0)).sum()) for row in truth) for k in range(len(classes))
    ]
    per_class = {
        name: {"ap": float(precision[:, k].mean()), "ap50": float(precision[0, k]), "examples": float(counts[k])}
        for k, name in enumerate(classes)
        if known[k]
    }
    absent = [name for k, name in enumerate(classes) if not known[k]]
    reason = "needs objects of the class, so the mean does not include it"
    missing = {f"map of {join_names(absent, MAX_LISTED)}": reason} if absent else {}
    return Evaluation(values, per_class, missing, boxes)


def average_precisions(truth: Sequence[np.ndarray], boxes: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Return the average precision (10, K) at IoU 0.5, 0.55, ..., 0.95; NaN for a class without objects.

    Args:
        truth: labels (M, 6) of each image, see ``data.detection.build_dataset``.
        boxes: boxes (D, 6) of each image; a score of 0 is padding.
        num_classes: K.
    """
    with require_extra("detection"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    with _silence_stdout():
        coco: Any = COCO()  # annotated for a data set read from a file
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": k} for k in range(num_classes)],
            "annotations": [
                {"id": i, **row} for i, row in enumerate(_truth_rows(truth), start=1)
            ],  # pycocotools ignores the id 0
        }
        coco.createIndex()
        detections = list(_detection_rows(boxes))
        if not detections:
            present = {row["category_id"] for row in coco.dataset["annotations"] if not row["iscrowd"]}
            return np.stack([np.where([k in present for k in range(num_classes)], 0.0, np.nan)] * 10)
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, ALL_SIZES, MAX_DETECTIONS]  # (T, recalls, K)
    return np.where(precision > -1, precision, np.nan).mean(1)


def _truth_rows(truth: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    for image, rows in enumerate(truth):
        for row in rows[rows[:, CLASS] >= 0].astype(float):
            box = _coco_box(row)
            yield {
                "image_id": image,
                "category_id": int(row[CLASS]),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(row[CROWD]),
            }


def _detection_rows(boxes: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    for image, rows in enumerate(boxes):
        for row in rows[rows[:, -1] > 0].astype(float):
            yield {"image_id": image, "category_id": int(row[CLASS]), "bbox": _coco_box(row), "score": row[-1]}


def _coco_box(row: np.ndarray) -> list[float]:
    """Return a box in COCO's format: x, y, width, height."""
    return [row[0], row[1], row[2] - row[0], row[3] - row[1]]


@contextlib.contextmanager
def _silence_stdout() -> Iterator[None]:
    """Suppress the output of pycocotools at every step."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
