"""Metrics of probabilities and labels: area under the ROC curve, sensitivity, calibration error, temperature."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax.metrics import Batch


class Predictions(NamedTuple):
    """Probabilities float64 (N, K) and labels int (N,) of the examples of a split, in order."""

    probabilities: np.ndarray
    labels: np.ndarray


def collect_predictions(predictions: Sequence[Any], batches: Sequence[Batch]) -> Predictions:
    """Concatenate the probabilities and labels of batches, without padding."""
    masks = [np.asarray(batch["mask"]) > 0 for batch in batches]
    probabilities = np.concatenate(
        [np.asarray(rows, np.float64)[kept] for rows, kept in zip(predictions, masks, strict=True)]
    )
    labels = np.concatenate([np.asarray(batch["label"])[kept] for batch, kept in zip(batches, masks, strict=True)])
    return Predictions(probabilities, labels)


class Bins(NamedTuple):
    """B bins of examples by the probability of the predicted class; each (B,), 0 for empty bins.

    Attributes:
        confidence: mean probability of the predicted class.
        accuracy: share of correct predictions.
        share: share of all examples.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599)."""
        return float((self.share * np.abs(self.accuracy - self.confidence)).sum())


MAX_TEMPERATURE = 20.0  # a temperature is fitted in [1 / MAX_TEMPERATURE, MAX_TEMPERATURE]


NUM_BINS = 15  # bins of the calibration error, as in Guo et al. 2017
NUM_RESAMPLES = 1000  # resamples of a bootstrap
RESAMPLE_CHUNK = 50  # resamples per step


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the area under the ROC curve: the probability that a positive example scores higher than a negative one.

    Args:
        scores: (N,), higher for positive.
        positive: bool (N,).
        weights: (..., N) of the examples; None for 1. Ties count half.

    Returns:
        (...,), NaN if all positive, or all negative, examples have no weight.
    """
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # start of each run of equal scores
    positives, negatives = (
        np.add.reduceat((weights * side)[..., order], first, axis=-1) for side in (positive, ~positive)
    )
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    with np.errstate(invalid="ignore"):
        return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))


def mean_auc(probabilities: np.ndarray, labels: np.ndarray, positive: int, weights: np.ndarray | None = None):
    """Return the area of the class ``positive`` of two, or for more classes the one-vs-rest mean.

    Args:
        probabilities: (N, K).
        labels: (N,).
        positive: class of interest, for two classes.
        weights: as in ``auc``.

    Classes with no label, or with all labels, are left out of the mean; NaN if none remains.
    """
    if probabilities.shape[1] == 2:
        return auc(probabilities[:, positive], labels == positive, weights)
    areas = [
        auc(probabilities[:, k], labels == k, weights)
        for k in range(probabilities.shape[1])
        if 0 < (labels == k).sum() < len(labels)
    ]
    return np.mean(areas, axis=0) if areas else np.array(math.nan)


def auc_interval(
    probabilities: np.ndarray, labels: np.ndarray, positive: int, groups: np.ndarray | None, seed: int = 0
):
    """Return the 95 % percentile bootstrap interval of ``mean_auc``.

    Groups are resampled if there are any (the cluster bootstrap: images of one patient are correlated), else examples.
    Resamples without one of the classes are dropped.

    Args:
        probabilities, labels, positive: as in ``mean_auc``.
        groups: (N,), or None.
        seed: random seed.
    """
    group_ids = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    weight_chunks = _resample_weights(group_ids, int(group_ids.max()) + 1, seed)
    areas = np.concatenate([mean_auc(probabilities, labels, positive, weights) for weights in weight_chunks])
    areas = areas[np.isfinite(areas)]
    return tuple(map(float, np.quantile(areas, (0.025, 0.975)))) if len(areas) else (float("nan"), float("nan"))


def _resample_weights(group_ids: np.ndarray, num_groups: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the multiplicity of each example in resamples (RESAMPLE_CHUNK, N)."""
    rng = np.random.default_rng(seed)
    for _ in range(NUM_RESAMPLES // RESAMPLE_CHUNK):
        yield rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), RESAMPLE_CHUNK)[:, group_ids]


class OperatingPoint(NamedTuple):
    """A threshold (positive if at least it), its sensitivity and its specificity."""

    threshold: float
    sensitivity: float
    specificity: float


def operating_point(scores: np.ndarray, positive: np.ndarray, specificity: float) -> OperatingPoint:
    """Return the point of the ROC curve with the highest sensitivity among those of at least ``specificity``.

    Args:
        scores: (N,), higher for positive.
        positive: bool (N,), with both values.
        specificity: in [0, 1].
    """
    from sklearn.metrics import roc_curve  # takes 1 s

    fpr, tpr, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    allowed = np.flatnonzero(fpr <= 1 - specificity + 1e-9)  # 1 - 0.9 is less than 0.1
    best = allowed[tpr[allowed].argmax()]  # the highest threshold of equal ones
    return OperatingPoint(float(thresholds[best]), float(tpr[best]), float(1 - fpr[best]))


def mean_sensitivity(probabilities: np.ndarray, labels: np.ndarray, positive: int | None, specificity: float) -> float:
    """Return the sensitivity at ``specificity`` of the class ``positive``, or the one-vs-rest mean.

    NaN if the labels have no such class, or no other.
    """
    candidates = range(probabilities.shape[1]) if positive is None else (positive,)
    present = [k for k in candidates if 0 < (labels == k).sum() < len(labels)]
    points = [operating_point(probabilities[:, k], labels == k, specificity) for k in present]
    return float(np.mean([point.sensitivity for point in points])) if points else math.nan


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> Bins:
    """Bin N examples by the largest probability of (N, K) into bins of equal width, (low, high]; 0 for empty bins."""
    confidence = probabilities.max(1)
    indices = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(indices, minlength=num_bins)
    correct = (probabilities.argmax(1) == labels).astype(np.float64)
    mean_confidence, bin_accuracy = (
        np.bincount(indices, values, num_bins) / np.maximum(counts, 1) for values in (confidence, correct)
    )
    return Bins(mean_confidence, bin_accuracy, counts / len(labels))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities (..., K) with logits divided by ``temperature``."""
    logits = np.log(np.maximum(probabilities, 1e-30)) / temperature
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def log_likelihoods(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the log probability of each label (N,), in nats, from probabilities (N, K)."""
    return np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log probability of the labels, in nats."""
    return float(-log_likelihoods(probabilities, labels).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in [0.05, 20] that minimizes ``log_loss`` (Guo et al. 2017, arXiv:1706.04599)."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return log_loss(apply_temperature(probabilities, np.exp(log_t)), labels)

    result = minimize_scalar(
        loss, bounds=(-np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(result.x))  # pyright: ignore[reportAttributeAccessIssue]  # of OptimizeResult
