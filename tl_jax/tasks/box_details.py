"""What ``test_details.json`` says of a detector: its boxes on some pictures of the test part, beside the right ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tl_jax.data.boxes import CLASS
from tl_jax.data.pictures import Split
from tl_jax.tasks.details import thumbnail

SHOWN = 6  # pictures, the first of the part
SIDE = 320  # pixels of them at the most


def of_boxes(classes: Sequence[str], part: Split, least: float, found: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return pictures with boxes as shares of their width and height.

    Args:
        classes: K names.
        part: pictures (N, H, W, C) and labels (N, M, 6), see ``data.boxes.assemble``.
        least: score of the boxes that are shown.
        found: boxes (D, 6) of each picture: x0, y0, x1, y1, class, score.
    """
    height, width = part.images.shape[1:3]
    scale = np.asarray([width, height, width, height])
    rows = []
    for i in range(min(SHOWN, len(found))):
        image, labels = part.images[np.asarray([i])][0], np.asarray(part.labels[i])
        sure = found[i][found[i][:, -1] >= least]
        rows.append(
            {
                "picture": thumbnail(image, SIDE),
                "aspect": width / height,
                "boxes": [_box(row, classes, scale) | {"score": float(row[-1])} for row in sure],
                "labels": [_box(row, classes, scale) for row in labels[labels[:, CLASS] >= 0]],
            }
        )
    return {"classes": list(classes), "least_score": least, "detections": rows}


def _box(row: np.ndarray, classes: Sequence[str], scale: np.ndarray) -> dict[str, Any]:
    return {"class": classes[int(row[CLASS])], "box": np.round(row[:4] / scale, 4).tolist()}
