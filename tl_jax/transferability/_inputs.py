"""Validation of the inputs of scores and distances: features, labels, probabilities, and pairs of data sets."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.utils.errors import UserError

MAX_CLASSES = 1_000_000  # of a probe: more are numbers of something else, and need more memory than there is
# Squares and their sums over many features and examples stay within float32 up to the first; sixth powers, which a
# cubic kernel takes of both sides, within float64 up to the second.
MAX_VALUE, MAX_VALUE_DOUBLE = 1e15, float(np.finfo(np.float32).max)


def check_finite(x: jax.Array, name: str = "features") -> None:
    """Refuse NaN and infinity in ``x``, which the message calls ``name``."""
    if not bool(jnp.isfinite(x).all()):
        raise UserError(f"the {name} hold values that are not finite; check the network that made them")


def as_real(
    x: np.ndarray | jax.Array, name: str = "features", max_value: float = MAX_VALUE_DOUBLE
) -> np.ndarray | jax.Array:
    """Return ``x`` as an array of finite real numbers up to ``max_value`` in size; refuse all others."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool) or jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise UserError(f"the {name} must be real numbers, not {x.dtype}; convert them first")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    xp = np if isinstance(x, np.ndarray) else jnp  # JAX would turn NumPy's float64 into float32
    if not bool(xp.isfinite(x).all()):
        raise UserError(f"the {name} hold values that are not finite; check the network that made them")
    magnitude = float(xp.abs(x).max()) if x.size else 0.0
    if magnitude > max_value:
        raise UserError(
            f"the {name} hold values of {magnitude:.3g}, of which powers overflow; scale them below {max_value:g}"
        )
    return x


def as_class_ids(labels: np.ndarray | jax.Array, name: str = "labels") -> np.ndarray:
    """Return labels (N,) or (N, 1) as int64 (N,), which are whole numbers from 0 on, of whichever type.

    Raises:
        UserError: other shapes, strings, fractions (as the targets of a regression have), or numbers below 0.
    """
    y = np.asarray(labels)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not y.size:
        raise UserError(f"the {name} are (N,) with one example or more, not {y.shape}")
    if not (np.issubdtype(y.dtype, np.number) or y.dtype == bool) or np.iscomplexobj(y):
        raise UserError(f"the {name} are whole numbers, not {y.dtype}; pass the index of each example's class")
    if np.issubdtype(y.dtype, np.floating):
        invalid = y[~np.isfinite(y) | (y != np.floor(y))]
        if invalid.size:
            raise UserError(
                f"the {name} hold {invalid[0]:g}, and classes are whole numbers; pass the index of each example's class"
            )
    if y.min() < 0:
        raise UserError(f"the {name} hold {y.min():g}; classes count from 0 on, so drop the examples without one")
    if float(y.max()) >= 2**63:
        raise UserError(f"the {name} hold {y.max():g}; pass the index of each example's class")
    return y.astype(np.int64)


