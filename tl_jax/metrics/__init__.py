"""Types shared by evaluations."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Variables = Mapping[str, Any]  # {"params": ..., "batch_stats": ...}


Batch = Mapping[str, Any]  # arrays with the examples on the leading axis; "mask" (N,) is 0 for padding


Sums = Mapping[str, tuple[Any, Any]]  # metric -> (sum, count), divided at the end


class Evaluation(NamedTuple):
    """Metrics that need all predictions on a split.

    Attributes:
        values: metric -> value.
        per_class: class -> numbers by name, such as ``precision``, ``recall``, ``f1`` and ``examples``.
        missing: metric -> reason, for metrics with too little data.
        predictions: predictions with labels, for ``Task.test_details`` and ``Task.report``.
    """

    values: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    missing: Mapping[str, str] = MappingProxyType({})
    predictions: Any = None
