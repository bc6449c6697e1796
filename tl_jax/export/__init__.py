"""Export for other users: bundles of weights, StableHLO programs, files for other libraries, and model cards."""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """Return a name of 0.1, which is supported for one release."""
    if name in ("export", "write_bundle"):
        bundle = importlib.import_module("tl_jax.export.bundle")  # it imports the tasks, which import this package
        warnings.warn(f"tl_jax.export.{name} is now tl_jax.export.bundle.{name}", DeprecationWarning, stacklevel=2)
        return getattr(bundle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
