"""What ``test_details.json`` says of a test part: who was taken for what, how surely, and the surest mistakes."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tl_jax.data.dataset import Pictures
from tl_jax.metrics import Batch, Evaluation, classification
from tl_jax.metrics.classification import Predictions, collect_predictions

MISTAKES = 12  # shown
SIDE = 96  # pixels: larger pictures are made smaller to this side
PAIR = " ||| "  # between the two texts of a pair, as they are shown and typed
LETTERS = 400  # of a text that is shown
POINTS = 200  # of a ROC curve, about


def keep(found: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    """Judge nothing beside the task's own metrics, and keep the probabilities."""
    return Evaluation({}, {}, predictions=collect_predictions(found, batches))


def of_pictures(
    classes: Sequence[str], images: Pictures, tested: Predictions, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what is said of a classifier of pictures.

    Args:
        classes: K names.
        images: uint8 (N, H, W, C) of the test part.
        tested: on all of them.
        names: (N,) of their files; None if they are no files.
    """

    def shown(i: int) -> dict[str, Any]:
        file = {"file": names[i]} if names is not None else {}
        return {**file, "picture": thumbnail(images[np.asarray([i])][0])}

    return of_classes(classes, tested, shown)


def of_texts(
    classes: Sequence[str], texts: Sequence[Any], rows: np.ndarray | None, tested: Predictions
) -> dict[str, Any]:
    """Return what is said of a classifier of texts.

    Args:
        classes: K names.
        texts: (N,) of the test part, each one or two.
        rows: (N,) of the texts in the order they were tested in; None for their own.
        tested: on all of them.
    """

    def shown(i: int) -> dict[str, Any]:
        text = texts[i if rows is None else rows[i]]
        return {"text": clipped(text if isinstance(text, str) else PAIR.join(text))}

    return of_classes(classes, tested, shown, rows)


def of_tags(
    classes: Sequence[str], texts: Sequence[Any], rows: np.ndarray, labels: list[list[str]], found: list[list[str]]
) -> dict[str, Any]:
    """Return confusions of single tags, and the sentences with the most wrong ones.

    Args:
        classes: K tags.
        texts: (N,) lists of words.
        rows: (N,) of the sentences in the order they were tested in.
        labels, found: tags of the words of each sentence, up to where it was cut.
    """
    pairs = [(a, b) for own, each in zip(labels, found, strict=True) for a, b in zip(own, each, strict=True)]
    if not pairs:
        return {}
    numbers = np.asarray([(classes.index(a), classes.index(b)) for a, b in pairs])
    wrong = [sum(a != b for a, b in zip(own, each, strict=True)) for own, each in zip(labels, found, strict=True)]
    worst = np.argsort(-np.asarray(wrong), kind="stable")[: min(MISTAKES, sum(n > 0 for n in wrong))]
    return {
        "classes": list(classes),
        "examples": len(pairs),
        "confusion": confusion(*numbers.T),
        "sentences": [
            {"words": list(zip(texts[int(rows[i])], labels[i], found[i], strict=False)), "wrong": wrong[i]}
            for i in worst
        ],
    }


def of_classes(
    classes: Sequence[str],
    tested: Predictions,
    show: Callable[[int], dict[str, Any]],
    rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return confusions, calibration, the ROC of two classes, and the mistakes, each with what ``show`` gives of it.

    ``right`` has a "1" for each example that is classified rightly and a "0" for each other, in the order of the test
    part, so that runs can be compared example by example; ``rows`` (N,) are the examples in the order they were tested
    in, None for their own.
    """
    probabilities, labels = tested
    if not len(labels) or not np.isfinite(probabilities).all():
        return {}
    found = probabilities.argmax(1)
    bins = classification.reliability_bins(probabilities, labels)
    out = {
        "classes": list(classes),
        "examples": len(labels),
        "confusion": confusion(labels, found),
        "right": "".join(map(str, _in_order((found == labels).astype(int), rows))),
        "calibration": {"ece": bins.ece, **{name: getattr(bins, name).tolist() for name in bins._fields}},
    }
    if probabilities.shape[1] == 2 and 0 < (labels == 1).sum() < len(labels):
        out["roc"] = {"positive": classes[1], **_roc(probabilities[:, 1], labels == 1)}
    sure = np.where(found == labels, -1.0, probabilities.max(1))
    worst = np.argsort(-sure, kind="stable")[: min(MISTAKES, int((found != labels).sum()))]
    out["mistakes"] = [
        {
            "label": classes[int(labels[i])],
            "prediction": classes[int(found[i])],
            "probability": float(sure[i]),
            **show(int(i)),
        }
        for i in worst
    ]
    return out


def _in_order(values: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    out = values.copy()
    out[slice(None) if rows is None else rows] = values
    return out


def confusion(labels: np.ndarray, found: np.ndarray) -> list[list[int]]:
    """Return rows (label, prediction, number of examples) of what occurs, by label."""
    pairs, counts = np.unique(np.stack([labels, found], 1), axis=0, return_counts=True)
    return [[int(label), int(k), int(n)] for (label, k), n in zip(pairs, counts, strict=True)]


def _roc(confidence: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import roc_curve  # takes a second

    fpr, tpr, _ = roc_curve(positive, confidence)
    kept = np.unique(np.linspace(0, len(fpr) - 1, min(POINTS, len(fpr))).astype(int))
    return {
        "fpr": fpr[kept].tolist(),
        "tpr": tpr[kept].tolist(),
        "auc": float(classification.auc(confidence, positive)),
    }


def clipped(text: str) -> str:
    """Return a text, or its beginning."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def thumbnail(image: np.ndarray, side: int = SIDE) -> str:
    """Return a picture uint8 (H, W, C), C 1 or 3, at most ``side`` pixels wide and high, as a data URI."""
    image = np.clip(image, 0, 255).astype(np.uint8)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    kind = "PNG" if max(picture.size) <= SIDE else "JPEG"  # small ones may be drawn, whose edges JPEG would blur
    picture.save(buffer, kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
