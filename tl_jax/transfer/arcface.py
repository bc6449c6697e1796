"""Identity classifiers for embedding training: softmax, or an additive angular margin (ArcFace)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOSSES = ("arcface", "softmax")
EXACT = jax.lax.Precision.HIGHEST  # rounded matmul inputs, the default on accelerators, would swamp the margin


class Margin(NamedTuple):
    """Training head that turns embeddings into logits.

    Attributes:
        loss: "arcface", or "softmax": a linear layer without bias on unnormalized embeddings.
        scale: s, the factor on ArcFace's cosines.
        margin: m in radians, added to the angle to the example's own class center.
        identities: K; the class centers (E, K) are ``extra/people/kernel`` in the parameters.
    """

    loss: str
    scale: float
    margin: float
    identities: int

    def __call__(self, params: Any, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
        """Return logits, float32 (N, K), for embeddings (N, E) with identity labels (N,)."""
        centres, embeddings = params["extra"]["people"]["kernel"], embeddings.astype(jnp.float32)
        if self.loss == "softmax":
            return jnp.matmul(embeddings, centres, precision=EXACT)
        cosines = jnp.matmul(l2_normalize(embeddings), l2_normalize(centres, axis=0), precision=EXACT)
        return arcface(cosines, labels, self.scale, self.margin)


def l2_normalize(x: jax.Array, axis: int = -1) -> jax.Array:
    """L2-normalize ``x`` along ``axis``; a zero vector stays zero and has a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis, keepdims=True), 1e-12))


def arcface(cosines: jax.Array, labels: jax.Array, scale: float, margin: float) -> jax.Array:
    """Apply an additive angular margin (Deng et al. 2019, arXiv:1801.07698, eq. 3).

    The cosine of each example's own class becomes ``cos(angle + margin)``. Beyond an angle of pi - margin, where this
    would rise again, it is ``cos(angle) - margin * sin(margin)``, as in the published code. The sine is kept above
    zero, where its gradient is infinite, so gradients are finite for every cosine.

    Args:
        cosines: float (N, K), in [-1, 1] up to rounding.
        labels: int (N,) in [0, K).
        scale: s, the factor on all logits.
        margin: m in radians, in [0, pi).

    Returns:
        Logits (N, K), about in [-scale * (1 + margin), scale].
    """
    is_target = jax.nn.one_hot(labels, cosines.shape[-1], dtype=bool)
    sines = jnp.sqrt(jnp.maximum(1 - jnp.square(cosines), 1e-7))
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    shifted = jnp.where(cosines > -math.cos(margin), shifted, cosines - margin * math.sin(margin))
    return scale * jnp.where(is_target, shifted, cosines)
