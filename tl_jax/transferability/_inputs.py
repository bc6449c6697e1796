"""Validation of the inputs of scores and distances: features, labels, probabilities, and pairs of data sets."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.utils.errors import UserError

MOST_CLASSES = 1_000_000  # of a probe: more are numbers of something else, and need more memory than there is
# Squares and their sums over many features and examples stay within float32 up to the first; sixth powers, which a
# cubic kernel takes of both sides, within float64 up to the second.
LARGEST, LARGEST_DOUBLE = 1e15, float(np.finfo(np.float32).max)


def finite(x: jax.Array, what: str = "features") -> None:
    """Refuse NaN and infinity in ``x``, which the message calls ``what``."""
    if not bool(jnp.isfinite(x).all()):
        raise UserError(f"the {what} hold values that are not finite; check the network that made them")


def real(x: np.ndarray | jax.Array, what: str = "features", largest: float = LARGEST_DOUBLE) -> np.ndarray | jax.Array:
    """Return ``x`` as an array of finite real numbers up to ``largest`` in size; refuse all others."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool) or jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise UserError(f"the {what} must be real numbers, not {x.dtype}; convert them first")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    own = np if isinstance(x, np.ndarray) else jnp  # JAX would turn NumPy's float64 into float32
    if not bool(own.isfinite(x).all()):
        raise UserError(f"the {what} hold values that are not finite; check the network that made them")
    size = float(own.abs(x).max()) if x.size else 0.0
    if size > largest:
        raise UserError(f"the {what} hold values of {size:.3g}, of which powers overflow; scale them below {largest:g}")
    return x


def whole(labels: np.ndarray | jax.Array, what: str = "labels") -> np.ndarray:
    """Return labels (N,) or (N, 1) as int64 (N,), which are whole numbers from 0 on, of whichever type.

    Raises:
        UserError: other shapes, strings, fractions (as the targets of a regression have), or numbers below 0.
    """
    y = np.asarray(labels)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not y.size:
        raise UserError(f"the {what} are (N,) with one example or more, not {y.shape}")
    if not (np.issubdtype(y.dtype, np.number) or y.dtype == bool) or np.iscomplexobj(y):
        raise UserError(f"the {what} are whole numbers, not {y.dtype}; pass the index of each example's class")
    if np.issubdtype(y.dtype, np.floating):
        odd = y[~np.isfinite(y) | (y != np.floor(y))]
        if odd.size:
            raise UserError(
                f"the {what} hold {odd[0]:g}, and classes are whole numbers; pass the index of each example's class"
            )
    if y.min() < 0:
        raise UserError(f"the {what} hold {y.min():g}; classes count from 0 on, so drop the examples without one")
    if float(y.max()) >= 2**63:
        raise UserError(f"the {what} hold {y.max():g}; pass the index of each example's class")
    return y.astype(np.int64)


def labelled(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Return features as float32 (N, D), labels as int32 (N,), and K, one more than the largest label."""
    shape, given = np.shape(features), np.shape(labels)
    if len(shape) != 2 or given not in (shape[:1], (*shape[:1], 1)) or 0 in shape:
        raise UserError(f"a probe takes features (N, D) and labels (N,), not {shape} and {given}")
    x, y = jnp.asarray(real(features, largest=LARGEST), jnp.float32), whole(labels)
    classes = int(y.max()) + 1
    if classes < 2 or len(np.unique(y)) < 2:
        raise UserError(f"a probe needs labels of two classes or more, not {sorted(set(y.tolist()))[:5]}")
    if classes > MOST_CLASSES:
        raise UserError(
            f"the labels hold {classes - 1}, and a probe has an output for each class from 0 on; number the "
            "classes 0 to K - 1"
        )
    return x, jnp.asarray(y, jnp.int32), classes


def numbered(labels: np.ndarray | jax.Array, what: str = "labels") -> tuple[np.ndarray, int]:
    """Return labels as int32 (N,) from 0 on without gaps, in the order of their values, and the number of classes."""
    values, found = np.unique(whole(labels, what), return_inverse=True)
    return found.astype(np.int32), len(values)


def classified(
    features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, what: str = "features"
) -> tuple[jax.Array, jax.Array, int]:
    """Return features (N, D), labels as int32 (N,) without gaps, and K, the number of classes that have examples.

    Features of 64 bits stay so under ``jax.enable_x64``, all others become float32.
    """
    shape, given = np.shape(features), np.shape(labels)
    if len(shape) != 2 or given not in (shape[:1], (*shape[:1], 1)) or 0 in shape:
        raise UserError(f"{what} are (N, D) and labels (N,), one of each for an example, not {shape} and {given}")
    features = real(features, what)
    wide = features.dtype in (np.float64, np.int64, np.uint64)
    allowed = cast(Any, jax.config).jax_enable_x64  # JAX adds its options as it is imported
    x = jnp.asarray(features, jnp.float64 if wide and allowed else jnp.float32)
    y, classes = numbered(labels)
    if classes < 2:
        raise UserError(f"all {len(y)} labels are {whole(labels)[0]}; a score needs two classes or more")
    return x, jnp.asarray(y), classes


def probabilities(
    source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array, int]:
    """Return what ``classified`` does for rows that are distributions: none negative, each with a sum of 1 to 1e-3."""
    p, y, classes = classified(source_probs, labels, "source_probs")
    if bool((p < 0).any()):
        raise UserError(f"the source_probs hold {float(p.min()):.3g}; pass probabilities, softmax(logits)")
    sums = np.asarray(p.sum(1))
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-3:
        raise UserError(f"row {worst} of source_probs sums to {sums[worst]:.4g}, not 1; pass softmax(logits)")
    return p, y, classes


def spread(y: np.ndarray, most: int) -> np.ndarray:
    """Return the rows (min(N, most),) that stand at even steps where examples are sorted by class, in rising order.

    Each class keeps its share to within one example; which of its examples stay follows from their order alone.
    """
    if len(y) <= most:
        return np.arange(len(y))
    steps = (2 * np.arange(most) + 1) * len(y) // (2 * most)
    return np.sort(np.argsort(y, kind="stable")[steps])


Array = np.ndarray | jax.Array


def features(x: Array, name: str, least: int = 1) -> np.ndarray:
    """Return ``x`` as float64 (N, D) on the host; refuse other shapes, fewer rows, and values that are not finite."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise UserError(f"{name} must be features (N, D) of real numbers, not {x.shape} of {x.dtype}")
    if len(x) < least:
        raise UserError(f"{name} has {len(x)} example{'s' * (len(x) > 1)}, but this needs {least} or more; pass more")
    return np.asarray(real(x.astype(np.float64), f"features {name}"))


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
    return numbered(y, f"labels {name}")[0].astype(np.int64)
