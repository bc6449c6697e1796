"""What a BERT is made of: embeddings, attention, layers with their norms behind the sums, adapters."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.dropout import Dropout

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),  # with the error function, as published
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "tanh": jnp.tanh,
}
normal = nn.initializers.normal(0.02)  # as published, where the paper cuts it off at two deviations


class Adapter(nn.Module):
    """Bottleneck adapter, (N, L, D) -> the same: x plus two linear layers with a ReLU between them.

    Houlsby et al. 2019, arXiv:1902.00751. The second starts at zero, so that a new adapter changes nothing.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="down")(x))
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="up")(y)


class Attention(nn.Module):
    """Multi-head self-attention, (N, L, D) -> (N, L, D); ``bias`` (N, 1, 1, L) is added to what is looked at."""

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, train: bool) -> jax.Array:
        n, length, width = x.shape
        size = width // self.heads

        def project(name: str) -> jax.Array:
            return dense(width, self.dtype, name)(x).reshape(n, length, self.heads, size)

        query, key, value = (project(name) for name in ("query", "key", "value"))
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * size**-0.5
        weights = nn.softmax(scores.astype(jnp.float32) + bias).astype(self.dtype)
        weights = Dropout(self.dropout, name="dropout")(weights, train)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(n, length, width)
        return dense(width, self.dtype, "output")(mixed)


class Layer(nn.Module):
    """One layer of the encoder, norms behind the sums: (N, L, D) -> (N, L, D)."""

    heads: int
    hidden: int
    activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, train: bool) -> jax.Array:
        drop = Dropout(self.dropout, name="dropout")
        y = Attention(self.heads, self.attention_dropout, self.dtype, name="attention")(x, bias, train)
        x = norm(self.epsilon, self.dtype, "attention_norm")(x + drop(y, train))
        y = ACTIVATIONS[self.activation](dense(self.hidden, self.dtype, "up")(x))
        y = dense(x.shape[-1], self.dtype, "down")(y)
        return norm(self.epsilon, self.dtype, "output_norm")(x + drop(y, train))


class Embeddings(nn.Module):
    """Sum of the embeddings of words, positions and, with ``types``, of which text it is: (N, L) -> (N, L, D)."""

    vocabulary: int
    width: int
    positions: int
    types: int
    epsilon: float
    dropout: float
    dtype: Any

    def setup(self) -> None:
        # In float32 whatever ``dtype`` is: the gradients of rows that many tokens share are sums of as many terms.
        self.word = nn.Embed(self.vocabulary, self.width, embedding_init=normal)
        self.position = nn.Embed(self.positions, self.width, embedding_init=normal)
        if self.types:
            self.type = nn.Embed(self.types, self.width, embedding_init=normal)
        self.norm = nn.LayerNorm(self.epsilon, self.dtype)
        self.drop = Dropout(self.dropout)

    def __call__(self, ids: jax.Array, types: jax.Array, train: bool) -> jax.Array:
        x = self.word(ids) + self.position(jnp.arange(ids.shape[1]))[None]
        if self.types:
            # Looked up by selection: the gradient of a gather adds all tokens to the same two rows, one by one.
            table = self.type.embedding
            x = x + sum(jnp.where(types[..., None] == i, table[i], 0) for i in range(self.types))
        return self.drop(self.norm(x), train)

    def scores(self, x: jax.Array) -> jax.Array:
        """Return the product of (N, L, D) with every word's embedding, (N, L, V)."""
        return x @ self.word.embedding.astype(self.dtype).T


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
    """Return a linear layer."""
    return nn.Dense(features, dtype=dtype, kernel_init=normal, name=name)


def norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Return a layer norm."""
    return nn.LayerNorm(epsilon, dtype, name=name)
