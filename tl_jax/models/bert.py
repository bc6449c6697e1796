"""BERT and its relatives: text encoders with bottleneck adapters.

BERT (arXiv:1810.04805), MiniLM (arXiv:2002.10957) and DistilBERT (arXiv:1910.01108).
"""

from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.attention import ACTIVATIONS, Attention, dense_layer, layer_norm, normal_init
from tl_jax.models.backbone import FEATURES, Adapter
from tl_jax.models.ops.dropout import Dropout
from tl_jax.utils.errors import UserError, nearest


class Layer(nn.Module):
    """One encoder layer with post-layer normalization: (N, L, D) -> (N, L, D)."""

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
        x = layer_norm(self.epsilon, self.dtype, "attention_norm")(x + drop(y, train))
        y = ACTIVATIONS[self.activation](dense_layer(self.hidden, self.dtype, "up")(x))
        y = dense_layer(x.shape[-1], self.dtype, "down")(y)
        return layer_norm(self.epsilon, self.dtype, "output_norm")(x + drop(y, train))


class Embeddings(nn.Module):
    """Sum of word, position and, with ``types``, segment embeddings: (N, L) -> (N, L, D)."""

    vocabulary: int
    width: int
    positions: int
    types: int
    epsilon: float
    dropout: float
    dtype: Any

    def setup(self) -> None:
        # Always float32: the gradient of a row sums over all tokens that share it.
        self.word = nn.Embed(self.vocabulary, self.width, embedding_init=normal_init)
        self.position = nn.Embed(self.positions, self.width, embedding_init=normal_init)
        if self.types:
            self.type = nn.Embed(self.types, self.width, embedding_init=normal_init)
        self.norm = nn.LayerNorm(self.epsilon, self.dtype)
        self.drop = Dropout(self.dropout)

    def __call__(self, ids: jax.Array, types: jax.Array, train: bool) -> jax.Array:
        x = self.word(ids) + self.position(jnp.arange(ids.shape[1]))[None]
        if self.types:
            # One-hot selection: the gradient of a gather would add all tokens to the same two rows, one by one.
            table = self.type.embedding
            x = x + sum(jnp.where(types[..., None] == i, table[i], 0) for i in range(self.types))
        return self.drop(self.norm(x), train)

    def logits(self, x: jax.Array) -> jax.Array:
        """Return the product of (N, L, D) with every word embedding, (N, L, V)."""
        return x @ self.word.embedding.astype(self.dtype).T


POOLINGS = ("pooler", "first", "mean")
OUTPUTS = ("text", "tokens", "masked")


