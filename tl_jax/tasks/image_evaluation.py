"""What is said of a classifier of pictures beside its accuracy: while it trains, and in the end with calibration."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data.dataset import Split
from tl_jax.metrics import Batch, Evaluation, classification
from tl_jax.metrics.classification import Predictions, collect_predictions
from tl_jax.report import plots
from tl_jax.train.logging import say
from tl_jax.utils.errors import UserError, listed, nearest

NEEDS = "needs examples of the class and of others"
SHOWN = 5  # names of classes in a message


class Judging(NamedTuple):
    """What is measured.

    Attributes:
        metrics: of "auc", "sensitivity" and "ece".
        classes: K names.
        positive: number of the class whose finding counts as positive, None for each in turn.
        specificity: at which sensitivity is read off.
        calibrate: fit a temperature to the validation part.
        groups: (N,) of the test part, None where nothing is said of them.
    """

    metrics: tuple[str, ...]
    classes: tuple[str, ...]
    positive: int | None
    specificity: float
    calibrate: bool
    groups: np.ndarray | None

    @property
    def reference(self) -> int:
        """The class that stands for both where there are two."""
        return len(self.classes) - 1 if self.positive is None else self.positive


def of(config: Any, classes: tuple[str, ...], parts: Mapping[str, Split]) -> Judging | None:
    """Return what ``config`` wants to know beside accuracy, None where that is nothing.

    Raises:
        UserError: no such class, or a part on which the area under the curve says nothing.
    """
    if not (config.metrics or config.calibrate):
        return None
    positive = len(classes) - 1 if len(classes) == 2 else None
    if config.positive:
        if config.positive not in classes:
            raise UserError(f"config.positive={config.positive!r} is no class; {nearest(config.positive, classes)}")
        if len(classes) > 2 and "sensitivity" not in config.metrics:
            raise UserError(
                f"config.positive={config.positive} has no effect on the auc of {len(classes)} classes, a mean over "
                "all; add sensitivity to config.metrics, or leave it empty"
            )
        positive = classes.index(config.positive)
    for name in ("validation", "test"):
        labels = parts[name].labels
        if not len(labels) or not {"auc", "sensitivity"} & set(config.metrics):
            continue
        if len(np.unique(labels)) < 2:
            lacks = f"has examples of one class only ({classes[labels[0]]})"
        elif positive is not None and positive not in labels:
            lacks = f"has no example of {classes[positive]}"
        else:
            continue
        raise UserError(
            f"the {name} part {lacks}, on which auc and sensitivity say nothing; "
            "bring more examples, try another --config.seed, or set config.metrics='()'"
        )
    groups = parts["test"].groups
    asked = config.data.group != "none" and config.data.name in ("folder", "index") and config.data.dir
    if "auc" in config.metrics and groups is None and asked:
        say(
            "nothing says which pictures belong together (to a patient, a source): parts may share some, and intervals "
            "count each picture as new; name a column of index.csv with --config.data.group"
        )
    return Judging(tuple(config.metrics), classes, positive, config.specificity, config.calibrate, groups)


def judge(how: Judging, found: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    """Return the metrics of the probabilities (N, K) of batches, padding left out; of training that diverged none."""
    probabilities, labels = collect_predictions(found, batches)
    if not np.isfinite(probabilities).all():
        return Evaluation(
            {}, {}, dict.fromkeys(how.metrics, "needs finite probabilities"), Predictions(probabilities, labels)
        )
    make = {
        "auc": lambda: float(classification.mean_auc(probabilities, labels, how.reference)),
        "sensitivity": lambda: classification.mean_sensitivity(probabilities, labels, how.positive, how.specificity),
        "ece": lambda: classification.reliability_bins(probabilities, labels).ece,
    }
    measured = {name: make[name]() for name in how.metrics}
    values = {name: value for name, value in measured.items() if math.isfinite(value)}
    missing = dict.fromkeys(measured.keys() - values, NEEDS)
    return Evaluation(values, {}, missing | _left_out(how, values, labels), Predictions(probabilities, labels))


def _left_out(how: Judging, values: Mapping[str, float], labels: np.ndarray) -> dict[str, str]:
    """Return "auc of CLASS" and so on for the classes that a mean over classes leaves out, and why."""
    absent = [name for k, name in enumerate(how.classes) if not 0 < (labels == k).sum() < len(labels)]
    means = {"auc": len(how.classes) > 2, "sensitivity": how.positive is None}
    names, why = listed(absent, SHOWN), f"{NEEDS}; the mean leaves it out"
    return {f"{name} of {names}": why for name, mean in means.items() if mean and absent and name in values}


def report(how: Judging, tested: Predictions, validated: Predictions | None, folder: Path) -> dict[str, Any]:
    """Return what the summary says beside the metrics, and draw ``reliability.png`` in ``folder``.

    ``intervals`` has the bootstrap interval of the area under the curve, ``operating_point`` sensitivity and
    specificity on the test part at the threshold that the validation part gives, ``calibration`` the temperature with
    the errors and losses on the test part without and with it.
    """
    out: dict[str, Any] = {}
    if "auc" in how.metrics:
        span = classification.auc_interval(*tested, how.reference, how.groups)
        units = f"{len(np.unique(how.groups))} groups" if how.groups is not None else f"{len(tested.labels)} pictures"
        out["intervals"] = {"auc": span, "level": 0.95, "over": units, "resamples": classification.NUM_RESAMPLES}
        say(f"AUC on test, 95 % interval over {units}: {span[0]:.3f} to {span[1]:.3f}")
    if validated is None:
        return out
    if "sensitivity" in how.metrics and how.positive is not None:
        out["operating_point"] = _operate(how, how.positive, tested, validated)
    if how.calibrate:
        out["calibration"] = _calibrate(tested, validated, folder)
    return out


def _operate(how: Judging, positive: int, tested: Predictions, validated: Predictions) -> dict[str, Any]:
    chosen = classification.operating_point(
        validated.probabilities[:, positive], validated.labels == positive, how.specificity
    ).threshold
    found, there = tested.probabilities[:, positive] >= chosen, tested.labels == positive
    point = {"sensitivity": float(found[there].mean()), "specificity": float(1 - found[~there].mean())}
    name = how.classes[positive]
    say(f"{name} from {chosen:.3f} on (validation): sensitivity {point['sensitivity']:.3f}, "
        f"specificity {point['specificity']:.3f} on test")  # fmt: skip
    return {"positive": name, "threshold": chosen, **point}


def _calibrate(tested: Predictions, validated: Predictions, folder: Path) -> dict[str, float]:
    temperature = classification.fit_temperature(*validated)
    after = classification.apply_temperature(tested.probabilities, temperature)
    before_bins, after_bins = (classification.reliability_bins(p, tested.labels) for p in (tested.probabilities, after))
    path = plots.plot_reliability(before_bins, after_bins, temperature, folder / "reliability.png")
    bound = f" ({words})" if (words := plots.describe_bound(temperature)) else ""
    say(
        f"temperature {temperature:.3f}{bound}: calibration error {before_bins.ece:.3f} before, "
        f"{after_bins.ece:.3f} after; picture: {path}"
    )
    return {
        "temperature": temperature,
        "ece_before": before_bins.ece,
        "ece_after": after_bins.ece,
        "loss_before": classification.log_loss(*tested),
        "loss_after": classification.log_loss(after, tested.labels),
    }


def fields(how: Judging | None) -> dict[str, Any]:
    """Return the fields of a ``Task`` that measure what is wanted."""
    return {} if how is None else {"judge": functools.partial(judge, how), "report": functools.partial(report, how)}
