"""Losses, metrics and predictions of image and text networks.

Each is made from hashable options, so that runs share compiled code.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tl_jax.data import preprocess
from tl_jax.data.augment import Augment, augment, tta_views
from tl_jax.data.tokenize import IGNORED, MaskedTexts, Masking, mask_tokens
from tl_jax.models.bert import Bert, normal_init
from tl_jax.models.ops.batch_norm import stochastic_norm
from tl_jax.models.ops.dropout import Dropout
from tl_jax.transfer import adapters, regularizers, self_supervised
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.arcface import Margin, unit
from tl_jax.transfer.regularizers import Regularize
from tl_jax.transfer.self_supervised import Pretext

AUXILIARY = 0.4  # share of the auxiliary head's loss, as torchvision's training recipe has it
# Folded into the key of a step. Augmentation splits that key, which takes the numbers from 0 on.
DROPOUT, NORM, MIX, PRETEXT = (2**31 - 1 - i for i in range(4))


class Inputs(NamedTuple):
    """How stored pictures become network inputs: side in pixels, centre crop, resize method, key into ``SCALINGS``."""

    channels: int
    size: int
    crop: float
    interpolation: str
    scaling: str

    def __call__(self, images: jax.Array) -> jax.Array:
        """Turn (N, H, W, C) pixels into (N, size, size, channels) network inputs."""
        images = preprocess.convert_channels(images, self.channels)
        return preprocess.scale(
            preprocess.resize_and_crop(images, self.size, self.crop, self.interpolation), self.scaling
        )


class Maps(NamedTuple):
    """Inputs of a network that starts in the middle: outputs of an earlier part, as they are."""

    def __call__(self, maps: jax.Array) -> jax.Array:
        """Return them."""
        return maps


class Pixels(NamedTuple):
    """How stored pictures become network inputs where sizes stay: number of channels, key into ``SCALINGS``."""

    channels: int
    scaling: str

    def __call__(self, images: jax.Array) -> jax.Array:
        """Turn (N, H, W, C) pixels into (N, H, W, channels) network inputs."""
        return preprocess.scale(preprocess.convert_channels(images, self.channels), self.scaling)


class Network(NamedTuple):
    """A model, what its inputs are, and how its parameters are adapted."""

    model: Any  # Backbone, or what is applied like one: the head of a text network, a detector
    inputs: Inputs | Maps | Pixels
    adapters: Adapters = Adapters()

    def predict(self, variables: Any, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits (N, K) and endpoints of pictures (N, H, W, C) in evaluation mode."""
        return self.model.apply(self._plain(variables), self.inputs(images), train=False)

    def train(self, variables: Any, inputs: jax.Array, key: jax.Array, norm: float = 0.0):
        """Return logits, endpoints and new statistics of network inputs in training mode."""
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT), "stochastic_norm": jax.random.fold_in(key, NORM)}
        with stochastic_norm(norm):
            (logits, end), new = self.model.apply(
                self._plain(variables), inputs, train=True, mutable=["batch_stats"], rngs=rngs
            )
        return logits, end, new.get("batch_stats", {})

    def _plain(self, variables: Any) -> dict[str, Any]:
        return {"params": plain(variables["params"], self.adapters), "batch_stats": variables["batch_stats"]}


def plain(params: Any, how: Adapters) -> dict[str, Any]:
    """Return the parameters of the network alone, adapters merged into them."""
    return adapters.merge({name: leaves for name, leaves in params.items() if name != "extra"}, how)


