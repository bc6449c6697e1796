"""Input validation of scores and distances: features, labels, probabilities, and pairs of datasets."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.utils.errors import UserError

MAX_CLASSES = 1_000_000  # of a probe; larger labels are not class indices, and would exhaust memory
# Up to the first limit, sums of squares over many features and examples fit into float32. Up to the second, sixth
# powers, as a cubic kernel takes of both sides, fit into float64.
MAX_VALUE, MAX_VALUE_DOUBLE = 1e15, float(np.finfo(np.float32).max)


def check_finite(x: jax.Array, name: str = "features") -> None:
    """Raise UserError if ``x`` has NaN or infinite values; ``name`` is for the message."""
    if not bool(jnp.isfinite(x).all()):
        raise UserError(f"{name}: values are not finite; check the network that computed them")


def as_real(
    x: np.ndarray | jax.Array, name: str = "features", max_value: float = MAX_VALUE_DOUBLE
) -> np.ndarray | jax.Array:
    """Return ``x`` as an array of finite real numbers of magnitude up to ``max_value``. Raises UserError otherwise."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool) or jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise UserError(f"{name}: must be real numbers, not {x.dtype}; convert them first")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    xp = np if isinstance(x, np.ndarray) else jnp  # JAX would convert NumPy's float64 to float32
    if not bool(xp.isfinite(x).all()):
        raise UserError(f"{name}: values are not finite; check the network that computed them")
    magnitude = float(xp.abs(x).max()) if x.size else 0.0
    if magnitude > max_value:
        raise UserError(f"{name}: powers of values up to {magnitude:.3g} overflow; scale them below {max_value:g}")
    return x


def as_class_ids(labels: np.ndarray | jax.Array, name: str = "labels") -> np.ndarray:
    """Return whole-numbered labels (N,) or (N, 1) of any dtype as int64 (N,).

    Raises:
        UserError: The shape is wrong, or labels are strings, fractions (such as regression targets) or negative.
    """
    y = np.asarray(labels)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not y.size:
        raise UserError(f"{name}: shape must be (N,) with at least one example, not {y.shape}; pass one per example")
    if not (np.issubdtype(y.dtype, np.number) or y.dtype == bool) or np.iscomplexobj(y):
        raise UserError(f"{name}: must be whole numbers, not {y.dtype}; pass the index of each example's class")
    if np.issubdtype(y.dtype, np.floating):
        invalid = y[~np.isfinite(y) | (y != np.floor(y))]
        if invalid.size:
            raise UserError(
                f"{name}: must be whole numbers, not {invalid[0]:g}; pass the index of each example's class"
            )
    if y.min() < 0:
        raise UserError(f"{name}: {y.min():g} is negative; drop the examples without a class")
    if float(y.max()) >= 2**63:
        raise UserError(f"{name}: {y.max():g} is too large; pass the index of each example's class")
    return y.astype(np.int64)


