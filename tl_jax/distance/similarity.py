"""How alike two networks, or two layers, see the same examples."""

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.distance import checks
from tl_jax.errors import UserError


def linear_cka(x1: np.ndarray | jax.Array, x2: np.ndarray | jax.Array) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same examples, in [0, 1].

    It is |X1' X2|^2 / (|X1' X1| |X2' X2|) for centred features and Frobenius norms (Kornblith et al. 2019,
    arXiv:1905.00414, section 3). Rotations and one factor for all features change nothing; features which differ by
    these alone have 1. As the paper's, the estimate is biased: with few examples for many features it is too high,
    independent ones included.

    Args:
        x1: (N, D1) float.
        x2: (N, D2) float, row i of the same example as row i of ``x1``.

    Raises:
        UserError: other shapes, values that are not finite, or features that are the same for all examples.
    """
    a, b = jnp.asarray(x1, jnp.float32), jnp.asarray(x2, jnp.float32)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not a.size or not b.size:
        raise UserError(
            f"linear_cka takes features (N, D1) and (N, D2) of the same N examples, not {a.shape} and {b.shape}"
        )
    for x, name in ((a, "features x1"), (b, "features x2")):
        checks.finite(x, name)
        if bool((x == x[:1]).all()):
            raise UserError(f"the {name} are the same for all {len(x)} examples; pass more, or another layer's")
    return float(_cka(a, b))


@jax.jit
def _cka(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = _centred(a), _centred(b)
    if len(a) < max(a.shape[1], b.shape[1]):
        # |A' B|^2 is the inner product of A A' and B B', which are the smaller matrices here.
        k, m = _product(a, a.T), _product(b, b.T)
        cross, own = (k * m).sum(), jnp.linalg.norm(k) * jnp.linalg.norm(m)
    else:
        cross = (_product(a.T, b) ** 2).sum()
        own = jnp.linalg.norm(_product(a.T, a)) * jnp.linalg.norm(_product(b.T, b))
    return jnp.clip(cross / own, 0, 1)


def _centred(x: jax.Array) -> jax.Array:
    """Return ``x`` with means of zero, on a scale at which fourth powers fit into float32."""
    x = x - x[:1]  # a mean far from zero is only as exact as float32 is there
    x = x - x.mean(0, keepdims=True)
    return x / jnp.abs(x).max()


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