@functools.cache
def make_loss(net: Network, how: Augment, regularize: Regularize, beside: Pretext | None, people: Margin | None = None):
    """Return the training loss: augmented pictures, softmax cross-entropy in nats, mean over unmasked examples.

    An example counts with the weight of its own class times its cross-entropy, smoothed or not, as ``class_weight`` of
    Keras has it; a mixture of two counts as much as its shares of both. The mean is over the number of examples, not
    over the sum of their weights.

    Penalties, and the loss of the pretext ``beside``, are added to it and reported on their own. With ``people`` what
    the network puts out are embeddings, and logits are made of these.
    """

    def loss(variables, batch, key):
        source = variables.get("source", {})
        images = net.inputs(augment(batch["image"], key, how))
        targets = jax.nn.one_hot(batch["label"], people.people if people else net.model.num_classes)
        targets = optax.smooth_labels(targets, regularize.label_smoothing)
        if regularize.weights:  # of the example's own class, before mixing, so that each partner brings its own weight
            targets = targets * jnp.asarray(regularize.weights)[batch["label"]][:, None]
        images, targets = regularizers.mix(regularize, images, targets, jax.random.fold_in(key, MIX))
        logits, end, stats = net.train(variables, images, key, regularize.stochastic_norm)
        if people:
            logits = people(variables["params"], logits, batch["label"])
        losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
        if "aux_logits" in end and not people:
            losses += AUXILIARY * optax.softmax_cross_entropy(end["aux_logits"], targets)
        source_end = {}
        if regularize.compares_maps:
            start = {name: source[name] for name in ("params", "batch_stats")}
            source_end = net.model.apply(start, images, train=False)[1]
        sums = _sums(losses, logits, batch)
        value = sums["loss"][0] / sums["loss"][1]
        extra = regularizers.penalty(regularize, variables["params"], end, batch, source, source_end)
        if extra is not None:
            value, sums["penalty"] = value + extra, (extra, 1.0)
        if beside:
            extra, score, _ = _pretext(net, beside, variables, batch, jax.random.fold_in(key, PRETEXT))
            value = value + beside.weight * extra
            sums |= {beside.name: (extra, 1.0), f"{beside.name}_score": (score, 1.0)}
        return value, (stats, sums)

    return loss


@functools.cache
def make_pretext_loss(net: Network, how: Pretext):
    """Return the loss of the pretext alone, with its score."""

    def loss(variables, batch, key):
        value, score, stats = _pretext(net, how, variables, batch, key)
        return value, (stats, {"loss": (value, 1.0), "score": (score, 1.0)})

    return loss


@functools.cache
def make_metrics(net: Network, count: int = 1):
    """Return the evaluation function: sums and counts of loss (nats) and accuracy over unmasked examples.

    With a ``count`` of more than 1 the probabilities are averaged over that many views of each picture.
    """

    def metrics(variables, batch):
        logits = predict(net, variables, batch["image"], count)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
        return _sums(losses, logits, batch)

    return metrics


@functools.cache
def make_predict(net: Network, count: int = 1):
    """Return the function (variables, batch) -> probabilities (N, K), averaged over ``count`` views."""

    def predicted(variables, batch):
        return jax.nn.softmax(predict(net, variables, batch["image"], count).astype(jnp.float32))

    return predicted


@functools.cache
def make_embeddings(net: Network, count: int = 1):
    """Return the function (variables, batch) -> embeddings (N, E) of length 1, the mean over ``count`` views."""

    def embeddings(variables, batch):
        def one(images):
            return unit(net.predict(variables, images)[0].astype(jnp.float32))

        return one(batch["image"]) if count == 1 else unit(jax.lax.map(one, tta_views(batch["image"], count)).mean(0))

    return embeddings


@functools.cache
def make_features(net: Network, name: str = "features"):
    """Return the function (variables, batch) -> endpoint ``name``, by default features (N, D)."""

    def features(variables, batch):
        return net.predict(variables, batch["image"])[1][name]

    return features


@functools.cache
def make_pooled(net: Network, names: tuple[str, ...]):
    """Return the function (variables, batch) -> averages over positions of the named maps, side by side (N, D)."""

    def pooled(variables, batch):
        end = net.predict(variables, batch["image"])[1]
        return jnp.concatenate([end[name].astype(jnp.float32).mean((1, 2)) for name in names], axis=1)

    return pooled


def predict(net: Network, variables: Any, images: jax.Array, count: int) -> jax.Array:
    """Return the logits (N, K) of pictures, or the logarithm of their mean probability over ``count`` views."""
    if count == 1:
        return net.predict(variables, images)[0]
    logits = jax.lax.map(lambda view: net.predict(variables, view)[0].astype(jnp.float32), tta_views(images, count))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(count)


def _pretext(net: Network, how: Pretext, variables: Any, batch: Any, key: jax.Array):
    """Return loss, score and new BatchNorm statistics of a pretext."""
    kept = {}

    def embed(images):
        _, end, kept["stats"] = net.train(variables, net.inputs(images), key)
        return end["features"]

    value, score = self_supervised.loss(how, embed, variables["params"]["extra"]["pretext"], batch["image"], key)
    return value, score, kept["stats"]


def _sums(losses, logits, batch):
    hits = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
    mask = batch["mask"]
    count = mask.sum()
    return {"loss": ((losses * mask).sum(), count), "accuracy": ((hits * mask).sum(), count)}


