"""Mean average precision: cases worked by hand, and COCO's own code fed by files."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tl_jax.metrics.detection import average_precisions, box_evaluator

pytestmark = pytest.mark.fast


def truth(*rows):
    return np.array([*rows, (0, 0, 0, 0, -1, 0)], np.float32)


def found(*rows):
    return np.array([*rows, (0, 0, 5, 5, 0, 0.0)], np.float32)  # a score of 0 is no box


A, B = (0, 0, 100, 100, 0, 0), (200, 0, 240, 40, 0, 0)
ON_A, ON_B, OFF = (0, 0, 100, 100, 0), (200, 0, 240, 40, 0), (300, 300, 340, 340, 0)
CASES = {
    "all found": ([truth(A, B)], [found((*ON_A, 0.9), (*ON_B, 0.8))], 1.0, 1.0),
    # An IoU of 0.77 counts at 0.5, 0.55, 0.6, 0.65, 0.7 and 0.75, of ten.
    "not quite": ([truth(A)], [found((0, 0, 100, 77, 0, 0.9))], 1.0, 0.6),
    # Precision is 0, 1/2, 2/3 down the list; read at the best of what follows.
    "a wrong one first": ([truth(A, B)], [found((*OFF, 0.9), (*ON_A, 0.8), (*ON_B, 0.7))], 2 / 3, 2 / 3),
    "a wrong one last": ([truth(A, B)], [found((*OFF, 0.1), (*ON_A, 0.8), (*ON_B, 0.7))], 1.0, 1.0),
    # Recall ends at a half: 51 of the 101 values at which precision is read.
    "one missed": ([truth(A, B)], [found((*ON_A, 0.8))], 51 / 101, 51 / 101),
    "another class": ([truth(A)], [found((*ON_A[:4], 1, 0.9))], 0.0, 0.0),
    "another picture": ([truth(A), truth()], [found(), found((*ON_A, 0.9))], 0.0, 0.0),
    "found twice": ([truth(A, B)], [found((*ON_A, 0.9), (*ON_A, 0.8), (*ON_B, 0.7))], (51 + 50 * 2 / 3) / 101, None),
    "on a crowd": ([truth(A, (*B[:5], 1))], [found((*ON_B, 0.9), (*ON_A, 0.8))], 1.0, 1.0),
    "nothing": ([truth(A)], [found()], 0.0, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_cases_worked_by_hand(case, capsys):
    true, boxes, at_half, mean = CASES[case]
    precision = average_precisions(true, boxes, 3)
    assert precision.shape == (10, 3) and np.isnan(precision[:, 2]).all()
    assert precision[0, 0] == pytest.approx(at_half, abs=1e-6)
    assert mean is None or precision[:, 0].mean() == pytest.approx(mean, abs=1e-6)
    assert not capsys.readouterr().out


def scattered(rng, pictures):
    """Objects, some of them crowds, and boxes near some of them, of three classes."""
    true, boxes = [], []
    for _ in range(pictures):
        low = rng.uniform(0, 60, (6, 2))
        own = np.concatenate([low, low + rng.uniform(5, 40, (6, 2))], 1)
        kinds = rng.integers(0, 3, 6)
        true.append(np.column_stack([own, kinds, rng.random(6) < 0.2]).astype(np.float32))
        near = np.concatenate([own + rng.normal(0, 2, (6, 4)), own[:2] + 9])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        kinds = np.where(rng.random(8) < 0.8, np.append(kinds, kinds[:2]), rng.integers(0, 3, 8))
        boxes.append(np.column_stack([near, kinds, rng.uniform(0.01, 1, 8)]).astype(np.float32))
    return true, boxes


def test_values_are_those_of_coco_fed_by_files(tmp_path):
    true, boxes = scattered(np.random.default_rng(0), 12)
    size = lambda row: [float(v) for v in (row[0], row[1], row[2] - row[0], row[3] - row[1])]  # noqa: E731
    rows = [(i, row) for i, own in enumerate(true) for row in own]
    content = {
        "images": [{"id": i + 1} for i in range(12)],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(3)],
        "annotations": [
            {"id": n + 1, "image_id": i + 1, "category_id": int(r[4]) + 1, "bbox": size(r), "iscrowd": int(r[5]),
             "area": size(r)[2] * size(r)[3]} for n, (i, r) in enumerate(rows)
        ],
    }  # fmt: skip
    results = [
        {"image_id": i + 1, "category_id": int(r[4]) + 1, "bbox": size(r), "score": float(r[5])}
        for i, own in enumerate(boxes)
        for r in own
    ]
    for name, rows in (("true", content), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "true.json"))
        theirs = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    halves = [{"label": np.stack(true[part]), "mask": np.ones(6)} for part in (slice(0, 6), slice(6, 12))]
    padded = [
        {"label": np.concatenate([h["label"], h["label"][:2]]), "mask": np.array([1.0] * 6 + [0] * 2)} for h in halves
    ]
    given = [np.stack([*boxes[:6], *boxes[:2]]), np.stack([*boxes[6:], *boxes[:2]])]
    evaluation = box_evaluator(("a", "b", "c"))(given, padded)
    assert evaluation.values["map"] == pytest.approx(theirs.stats[0], abs=1e-6)
    assert evaluation.values["map50"] == pytest.approx(theirs.stats[1], abs=1e-6)
    assert 0.2 < evaluation.values["map"] < evaluation.values["map50"] < 0.95
    counts = [sum(((t[:, 4] == k) & (t[:, 5] == 0)).sum() for t in true) for k in range(3)]
    assert [row["examples"] for row in evaluation.per_class.values()] == counts
    assert np.mean([row["ap"] for row in evaluation.per_class.values()]) == pytest.approx(theirs.stats[0], abs=1e-6)