def probe_inputs(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Return features as float32 (N, D), labels as int32 (N,), and K, the largest label plus 1."""
    shape, label_shape = np.shape(features), np.shape(labels)
    if len(shape) != 2 or label_shape not in (shape[:1], (*shape[:1], 1)) or 0 in shape:
        raise UserError(f"probe: got features {shape} and labels {label_shape}; pass (N, D) and (N,)")
    x, y = jnp.asarray(as_real(features, max_value=MAX_VALUE), jnp.float32), as_class_ids(labels)
    classes = int(y.max()) + 1
    if classes < 2 or len(np.unique(y)) < 2:
        raise UserError(f"probe: labels have one class only, {sorted(set(y.tolist()))[:5]}; pass two classes or more")
    if classes > MAX_CLASSES:
        raise UserError(
            f"probe: label {classes - 1} is too large, since each class from 0 on has an output; number the "
            "classes 0 to K - 1"
        )
    return x, jnp.asarray(y, jnp.int32), classes


def contiguous_labels(labels: np.ndarray | jax.Array, name: str = "labels") -> tuple[np.ndarray, int]:
    """Return labels as int32 (N,) renumbered to 0, ..., K - 1 in increasing order, and the number of classes K."""
    values, class_ids = np.unique(as_class_ids(labels, name), return_inverse=True)
    return class_ids.astype(np.int32), len(values)


def score_inputs(
    features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, name: str = "features"
) -> tuple[jax.Array, jax.Array, int]:
    """Return features (N, D), labels as int32 (N,) without gaps, and K, the number of classes with examples.

    Under ``jax.enable_x64``, 64-bit features keep their dtype; all others become float32.
    """
    shape, label_shape = np.shape(features), np.shape(labels)
    if len(shape) != 2 or label_shape not in (shape[:1], (*shape[:1], 1)) or 0 in shape:
        raise UserError(f"{name} {shape} and labels {label_shape}: wrong shapes; pass (N, D) and (N,), one per example")
    features = as_real(features, name)
    is_double = features.dtype in (np.float64, np.int64, np.uint64)
    x64_enabled = cast(Any, jax.config).jax_enable_x64  # an attribute that JAX adds at import
    x = jnp.asarray(features, jnp.float64 if is_double and x64_enabled else jnp.float32)
    y, classes = contiguous_labels(labels)
    if classes < 2:
        raise UserError(f"labels: all {len(y)} are {as_class_ids(labels)[0]}; a score needs at least two classes")
    return x, jnp.asarray(y), classes


def probability_inputs(
    source_probs: np.ndarray | jax.Array, labels: np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array, int]:
    """Check ``score_inputs`` whose rows are distributions: nonnegative, with sums within 1e-3 of 1."""
    p, y, classes = score_inputs(source_probs, labels, "source_probs")
    if bool((p < 0).any()):
        raise UserError(f"source_probs: {float(p.min()):.3g} is negative; pass probabilities, softmax(logits)")
    sums = np.asarray(p.sum(1))
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-3:
        raise UserError(f"source_probs: row {worst} sums to {sums[worst]:.4g}, not 1; pass softmax(logits)")
    return p, y, classes


def stratified_rows(y: np.ndarray, max_rows: int) -> np.ndarray:
    """Return min(N, max_rows) row indices, evenly spaced in the examples sorted by class, in increasing order.

    Each class keeps its proportion to within one example. The choice depends on the order of the examples only.
    """
    if len(y) <= max_rows:
        return np.arange(len(y))
    steps = (2 * np.arange(max_rows) + 1) * len(y) // (2 * max_rows)
    return np.sort(np.argsort(y, kind="stable")[steps])


Array = np.ndarray | jax.Array


def feature_matrix(x: Array, name: str, min_rows: int = 1) -> np.ndarray:
    """Return ``x`` as float64 (N, D) on the host. Raises UserError for other shapes, few rows or non-finite values."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise UserError(f"{name}: must be features (N, D) of real numbers, not {x.shape} of {x.dtype}; convert them")
    if len(x) < min_rows:
        raise UserError(f"{name}: {len(x)} example{'s' * (len(x) > 1)}, but this needs at least {min_rows}; pass more")
    return np.asarray(as_real(x.astype(np.float64), f"features {name}"))


def feature_pair(x1: Array, x2: Array, min_rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return both datasets as float64 (N1, D) and (N2, D)."""
    a, b = feature_matrix(x1, "x1", min_rows), feature_matrix(x2, "x2", min_rows)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"x1 has {a.shape[1]} features and x2 has {b.shape[1]}; take both from the same layer of one network"
        )
    return a, b


def dataset_labels(y: Array, count: int, name: str) -> np.ndarray:
    """Return ``y`` as int (N,) in [0, K), renumbered without gaps."""
    if np.shape(y) not in ((count,), (count, 1)):
        raise UserError(
            f"{name}: labels of {count} examples must be ({count},), not {np.shape(y)}; pass one per example"
        )
    return contiguous_labels(y, f"labels {name}")[0].astype(np.int64)