TOKENS = ("input_ids", "attention_mask", "token_type_ids")


class Head(nn.Module):
    """The head of a text network by itself, on features (N, D) or (N, L, D) that are computed already."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits (..., K) and the features."""
        y = Dropout(self.dropout, name="head_dropout")(x, train)
        return nn.Dense(self.num_classes, kernel_init=normal_init, name="head")(y), {"features": x}


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
        last = (*self.model.layer_names(), "embeddings")[-2 if self.model.layer_names() else 0]
        read = end[last].astype(jnp.float32) if self.model.output == "tokens" else end["features"]
        return self.head.apply(self._plain(variables), read, train=True, rngs=rngs)[0], end

    def guess(self, variables: Any, batch: Any, hidden: MaskedTexts, key: jax.Array | None) -> jax.Array:
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
def make_text_loss(net: Encoder, how: Regularize, beside: tuple[Masking, float] | None = None):
    """Return the training loss: softmax cross-entropy in nats, mean over texts, or over labelled tokens.

    Penalties, and the loss of guessing words with its weight in ``beside``, are added and reported on their own.
    """

    def loss(variables, batch, key):
        logits, end = net.train(variables, batch, key)
        targets = jax.nn.one_hot(batch["label"], net.model.num_classes)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, how.label_smoothing))
        sums = _text_sums(losses, logits, batch["label"], _weights(batch))
        value = _mean(sums["loss"])
        source = variables.get("source", {})
        source_end = net.predict(source, batch)[1] if how.compares_maps else {}
        ends = [_without_padding(each, batch, how.endpoints) for each in (end, source_end)]
        extra = regularizers.penalty(how, variables["params"], ends[0], batch, source, ends[1])
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
def make_text_metrics(net: Encoder):
    """Return the evaluation function: sums and counts of loss (nats) and accuracy over texts, or labelled tokens."""

    def metrics(variables, batch):
        logits, _ = net.predict(variables, batch)
        losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], net.model.num_classes))
        return _text_sums(losses, logits, batch["label"], _weights(batch))

    return metrics


@functools.cache
def make_words_metrics(net: Encoder, how: Masking):
    """Return the evaluation function of guessing words; which are hidden in a text depends on that text alone."""

    def one(ids, there):
        """Hide words of one text (L,)."""
        key = jax.random.fold_in(jax.random.key(0), (ids * there).sum())
        return MaskedTexts(*(leaf[0] for leaf in mask_tokens(ids[None], there[None], key, how)))

    def metrics(variables, batch):
        hidden = jax.vmap(one)(batch["input_ids"], batch["attention_mask"])
        return _guessed(net, variables, batch, hidden, None)

    return metrics


@functools.cache
def make_text_predict(net: Encoder):
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
def make_text_features(net: Encoder):
    """Return the function (variables, batch) -> features (N, D)."""

    def features(variables, batch):
        return net.predict(variables, batch)[1]["features"]

    return features


def _words(net: Encoder, variables: Any, batch: Any, how: Masking, key: jax.Array):
    """Return the sums of loss and accuracy of words that are hidden just now."""
    hidden = mask_tokens(batch["input_ids"], batch["attention_mask"], key, how)
    return _guessed(net, variables, batch, hidden, key)


def _guessed(net: Encoder, variables: Any, batch: Any, hidden: MaskedTexts, key: jax.Array | None):
    logits = net.guess(variables, batch, hidden, key)
    words = jnp.take_along_axis(batch["input_ids"], hidden.positions, 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words)
    return _text_sums(losses, logits, words, hidden.weights * batch["mask"][:, None])


def _weights(batch: Any) -> jax.Array:
    """Return 1 where there is something to learn, and 0 where there is none, for texts (N,) or tokens (N, L)."""
    if batch["label"].ndim == 1:
        return batch["mask"]
    return batch["mask"][:, None] * (batch["label"] != IGNORED)


def _text_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> dict[str, tuple[Any, Any]]:
    hits = (logits.argmax(-1) == labels).astype(jnp.float32)
    count = weights.sum()
    return {"loss": ((losses * weights).sum(), count), "accuracy": ((hits * weights).sum(), count)}


def _mean(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return pair[0] / jnp.maximum(pair[1], 1.0)


def _without_padding(end: Any, batch: Any, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Return endpoints with those of ``names`` (N, L, D) put to zero where there is no token."""
    there = batch["attention_mask"][..., None]
    return {**end, **{name: end[name] * there for name in names if name in end}}