class Bert(nn.Module):
    """Text encoder: ids of tokens (N, L) -> (output, endpoints).

    Endpoints are "embeddings", "layer1", ... (N, L, D), "pooled" (N, D) and ``features``, which equals "pooled". Sums
    and softmax are float32 whatever ``dtype`` is. Depending on ``output``, the output is text logits (N, K), token
    logits (N, L, K), or word logits (N, L, V) for masked language modelling. With ``num_classes=0`` it is ``features``;
    the masked language modelling head has no classes and is present whenever it is selected.

    Attributes:
        num_classes: K.
        vocabulary: V, the number of token ids.
        width: D, a multiple of ``heads``.
        depth: number of layers.
        heads: number of attention heads.
        hidden: width of the feed-forward layers.
        positions: maximum number of tokens.
        types: number of segment types; 0 for no segment embedding.
        epsilon: epsilon of the layer norms.
        activation: name in ``ACTIVATIONS``.
        pooling: "pooler" (a layer on the first token), "first" (that token) or "mean" (over tokens without padding).
        pooler: activation of that layer: tanh in BERT, relu in DistilBERT's classifier.
        dropout: dropout rate after the embeddings and within layers.
        attention_dropout: dropout rate of the attention weights.
        head_dropout: dropout rate before the head.
        output: one of ``OUTPUTS``.
        endpoint: name of the last stage; empty for the whole network.
        adapter: width of a bottleneck adapter after each layer; 0 for none.
        dtype: computation dtype; parameters are float32.
    """

    num_classes: int
    vocabulary: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    activation: str = "gelu"
    pooling: str = "pooler"
    pooler: str = "tanh"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    output: str = "text"
    endpoint: str = ""
    adapter: int = 0
    dtype: Any = jnp.float32

    layouts: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # missing in flax' types: modules are hashable, and ``apply`` returns what ``__call__`` returns

        def __hash__(self) -> int: ...

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def stage_names(self) -> tuple[str, ...]:
        """Return the names of the network's stages, input first."""
        names = ["embeddings", *(f"layer{i + 1}" for i in range(self.depth))]
        if self.endpoint and self.endpoint not in names:
            raise UserError(f"config.model.endpoint: unknown stage {self.endpoint!r}; {nearest(self.endpoint, names)}")
        included = names[: names.index(self.endpoint) + 1] if self.endpoint else names
        return (*included, *(["pooler"] if self.pooling == "pooler" else []))

    def layer_names(self) -> tuple[str, ...]:
        """Return the names of the network's layers."""
        return tuple(name for name in self.stage_names() if name.startswith("layer"))

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        train: bool = False,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Apply the network; ``train`` uses dropout (which needs the rng "dropout").

        Args:
            input_ids: (N, L) int in [0, V).
            attention_mask: (N, L), 0 for padding; None if there is none.
            token_type_ids: (N, L) int, segment of each token; None for the first.
            train: whether to apply dropout.
            positions: (N, P) int, tokens that the masked language modelling head reads, which then returns (N, P, V);
                None for all.
        """
        self._check_input(input_ids)
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        embeddings = Embeddings(
            self.vocabulary, self.width, self.positions, self.types, self.epsilon, self.dropout, self.dtype,
            name="embeddings",
        )  # fmt: skip
        endpoints: dict[str, jax.Array] = {"embeddings": (x := embeddings(input_ids, types, train))}
        # Not minus infinity: a row of padding only, as in an incomplete last batch, would become NaN.
        bias = jnp.where(mask[:, None, None] > 0, 0.0, jnp.finfo(jnp.float32).min)
        for name in self.layer_names():
            x = Layer(
                self.heads, self.hidden, self.activation, self.epsilon, self.dropout, self.attention_dropout,
                self.dtype, name=name,
            )(x, bias, train)  # fmt: skip
            x = Adapter(self.adapter, self.dtype, name=f"adapter_{name}")(x) if self.adapter else x
            endpoints[name] = x
        endpoints["pooled"] = endpoints[FEATURES] = self._pool(x, mask)
        if self.output == "masked":
            selected = x if positions is None else jnp.take_along_axis(x, positions[..., None], axis=1)
            return self._vocabulary_logits(selected, embeddings), endpoints
        if not self.num_classes:
            return endpoints[FEATURES], endpoints
        y = x if self.output == "tokens" else endpoints[FEATURES]
        y = Dropout(self.head_dropout, name="head_dropout")(y, train)
        return nn.Dense(self.num_classes, kernel_init=normal_init, name="head")(y.astype(jnp.float32)), endpoints

    def _pool(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        if self.pooling == "mean":
            valid = mask.astype(jnp.float32)[..., None]
            return (x.astype(jnp.float32) * valid).sum(1) / jnp.maximum(valid.sum(1), 1.0)
        first = x[:, 0]
        if self.pooling == "pooler":
            first = ACTIVATIONS[self.pooler](dense_layer(self.width, self.dtype, "pooler")(first))
        return first.astype(jnp.float32)

    def _vocabulary_logits(self, x: jax.Array, embeddings: Embeddings) -> jax.Array:
        """Return word logits (N, L, V): a layer, and the transposed word embeddings."""
        x = ACTIVATIONS[self.activation](dense_layer(self.width, self.dtype, "masked_dense")(x))
        x = layer_norm(self.epsilon, self.dtype, "masked_norm")(x)
        bias = self.param("masked_bias", nn.initializers.zeros_init(), (self.vocabulary,), jnp.float32)
        return embeddings.logits(x).astype(jnp.float32) + bias[None, None]

    def _check_input(self, ids: jax.Array) -> None:
        for name, choices in (("activation", ACTIVATIONS), ("pooling", POOLINGS), ("output", OUTPUTS)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"unknown {name} {value!r}; {nearest(value, choices)}")
        if self.width % self.heads:
            raise UserError(f"width={self.width}: not a multiple of heads={self.heads}; choose one")
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise UserError(f"input_ids {ids.dtype} {tuple(ids.shape)}: not token ids; pass int (N, L)")
        if ids.shape[1] > self.positions:
            raise UserError(
                f"input_ids: {ids.shape[1]} tokens exceed the network's {self.positions} positions; "
                "truncate texts with max_length"
            )
