"""Classifiers of people that leave an embedding behind: softmax, or with an angular margin (ArcFace)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOSSES = ("arcface", "softmax")
EXACT = jax.lax.Precision.HIGHEST  # a margin is lost where accelerators round the inputs of products


class Margin(NamedTuple):
    """How embeddings become logits while training.

    Attributes:
        loss: "arcface", or "softmax": a linear layer without bias on embeddings of any length.
        scale: s, factor on cosines of arcface.
        margin: m in radians, added to the angle to a person's own centre.
        identities: K, whose centres (E, K) are ``extra/people/kernel`` in the parameters.
    """

    loss: str
    scale: float
    margin: float
    identities: int

    def __call__(self, params: Any, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the logits float32 (N, K) of embeddings (N, E) of people ``labels`` (N,)."""
        centres, embeddings = params["extra"]["people"]["kernel"], embeddings.astype(jnp.float32)
        if self.loss == "softmax":
            return jnp.matmul(embeddings, centres, precision=EXACT)
        cosines = jnp.matmul(l2_normalize(embeddings), l2_normalize(centres, axis=0), precision=EXACT)
        return arcface(cosines, labels, self.scale, self.margin)


def l2_normalize(x: jax.Array, axis: int = -1) -> jax.Array:
    """Return ``x`` divided by its length along ``axis``; zero stays zero, and has a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis, keepdims=True), 1e-12))


def arcface(cosines: jax.Array, labels: jax.Array, scale: float, margin: float) -> jax.Array:
    """Return logits with an additive angular margin (Deng et al. 2019, arXiv:1801.07698, eq. 3).

    The cosine of each example's own class becomes ``cos(angle + margin)``. Beyond an angle of pi - margin, where that
    would rise again, it is ``cos(angle) - margin * sin(margin)``, as in the published code. The sine is kept off zero,
    where its gradient is infinite, so that gradients are finite for any cosine.

    Args:
        cosines: float (N, K), in [-1, 1] up to rounding.
        labels: int (N,) in [0, K).
        scale: s, factor on all.
        margin: m in radians, from 0 on and below pi.

    Returns:
        (N, K) in about [-scale * (1 + margin), scale].
    """
    is_target = jax.nn.one_hot(labels, cosines.shape[-1], dtype=bool)
    sines = jnp.sqrt(jnp.maximum(1 - jnp.square(cosines), 1e-7))
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    shifted = jnp.where(cosines > -math.cos(margin), shifted, cosines - margin * math.sin(margin))
    return scale * jnp.where(is_target, shifted, cosines)
