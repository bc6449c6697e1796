"""95 % intervals of the metrics of one run, from its result files: how far they might lie on other test examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri  # scipy.stats has the interval, and takes 0.7 s to import

RESAMPLES = 1000  # of a bootstrap
LARGEST = 200  # classes of which confusions are resampled


def of_run(summary: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, tuple[float, float, str]]:
    """Return low end, high end and how they were found, by metric, of those whose interval is known.

    Args:
        summary: of the run.
        details: of its test part, {} where they were not written.
    """
    out: dict[str, tuple[float, float, str]] = {}
    measured, written = summary.get("metrics", {}), summary.get("intervals", {})
    if "auc" in written and written["auc"][0] is not None:
        out["auc"] = (*written["auc"], f"auc by a bootstrap over {written['over']}")
    for name, ends in summary.get("intervals95", {}).items():
        out[name] = (*ends, "by a bootstrap over people")
    if "confusion" not in details or "sentences" in details:  # words of one sentence are no independent examples
        return out
    counts = np.asarray(details["confusion"]).reshape(-1, 3)
    hits, total = int(counts[counts[:, 0] == counts[:, 1], 2].sum()), int(counts[:, 2].sum())
    if measured.get("accuracy") is not None:
        out["accuracy"] = (*wilson(hits, total), f"accuracy by Wilson's score over {total:,} examples")
    others = [name for name in ("f1", "matthews") if measured.get(name) is not None]
    if others and len(details["classes"]) <= LARGEST:
        resampled = _resampled(counts, len(details["classes"]))
        for name in others:
            low, high = np.quantile(resampled[name], (0.025, 0.975)).tolist()
            out[name] = (low, high, f"{' and '.join(others)} by a bootstrap over examples")
    return out


def wilson(hits: float, total: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927), within [0, 1]."""
    share, z = hits / total, float(ndtri(0.975))
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _resampled(counts: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Return macro F1 and Matthews' correlation (RESAMPLES,) of test parts drawn anew; confusions say all they need."""
    total = int(counts[:, 2].sum())
    drawn = np.random.default_rng(0).multinomial(total, counts[:, 2] / total, RESAMPLES)  # (R, C)
    label, found = (np.eye(size)[counts[:, column]] for column in (0, 1))  # (C, K)
    right = drawn @ (label * found)
    labelled, predicted = drawn @ label, drawn @ found
    f1 = 2 * right / np.maximum(labelled + predicted, 1)
    occurring = ((labelled + predicted) > 0).sum(1)  # as scikit-learn's macro average has it
    covariance = right.sum(1) * total - (labelled * predicted).sum(1)
    spread = (total**2 - (predicted**2).sum(1)) * (total**2 - (labelled**2).sum(1))
    return {"f1": f1.sum(1) / occurring, "matthews": covariance / np.sqrt(np.maximum(spread, 1))}
