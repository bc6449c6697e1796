"""What every measure here asks of its features and labels."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.errors import UserError


def finite(x: jax.Array, what: str = "features") -> None:
    """Refuse NaN and infinity in ``x``, which the message calls ``what``."""
    if not bool(jnp.isfinite(x).all()):
        raise UserError(f"the {what} hold values that are not finite; check the network that made them")


def labelled(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Return features as float32 (N, D), labels as int32 (N,), and K, one more than the largest label."""
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    if x.ndim != 2 or y.shape != x.shape[:1] or not x.size:
        raise UserError(f"a probe takes features (N, D) and labels (N,), not {x.shape} and {y.shape}")
    finite(x)
    classes = int(y.max()) + 1
    if classes < 2 or bool(y.min() < 0):
        raise UserError(f"a probe needs labels from 0 on and two classes or more, not {sorted(set(y.tolist()))[:5]}")
    return x, y, classes


def numbered(labels: np.ndarray | jax.Array, what: str = "labels") -> tuple[np.ndarray, int]:
    """Return labels as int32 (N,) from 0 on without gaps, in the order of their values, and the number of classes."""
    y = np.asarray(labels)
    if y.ndim != 1 or not y.size:
        raise UserError(f"the {what} are (N,) with one example or more, not {y.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"the {what} are whole numbers, not {y.dtype}; pass the index of each example's class")
    if y.min() < 0:
        raise UserError(f"the {what} hold {y.min()}; classes count from 0 on, so drop the examples without one")
    values, found = np.unique(y, return_inverse=True)
    return found.astype(np.int32), len(values)


def classified(
    features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, what: str = "features"
) -> tuple[jax.Array, jax.Array, int]:
    """Return features (N, D), labels as int32 (N,) without gaps, and K, the number of classes that have examples.

    Features of 64 bits stay so under ``jax.enable_x64``, all others become float32.
    """
    shape, given = np.shape(features), np.shape(labels)
    if len(shape) != 2 or given != shape[:1] or 0 in shape:
        raise UserError(f"{what} are (N, D) and labels (N,), one of each for an example, not {shape} and {given}")
    features = features if isinstance(features, jax.Array) else np.asarray(features)
    wide = features.dtype in (np.float64, np.int64, np.uint64)
    x = jnp.asarray(features, jnp.float64 if wide and jax.config.jax_enable_x64 else jnp.float32)
    finite(x, what)
    y, classes = numbered(labels)
    if classes < 2:
        raise UserError(f"all {len(y)} labels are {np.asarray(labels)[0]}; a score needs two classes or more")
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
