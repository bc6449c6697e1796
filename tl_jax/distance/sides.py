"""What a distance between two data sets asks of its two sides."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.distance import checks
from tl_jax.errors import UserError

Array = np.ndarray | jax.Array


def features(x: Array, name: str, least: int = 1) -> np.ndarray:
    """Return ``x`` as float64 (N, D) on the host; refuse other shapes, fewer rows, and values that are not finite."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise UserError(f"{name} must be features (N, D) of real numbers, not {x.shape} of {x.dtype}")
    if len(x) < least:
        raise UserError(f"{name} has {len(x)} example{'s' * (len(x) > 1)}, but this needs {least} or more; pass more")
    return np.asarray(checks.real(x.astype(np.float64), f"features {name}"))


def pair(x1: Array, x2: Array, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides as float64 (N1, D) and (N2, D)."""
    a, b = features(x1, "x1", least), features(x2, "x2", least)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"x1 has {a.shape[1]} features and x2 has {b.shape[1]}; take both from the same layer of one network"
        )
    return a, b


def labels(y: Array, count: int, name: str) -> np.ndarray:
    """Return ``y`` as int (N,) in [0, K) in which no class is empty; gaps between the labels close."""
    if np.shape(y) not in ((count,), (count, 1)):
        raise UserError(f"{name} must be the labels ({count},) of {count} examples, not {np.shape(y)}")
    return checks.numbered(y, f"labels {name}")[0].astype(np.int64)
