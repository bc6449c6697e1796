"""Types that evaluations share."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Variables = Mapping[str, Any]  # {"params": ..., "batch_stats": ...}


Batch = Mapping[str, Any]  # arrays with the examples on the leading axis; "mask" (N,) is 0 where a row is padding


Sums = Mapping[str, tuple[Any, Any]]  # metric name -> (sum, count), divided once at the very end


class Evaluation(NamedTuple):
    """Metrics that need all predictions of a split at once.

    Attributes:
        values: metrics by name.
        per_class: class -> numbers by name, such as ``precision``, ``recall``, ``f1`` and ``examples``.
        missing: metrics that there is too little data for, and why.
        predictions: with their labels, as ``Task.test_details`` and ``Task.report`` take them.
    """

    values: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    missing: Mapping[str, str] = MappingProxyType({})
    predictions: Any = None
