"""Content of ``test_details.json``: confusions, calibration, ROC curve and the most confident mistakes."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tl_jax.data.dataset import Images
from tl_jax.metrics import Batch, Evaluation, classification
from tl_jax.metrics.classification import Predictions, collect_predictions

MAX_MISTAKES = 12  # in test_details.json
SIDE = 96  # pixels; larger images are scaled down to this side
PAIR = " ||| "  # separates the two texts of a pair in input and output
MAX_CHARS = 400  # per displayed text
MAX_POINTS = 200  # approximate number of points of a ROC curve


def score_examples(predictions: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    """Keep the probabilities, without further metrics."""
    return Evaluation({}, {}, predictions=collect_predictions(predictions, batches))


def image_details(
    classes: Sequence[str],
    images: Images,
    scored_examples: Predictions,
    names: Sequence[str] | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the test details of an image classifier.

    Args:
        classes: K names.
        images: uint8 (N, H, W, C) of the test split.
        scored_examples: predictions for all of them.
        names: (N,) file names; None if the images are not files.
        groups: (N,) group names, such as patients; None if unknown.
    """

    def show_image(i: int) -> dict[str, Any]:
        file = {"file": names[i]} if names is not None else {}
        return {**file, "picture": thumbnail(images[np.asarray([i])][0])}

    details = class_details(classes, scored_examples, show_image)
    if details and groups is not None:
        details["groups"] = np.unique(groups, return_inverse=True)[1].tolist()
    return details


def text_details(
    classes: Sequence[str], texts: Sequence[Any] | np.ndarray, rows: np.ndarray | None, scored_examples: Predictions
) -> dict[str, Any]:
    """Return the test details of a text classifier.

    Args:
        classes: K names.
        texts: (N,) of the test split, each a text or a pair.
        rows: (N,) indices of the texts in evaluation order; None if unchanged.
        scored_examples: predictions for all of them.
    """

    def show_text(i: int) -> dict[str, Any]:
        text = texts[i if rows is None else rows[i]]
        return {"text": clip_text(text if isinstance(text, str) else PAIR.join(text))}

    return class_details(classes, scored_examples, show_text, rows)


def tag_details(
    classes: Sequence[str],
    texts: Sequence[Any] | np.ndarray,
    rows: np.ndarray,
    labels: list[list[str]],
    predictions: list[list[str]],
) -> dict[str, Any]:
    """Return the confusions of single tags, and the sentences with the most wrong tags.

    Args:
        classes: K tags.
        texts: (N,) lists of words.
        rows: (N,) indices of the sentences in evaluation order.
        labels, predictions: tags of the words of each sentence, truncated like it.
    """
    pairs = [
        (a, b)
        for true, predicted in zip(labels, predictions, strict=True)
        for a, b in zip(true, predicted, strict=True)
    ]
    if not pairs:
        return {}
    class_pairs = np.asarray([(classes.index(a), classes.index(b)) for a, b in pairs])
    num_wrong = [
        sum(a != b for a, b in zip(true, predicted, strict=True))
        for true, predicted in zip(labels, predictions, strict=True)
    ]
    most_wrong = np.argsort(-np.asarray(num_wrong), kind="stable")[: min(MAX_MISTAKES, sum(n > 0 for n in num_wrong))]
    return {
        "classes": list(classes),
        "examples": len(pairs),
        "confusion": confusion(*class_pairs.T),
        "sentences": [
            {"words": list(zip(texts[int(rows[i])], labels[i], predictions[i], strict=False)), "wrong": num_wrong[i]}
            for i in most_wrong
        ],
    }


def class_details(
    classes: Sequence[str],
    scored_examples: Predictions,
    show: Callable[[int], dict[str, Any]],
    rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return confusions, calibration, the ROC curve for two classes, and the mistakes, described by ``show``.

    ``right`` has a "1" for each correct example and a "0" for each other, in the order of the test split, so that runs
    can be compared example by example. ``rows`` (N,) are the example indices in evaluation order; None if unchanged.
    """
    probabilities, labels = scored_examples
    if not len(labels) or not np.isfinite(probabilities).all():
        return {}
    predictions = probabilities.argmax(1)
    bins = classification.reliability_bins(probabilities, labels)
    result = {
        "classes": list(classes),
        "examples": len(labels),
        "confusion": confusion(labels, predictions),
        "right": "".join(map(str, _in_split_order((predictions == labels).astype(int), rows))),
        "calibration": {"ece": bins.ece, **{name: getattr(bins, name).tolist() for name in bins._fields}},
    }
    if probabilities.shape[1] == 2 and 0 < (labels == 1).sum() < len(labels):
        result["roc"] = {"positive": classes[1], **_roc_points(probabilities[:, 1], labels == 1)}
    error_confidence = np.where(predictions == labels, -1.0, probabilities.max(1))
    count = min(MAX_MISTAKES, int((predictions != labels).sum()))
    most_confident = np.argsort(-error_confidence, kind="stable")[:count]
    result["mistakes"] = [
        {
            "label": classes[int(labels[i])],
            "prediction": classes[int(predictions[i])],
            "probability": float(error_confidence[i]),
            **show(int(i)),
        }
        for i in most_confident
    ]
    return result


def _in_split_order(values: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    out = values.copy()
    out[slice(None) if rows is None else rows] = values
    return out


def confusion(labels: np.ndarray, predictions: np.ndarray) -> list[list[int]]:
    """Return the nonzero entries of the confusion matrix as rows (label, prediction, count), by label."""
    pairs, counts = np.unique(np.stack([labels, predictions], 1), axis=0, return_counts=True)
    return [[int(label), int(k), int(n)] for (label, k), n in zip(pairs, counts, strict=True)]


def _roc_points(confidence: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import roc_curve  # importing takes a second

    fpr, tpr, _ = roc_curve(positive, confidence)
    points = np.unique(np.linspace(0, len(fpr) - 1, min(MAX_POINTS, len(fpr))).astype(int))
    return {
        "fpr": fpr[points].tolist(),
        "tpr": tpr[points].tolist(),
        "auc": float(classification.auc(confidence, positive)),
    }


def clip_text(text: str) -> str:
    """Truncate a text to ``MAX_CHARS``."""
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"


def thumbnail(image: np.ndarray, side: int = SIDE) -> str:
    """Return an image uint8 (H, W, C), C 1 or 3, scaled down to at most ``side`` pixels, as a data URI."""
    image = np.clip(image, 0, 255).astype(np.uint8)
    pil_image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    pil_image.thumbnail((side, side))
    buffer = io.BytesIO()
    # Small images may be drawings, whose edges JPEG would blur.
    image_format = "PNG" if max(pil_image.size) <= SIDE else "JPEG"
    pil_image.save(buffer, image_format, **({"optimize": True} if image_format == "PNG" else {"quality": 85}))
    return f"data:image/{image_format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
