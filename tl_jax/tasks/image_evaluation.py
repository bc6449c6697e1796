"""Metrics of image classifiers besides accuracy, during training, and calibration after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import dicom, registry
from tl_jax.data.dataset import Split
from tl_jax.metrics import Batch, Evaluation, classification
from tl_jax.metrics.classification import Predictions, collect_predictions
from tl_jax.report import plots
from tl_jax.train.logging import say, warn
from tl_jax.utils.errors import UserError, join_names, nearest

METRICS = ("auc", "sensitivity", "ece")  # besides accuracy
NEEDS = "needs examples of the class and of others"
MAX_NAMES = 5  # class names per message


class EvaluationSettings(NamedTuple):
    """Metrics to compute besides accuracy.

    Attributes:
        metrics: any of "auc", "sensitivity" and "ece".
        classes: K names.
        positive: index of the positive class; None for each class in turn.
        specificity: specificity at which sensitivity is measured.
        calibrate: whether to fit a temperature to the validation split.
        groups: (N,) groups of the test examples; None if unknown.
    """

    metrics: tuple[str, ...]
    classes: tuple[str, ...]
    positive: int | None
    specificity: float
    calibrate: bool
    groups: np.ndarray | None

    @property
    def reference(self) -> int:
        """The positive class of a binary problem."""
        return len(self.classes) - 1 if self.positive is None else self.positive


def conflicts(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    """Return the conflicts of metrics and of image reading options.

    Raises:
        UserError: A window is invalid.
    """
    dicom.parse_windows(config.data.windows)
    data, unknown = config.data, [name for name in config.metrics if name not in METRICS]
    grouped, windowed = (", ".join(registry.names("images", field)) for field in ("group", "windows"))
    return {
        f"metrics has the unknown {(unknown or [''])[0]!r}; choose from {', '.join(METRICS)}": unknown,
        "score=auc needs auc in config.metrics": config.score == "auc" and "auc" not in config.metrics,
        "specificity has an effect with sensitivity in config.metrics only": (
            changed("specificity") and "sensitivity" not in config.metrics
        ),
        "positive has an effect with auc or sensitivity in config.metrics only": (
            config.positive and not {"auc", "sensitivity"} & set(config.metrics)
        ),
        "calibrate needs a validation split; raise config.data.validation": config.calibrate and not data.validation,
        f"data.group has an effect with config.data.name={grouped} only": (
            data.group and registry.ignores("images", data.name, "group")
        ),
        f"data.windows has an effect with config.data.name={windowed} only, whose files may be DICOM": (
            changed("data.windows") and registry.ignores("images", data.name, "windows")
        ),
    }


def read_settings(config: Any, classes: tuple[str, ...], splits: Mapping[str, Split]) -> EvaluationSettings | None:
    """Return the metrics of ``config`` besides accuracy; None if there are none.

    Raises:
        UserError: The positive class is unknown, or a split lacks examples that the metrics need.
    """
    if not (config.metrics or config.calibrate):
        return None
    positive = len(classes) - 1 if len(classes) == 2 else None
    if config.positive:
        if config.positive not in classes:
            raise UserError(f"config.positive={config.positive!r} is not a class; {nearest(config.positive, classes)}")
        if len(classes) > 2 and "sensitivity" not in config.metrics:
            raise UserError(
                f"config.positive={config.positive} has no effect on the auc of {len(classes)} classes, a mean over "
                "all; add sensitivity to config.metrics, or leave it empty"
            )
        positive = classes.index(config.positive)
    for name in ("validation", "test"):
        labels = splits[name].labels
        if not len(labels) or not {"auc", "sensitivity"} & set(config.metrics):
            continue
        if len(np.unique(labels)) < 2:
            problem = f"has examples of one class only ({classes[labels[0]]})"
        elif positive is not None and positive not in labels:
            problem = f"has no example of {classes[positive]}"
        else:
            continue
        raise UserError(
            f"the {name} split {problem}, so auc and sensitivity are undefined; "
            "add examples, try another config.seed, or set config.metrics='()'"
        )
    groups = splits["test"].groups
    entry = registry.find("images", config.data.name)
    is_grouped = entry is not None and bool(entry.layout) and "group" in entry.fields
    expects_groups = config.data.group != "none" and is_grouped and config.data.dir
    if "auc" in config.metrics and groups is None and expects_groups:
        warn(
            "no grouping column is given: images of one patient (or source) may be in several splits, and intervals "
            "assume independent images; set config.data.group to a column of index.csv"
        )
    return EvaluationSettings(tuple(config.metrics), classes, positive, config.specificity, config.calibrate, groups)


def evaluate_predictions(
    settings: EvaluationSettings, predictions: Sequence[Any], batches: Sequence[Batch]
) -> Evaluation:
    """Return the metrics of batched probabilities (N, K) without padding; empty if they are not finite."""
    probabilities, labels = collect_predictions(predictions, batches)
    if not np.isfinite(probabilities).all():
        return Evaluation(
            {}, {}, dict.fromkeys(settings.metrics, "needs finite probabilities"), Predictions(probabilities, labels)
        )
    functions = {
        "auc": lambda: float(classification.mean_auc(probabilities, labels, settings.reference)),
        "sensitivity": lambda: classification.mean_sensitivity(
            probabilities, labels, settings.positive, settings.specificity
        ),
        "ece": lambda: classification.reliability_bins(probabilities, labels).ece,
    }
    measured = {name: functions[name]() for name in settings.metrics}
    values = {name: value for name, value in measured.items() if math.isfinite(value)}
    missing = dict.fromkeys(measured.keys() - values, NEEDS)
    return Evaluation(
        values, {}, missing | _missing_classes(settings, values, labels), Predictions(probabilities, labels)
    )


def _missing_classes(settings: EvaluationSettings, values: Mapping[str, float], labels: np.ndarray) -> dict[str, str]:
    """Return "auc of CLASS" etc. for the classes that a mean over classes omits, with the reason."""
    absent = [name for k, name in enumerate(settings.classes) if not 0 < (labels == k).sum() < len(labels)]
    is_mean = {"auc": len(settings.classes) > 2, "sensitivity": settings.positive is None}
    names, reason = join_names(absent, MAX_NAMES), f"{NEEDS}; the mean omits it"
    return {f"{name} of {names}": reason for name, mean in is_mean.items() if mean and absent and name in values}


def report_calibration(
    settings: EvaluationSettings, test: Predictions, validation: Predictions | None, folder: Path
) -> dict[str, Any]:
    """Return the summary entries besides the metrics, and draw ``reliability.png`` into ``folder``.

    ``intervals`` has the bootstrap interval of the AUC. ``operating_point`` has sensitivity and specificity on the test
    split at the threshold chosen on validation. ``calibration`` has the temperature, and the calibration errors and
    losses on the test split with and without it.
    """
    result: dict[str, Any] = {}
    if "auc" in settings.metrics:
        interval = classification.auc_interval(*test, settings.reference, settings.groups)
        groups = settings.groups
        units = f"{len(test.labels)} images" if groups is None else f"{len(np.unique(groups))} groups"
        result["intervals"] = {"auc": interval, "level": 0.95, "over": units, "resamples": classification.NUM_RESAMPLES}
        say(f"AUC on test, 95 % interval over {units}: {interval[0]:.3f} to {interval[1]:.3f}")
    if validation is None:
        return result
    if "sensitivity" in settings.metrics and settings.positive is not None:
        result["operating_point"] = _operating_point(settings, settings.positive, test, validation)
    if settings.calibrate:
        result["calibration"] = calibrate(test, validation, folder)
    return result


def report_elsewhere(test: Predictions, classes: tuple[str, ...], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results on another dataset at the run's threshold and temperature.

    ``operating_point`` has sensitivity and specificity; ``calibration`` has error and loss with and without the
    temperature. Each is present only if the run has fitted such a value.
    """
    result: dict[str, Any] = {}
    point, temperature = summary.get("operating_point"), summary.get("calibration", {}).get("temperature")
    if point:
        k = classes.index(point["positive"])
        predicted, actual = test.probabilities[:, k] >= point["threshold"], test.labels == k
        shares = {"sensitivity": predicted[actual], "specificity": ~predicted[~actual]}
        result["operating_point"] = {name: point[name] for name in ("positive", "threshold")} | {
            name: float(hits.mean()) if len(hits) else None for name, hits in shares.items()
        }
    if temperature is not None:
        result["calibration"] = calibration_scores(test, temperature)
    return result


