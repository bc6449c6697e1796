"""Losses, metrics and predictions of text networks, each made from hashable facts so that runs share compiled code."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tl_jax.data.masking import Hidden, Masking, hide
from tl_jax.data.token_batches import IGNORED
from tl_jax.models.bert import Bert
from tl_jax.models.bert_layers import normal
from tl_jax.models.dropout import Dropout
from tl_jax.tasks.objectives import DROPOUT, PRETEXT, plain
from tl_jax.transfer import penalties
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.penalties import Regularize

TOKENS = ("input_ids", "attention_mask", "token_type_ids")


class Head(nn.Module):
    """The head of a text network by itself, on features (N, D) or (N, L, D) that are computed already."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits (..., K) and the features."""
        y = Dropout(self.dropout, name="head_dropout")(x, train)
        return nn.Dense(self.num_classes, kernel_init=normal, name="head")(y), {"features": x}


class Encoder(NamedTuple):
    """A text network, and how its parameters are adapted.

    Attributes:
        model: with its head.
        adapters: added to the kernels.
        still: whether all below the head runs as in evaluation while the head is trained.
    """

    model: Bert
    adapters: Adapters = Adapters()
    still: bool = False

    @property
    def head(self) -> Head:
        """The head by itself."""
        return Head(self.model.num_classes, self.model.head_dropout)

    def predict(self, variables: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return output and endpoints of a batch in evaluation mode."""
        return self.model.apply(self._plain(variables), **_tokens(batch), train=False)

    def train(self, variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return output and endpoints of a batch in training mode."""
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT)}
        if not self.still:
            return self.model.apply(self._plain(variables), **_tokens(batch), train=True, rngs=rngs)
        _, end = self.predict(variables, batch)
        last = (*self.model.layers(), "embeddings")[-2 if self.model.layers() else 0]
        read = end[last].astype(jnp.float32) if self.model.output == "tokens" else end["features"]
        return self.head.apply(self._plain(variables), read, train=True, rngs=rngs)[0], end

    def guess(self, variables: Any, batch: Any, hidden: Hidden, key: jax.Array | None) -> jax.Array:
        """Return the logits (N, P, V) of hidden words; with a ``key`` in training mode."""
        ids, chosen, _ = hidden
        params = {**self._plain(variables)["params"], **variables["params"].get("extra", {}).get("pretext", {})}
        model = self.model.clone(num_classes=0, output="masked")
        rngs = {} if key is None else {"dropout": jax.random.fold_in(key, DROPOUT)}
        seen = {**_tokens(batch), "input_ids": ids, "positions": chosen}
        return model.apply({"params": params}, **seen, train=key is not None, rngs=rngs)[0]

    def _plain(self, variables: Any) -> dict[str, Any]:
        return {"params": plain(variables["params"], self.adapters)}


def _tokens(batch: Any) -> dict[str, jax.Array]:
    return {name: batch[name] for name in TOKENS}


@functools.cache
def make_loss(net: Encoder, how: Regularize, beside: tuple[Masking, float] | None = None):
    """Return the training loss: softmax cross-entropy in nats, mean over texts, or over labelled tokens.

    Penalties, and the loss of guessing words with its weight in ``beside``, are added and reported on their own.
    """

    def loss(variables, batch, key):
        logits, end = net.train(variables, batch, key)
        targets = jax.nn.one_hot(batch["label"], net.model.num_classes)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, how.label_smoothing))
        sums = _sums(losses, logits, batch["label"], _weights(batch))
        value = _mean(sums["loss"])
        source = variables.get("source", {})
        source_end = net.predict(source, batch)[1] if how.compares_maps else {}
        ends = [_without_padding(each, batch, how.endpoints) for each in (end, source_end)]
        extra = penalties.penalty(how, variables["params"], ends[0], batch, source, ends[1])
        if extra is not None:
            value, sums["penalty"] = value + extra, (extra, 1.0)
        if beside:
            words = _words(net, variables, batch, beside[0], jax.random.fold_in(key, PRETEXT))
            value += beside[1] * _mean(words["loss"])
            sums |= {"words": words["loss"], "words_score": words["accuracy"]}
        return value, ({}, sums)

    return loss


@functools.cache
def make_words_loss(net: Encoder, how: Masking):
    """Return the loss of guessing hidden words, mean over these."""

    def loss(variables, batch, key):
        sums = _words(net, variables, batch, how, key)
        return _mean(sums["loss"]), ({}, sums)

    return loss


@functools.cache
def make_metrics(net: Encoder):
    """Return the evaluation function: sums and counts of loss (nats) and accuracy over texts, or labelled tokens."""

    def metrics(variables, batch):
        logits, _ = net.predict(variables, batch)
        losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], net.model.num_classes))
        return _sums(losses, logits, batch["label"], _weights(batch))

    return metrics


@functools.cache
def make_words_metrics(net: Encoder, how: Masking):
    """Return the evaluation function of guessing words; which are hidden in a text depends on that text alone."""

    def one(ids, there):
        """Hide words of one text (L,)."""
        key = jax.random.fold_in(jax.random.key(0), (ids * there).sum())
        return Hidden(*(leaf[0] for leaf in hide(ids[None], there[None], key, how)))

    def metrics(variables, batch):
        hidden = jax.vmap(one)(batch["input_ids"], batch["attention_mask"])
        return _guessed(net, variables, batch, hidden, None)

    return metrics


@functools.cache
def make_predict(net: Encoder):
    """Return the function (variables, batch) -> probabilities (N, K), or (N, L, K)."""

    def predict(variables, batch):
        return jax.nn.softmax(net.predict(variables, batch)[0].astype(jnp.float32))

    return predict


@functools.cache
def make_classes(net: Encoder):
    """Return the function (variables, batch) -> likeliest classes int (N,), or (N, L)."""

    def classes(variables, batch):
        return net.predict(variables, batch)[0].argmax(-1)

    return classes


@functools.cache
def make_features(net: Encoder):
    """Return the function (variables, batch) -> features (N, D)."""

    def features(variables, batch):
        return net.predict(variables, batch)[1]["features"]

    return features


def _words(net: Encoder, variables: Any, batch: Any, how: Masking, key: jax.Array):
    """Return the sums of loss and accuracy of words that are hidden just now."""
    hidden = hide(batch["input_ids"], batch["attention_mask"], key, how)
    return _guessed(net, variables, batch, hidden, key)


def _guessed(net: Encoder, variables: Any, batch: Any, hidden: Hidden, key: jax.Array | None):
    logits = net.guess(variables, batch, hidden, key)
    words = jnp.take_along_axis(batch["input_ids"], hidden.positions, 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words)
    return _sums(losses, logits, words, hidden.weights * batch["mask"][:, None])


def _weights(batch: Any) -> jax.Array:
    """Return 1 where there is something to learn, and 0 where there is none, for texts (N,) or tokens (N, L)."""
    if batch["label"].ndim == 1:
        return batch["mask"]
    return batch["mask"][:, None] * (batch["label"] != IGNORED)


def _sums(losses: jax.Array, logits: jax.Array, labels: jax.Array, weights: jax.Array):
    hits = (logits.argmax(-1) == labels).astype(jnp.float32)
    count = weights.sum()
    return {"loss": ((losses * weights).sum(), count), "accuracy": ((hits * weights).sum(), count)}


def _mean(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return pair[0] / jnp.maximum(pair[1], 1.0)


def _without_padding(end: Any, batch: Any, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Return endpoints with those of ``names`` (N, L, D) put to zero where there is no token."""
    there = batch["attention_mask"][..., None]
    return {**end, **{name: end[name] * there for name in names if name in end}}