def probe_inputs(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Return features as float32 (N, D), labels as int32 (N,), and K, one more than the largest label."""
    shape, label_shape = np.shape(features), np.shape(labels)
    if len(shape) != 2 or label_shape not in (shape[:1], (*shape[:1], 1)) or 0 in shape:
        raise UserError(f"a probe takes features (N, D) and labels (N,), not {shape} and {label_shape}")
    x, y = jnp.asarray(as_real(features, max_value=MAX_VALUE), jnp.float32), as_class_ids(labels)
    classes = int(y.max()) + 1
    if classes < 2 or len(np.unique(y)) < 2:
        raise UserError(f"a probe needs labels of two classes or more, not {sorted(set(y.tolist()))[:5]}")
    if classes > MAX_CLASSES:
        raise UserError(
            f"the labels hold {classes - 1}, and a probe has an output for each class from 0 on; number the "
            "classes 0 to K - 1"
        )
    return x, jnp.asarray(y, jnp.int32), classes


def contiguous_labels(labels: np.ndarray | jax.Array, name: str = "labels") -> tuple[np.ndarray, int]:
    """Return labels as int32 (N,) from 0 on without gaps, in the order of their values, and the number of classes."""
    values, class_ids = np.unique(as_class_ids(labels, name), return_inverse=True)
    return class_ids.astype(np.int32), len(values)


def score_inputs(
    features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, name: str = "features"
) -> tuple[jax.Array, jax.Array, int]:
    """Return features (N, D), labels as int32 (N,) without gaps, and K, the number of classes that have examples.

    Features of 64 bits stay so under ``jax.enable_x64``, all others become float32.
    """
    shape, label_shape = np.shape(features), np.shape(labels)
    if len(shape) != 2 or label_shape not in (shape[:1], (*shape[:1], 1)) or 0 in shape:
        raise UserError(f"{name} are (N, D) and labels (N,), one of each for an example, not {shape} and {label_shape}")
    features = as_real(features, name)
    is_double = features.dtype in (np.float64, np.int64, np.uint64)
    x64_enabled = cast(Any, jax.config).jax_enable_x64  # JAX adds its options as it is imported
    x = jnp.asarray(features, jnp.float64 if is_double and x64_enabled else jnp.float32)
    y, classes = contiguous_labels(labels)
    if classes < 2:
        raise UserError(f"all {len(y)} labels are {as_class_ids(labels)[0]}; a score needs two classes or more")
    return x, jnp.asarray(y), classes


def probability_inputs(
    source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array, int]:
    """Check ``score_inputs`` whose rows are distributions: none negative, each with a sum of 1 to within 1e-3."""
    p, y, classes = score_inputs(source_probs, labels, "source_probs")
    if bool((p < 0).any()):
        raise UserError(f"the source_probs hold {float(p.min()):.3g}; pass probabilities, softmax(logits)")
    sums = np.asarray(p.sum(1))
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-3:
        raise UserError(f"row {worst} of source_probs sums to {sums[worst]:.4g}, not 1; pass softmax(logits)")
    return p, y, classes


def stratified_rows(y: np.ndarray, max_rows: int) -> np.ndarray:
    """Return the rows (min(N, most),) that stand at even steps where examples are sorted by class, in rising order.

    Each class keeps its share to within one example; which of its examples stay follows from their order alone.
    """
    if len(y) <= max_rows:
        return np.arange(len(y))
    steps = (2 * np.arange(max_rows) + 1) * len(y) // (2 * max_rows)
    return np.sort(np.argsort(y, kind="stable")[steps])


Array = np.ndarray | jax.Array


def feature_matrix(x: Array, name: str, min_rows: int = 1) -> np.ndarray:
    """Return ``x`` as float64 (N, D) on the host; refuse other shapes, fewer rows, and values that are not finite."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise UserError(f"{name} must be features (N, D) of real numbers, not {x.shape} of {x.dtype}")
    if len(x) < min_rows:
        raise UserError(
            f"{name} has {len(x)} example{'s' * (len(x) > 1)}, but this needs {min_rows} or more; pass more"
        )
    return np.asarray(as_real(x.astype(np.float64), f"features {name}"))


def feature_pair(x1: Array, x2: Array, min_rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides as float64 (N1, D) and (N2, D)."""
    a, b = feature_matrix(x1, "x1", min_rows), feature_matrix(x2, "x2", min_rows)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"x1 has {a.shape[1]} features and x2 has {b.shape[1]}; take both from the same layer of one network"
        )
    return a, b


def dataset_labels(y: Array, count: int, name: str) -> np.ndarray:
    """Return ``y`` as int (N,) in [0, K) in which no class is empty; gaps between the labels close."""
    if np.shape(y) not in ((count,), (count, 1)):
        raise UserError(f"{name} must be the labels ({count},) of {count} examples, not {np.shape(y)}")
    return contiguous_labels(y, f"labels {name}")[0].astype(np.int64)