def _operating_point(
    settings: EvaluationSettings, positive: int, test: Predictions, validation: Predictions
) -> dict[str, Any]:
    threshold = classification.operating_point(
        validation.probabilities[:, positive], validation.labels == positive, settings.specificity
    ).threshold
    predicted, actual = test.probabilities[:, positive] >= threshold, test.labels == positive
    point = {"sensitivity": float(predicted[actual].mean()), "specificity": float(1 - predicted[~actual].mean())}
    name = settings.classes[positive]
    say(f"{name} at threshold {threshold:.3f} (from validation): sensitivity {point['sensitivity']:.3f}, "
        f"specificity {point['specificity']:.3f} on test")  # fmt: skip
    return {"positive": name, "threshold": threshold, **point}


def calibration_scores(test: Predictions, temperature: float) -> dict[str, float]:
    """Return the calibration error and loss with and without a temperature."""
    calibrated = classification.apply_temperature(test.probabilities, temperature)
    return {
        "temperature": temperature,
        "ece_before": classification.reliability_bins(test.probabilities, test.labels).ece,
        "ece_after": classification.reliability_bins(calibrated, test.labels).ece,
        "loss_before": classification.log_loss(*test),
        "loss_after": classification.log_loss(calibrated, test.labels),
    }


def calibrate(test: Predictions, validation: Predictions, folder: Path) -> dict[str, float]:
    """Fit a temperature to validation and draw ``reliability.png``; return the temperature and the test scores."""
    temperature = classification.fit_temperature(*validation)
    calibrated = classification.apply_temperature(test.probabilities, temperature)
    before_bins, after_bins = (
        classification.reliability_bins(p, test.labels) for p in (test.probabilities, calibrated)
    )
    path = plots.plot_reliability(before_bins, after_bins, temperature, folder / "reliability.png")
    bound = f" ({words})" if (words := plots.describe_bound(temperature)) else ""
    say(
        f"temperature {temperature:.3f}{bound}: calibration error {before_bins.ece:.3f} before, "
        f"{after_bins.ece:.3f} after; wrote {path}"
    )
    return calibration_scores(test, temperature)
