"""Layers shared by transformers on texts and images: attention, linear layers, activations, layer norms."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.ops.dropout import Dropout

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),  # with the error function, as in BERT and ViT
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # of OpenAI's CLIP
    "relu": nn.relu,
    "tanh": jnp.tanh,
}
Rotation = Callable[[jax.Array], jax.Array]  # queries or keys (N, L, heads, D / heads) -> the same
normal_init = nn.initializers.normal(0.02)  # as published; the papers truncate at two standard deviations


def dense_layer(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    """Return a linear layer."""
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=normal_init, name=name)


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Return a layer norm."""
    return nn.LayerNorm(epsilon, dtype, name=name)


class Attention(nn.Module):
    """Multi-head attention of x (N, Q, D) to ``context`` (N, L, D), or to itself: -> (N, Q, D).

    Attributes:
        heads: number of heads, a divisor of D.
        dropout: dropout rate of the attention weights.
        dtype: computation dtype; the softmax is float32.
        key_bias: whether keys have a bias.
        norm_epsilon: epsilon of layer norms of queries and keys within each head; 0 for none.
    """

    heads: int
    dropout: float
    dtype: Any
    key_bias: bool = True
    norm_epsilon: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None = None,
        train: bool = False,
        context: jax.Array | None = None,
        rotate: Rotation | None = None,
    ) -> jax.Array:
        """Apply the layer.

        Args:
            x: (N, Q, D).
            bias: (N, 1, 1, L), added to the attention scores.
            train: whether to apply dropout.
            context: (N, L, D); None for x.
            rotate: rotation of queries and keys by their positions.
        """
        width = x.shape[-1]

        def project(name: str, tokens: jax.Array) -> jax.Array:
            y = dense_layer(width, self.dtype, name, name != "key" or self.key_bias)(tokens)
            y = y.reshape(*tokens.shape[:2], self.heads, width // self.heads)
            if name == "value":
                return y
            y = layer_norm(self.norm_epsilon, self.dtype, f"{name}_norm")(y) if self.norm_epsilon else y
            return rotate(y) if rotate else y

        context = x if context is None else context
        query, key, value = project("query", x), project("key", context), project("value", context)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * (width // self.heads) ** -0.5
        scores = scores.astype(jnp.float32)
        weights = nn.softmax(scores if bias is None else scores + bias).astype(self.dtype)
        weights = Dropout(self.dropout, name="dropout")(weights, train)
        attended = jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(x.shape)
        return dense_layer(width, self.dtype, "output")(attended)
