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
