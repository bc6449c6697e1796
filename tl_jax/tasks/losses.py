"""Losses, metrics and predictions of image and text networks.

Each is built from hashable options, so that runs share compiled code.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tl_jax.data import preprocess
from tl_jax.data.augment import AugmentConfig, augment, tta_views
from tl_jax.data.tokenize import IGNORED, TOKEN_ARRAYS, MaskedTexts, Masking, mask_tokens
from tl_jax.models.attention import normal_init
from tl_jax.models.bert import Bert
from tl_jax.models.ops.batch_norm import stochastic_norm
from tl_jax.models.ops.dropout import Dropout
from tl_jax.transfer import adapters, regularizers, self_supervised
from tl_jax.transfer.adapters import AdapterConfig
from tl_jax.transfer.arcface import Margin, l2_normalize
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.transfer.self_supervised import ImagePretextConfig

AUX_WEIGHT = 0.4  # weight of the auxiliary head's loss, as in torchvision's training recipe
# Folded into a step's key. Augmentation splits that key, which uses the numbers from 0 on.
DROPOUT_KEY, NORM_KEY, MIX_KEY, PRETEXT_KEY = (2**31 - 1 - i for i in range(4))


class Inputs(NamedTuple):
    """Image preprocessing: side in pixels, center crop, resize method, key into ``SCALINGS``."""

    channels: int
    size: int
    crop: float
    interpolation: str
    scaling: str

    def __call__(self, images: jax.Array) -> jax.Array:
        """Convert pixels (N, H, W, C) to network inputs (N, size, size, channels)."""
        images = preprocess.convert_channels(images, self.channels)
        return preprocess.scale(
            preprocess.resize_and_crop(images, self.size, self.crop, self.interpolation), self.scaling
        )


class Maps(NamedTuple):
    """Inputs of a network that starts at an intermediate stage: cached outputs, unchanged."""

    def __call__(self, maps: jax.Array) -> jax.Array:
        """Return the maps unchanged."""
        return maps


class Pixels(NamedTuple):
    """Image preprocessing without resizing: number of channels, key into ``SCALINGS``."""

    channels: int
    scaling: str

    def __call__(self, images: jax.Array) -> jax.Array:
        """Convert pixels (N, H, W, C) to network inputs (N, H, W, channels)."""
        return preprocess.scale(preprocess.convert_channels(images, self.channels), self.scaling)


class Network(NamedTuple):
    """A model with its preprocessing and adapters."""

    model: Any  # Backbone, or a module with its interface: the head of a text network, a detector
    inputs: Inputs | Maps | Pixels
    adapters: AdapterConfig = AdapterConfig()

    def predict(self, variables: Any, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits (N, K) and endpoints of images (N, H, W, C) in evaluation mode."""
        return self.model.apply(self._merged_variables(variables), self.inputs(images), train=False)

    def train(self, variables: Any, inputs: jax.Array, key: jax.Array, norm: float = 0.0):
        """Return logits, endpoints and new statistics of network inputs in training mode."""
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT_KEY), "stochastic_norm": jax.random.fold_in(key, NORM_KEY)}
        with stochastic_norm(norm):
            (logits, endpoints), updates = self.model.apply(
                self._merged_variables(variables), inputs, train=True, mutable=["batch_stats"], rngs=rngs
            )
        return logits, endpoints, updates.get("batch_stats", {})

    def _merged_variables(self, variables: Any) -> dict[str, Any]:
        return {"params": merged_params(variables["params"], self.adapters), "batch_stats": variables["batch_stats"]}


def merged_params(params: Any, config: AdapterConfig) -> dict[str, Any]:
    """Return the network's parameters with adapters merged."""
    return adapters.merge({name: leaves for name, leaves in params.items() if name != "extra"}, config)


@functools.cache
def make_loss(
    net: Network,
    augment_config: AugmentConfig,
    regularize: RegularizeConfig,
    pretext: ImagePretextConfig | None,
    margin: Margin | None = None,
):
    """Return the training loss: softmax cross-entropy in nats on augmented images, averaged over unmasked examples.

    Each example's cross-entropy, smoothed or not, is multiplied by its class weight, as by Keras' ``class_weight``; a
    mixture weighs its two classes by their shares. The mean divides by the number of examples, not by the total weight.

    Penalties and the ``pretext`` loss are added and reported separately. With ``margin`` the network's outputs are
    embeddings, from which the margin computes logits.
    """

    def loss(variables, batch, key):
        source = variables.get("source", {})
        images = net.inputs(augment(batch["inputs"], key, augment_config))
        targets = jax.nn.one_hot(batch["label"], margin.identities if margin else net.model.num_classes)
        targets = optax.smooth_labels(targets, regularize.label_smoothing)
        if regularize.weights:  # before mixing, so that each partner has the weight of its own class
            targets = targets * jnp.asarray(regularize.weights)[batch["label"]][:, None]
        images, targets = regularizers.mix(regularize, images, targets, jax.random.fold_in(key, MIX_KEY))
        logits, endpoints, stats = net.train(variables, images, key, regularize.stochastic_norm)
        if margin:
            logits = margin(variables["params"], logits, batch["label"])
        losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
        if "aux_logits" in endpoints and not margin:
            losses += AUX_WEIGHT * optax.softmax_cross_entropy(endpoints["aux_logits"], targets)
        source_endpoints = {}
        if regularize.compares_maps:
            source_variables = {name: source[name] for name in ("params", "batch_stats")}
            source_endpoints = net.model.apply(source_variables, images, train=False)[1]
        sums = _metric_sums(losses, logits, batch)
        value = sums["loss"][0] / sums["loss"][1]
        added_loss = regularizers.penalty(regularize, variables["params"], endpoints, batch, source, source_endpoints)
        if added_loss is not None:
            value, sums["penalty"] = value + added_loss, (added_loss, 1.0)
        if pretext:
            added_loss, score, _ = _pretext_terms(net, pretext, variables, batch, jax.random.fold_in(key, PRETEXT_KEY))
            value = value + pretext.weight * added_loss
            sums |= {pretext.name: (added_loss, 1.0), f"{pretext.name}_score": (score, 1.0)}
        return value, (stats, sums)

    return loss


@functools.cache
def make_pretext_loss(net: Network, pretext: ImagePretextConfig):
    """Return the loss of the pretext alone, with its score."""

    def loss(variables, batch, key):
        value, score, stats = _pretext_terms(net, pretext, variables, batch, key)
        return value, (stats, {"loss": (value, 1.0), "score": (score, 1.0)})

    return loss


@functools.cache
def make_metrics(net: Network, num_views: int = 1):
    """Return the evaluation function: sums and counts of loss (nats) and accuracy over unmasked examples.

    With ``num_views`` above 1, probabilities are averaged over that many views of each image.
    """

    def metrics(variables, batch):
        logits = predict_logits(net, variables, batch["inputs"], num_views)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
        return _metric_sums(losses, logits, batch)

    return metrics


@functools.cache
def make_predict(net: Network, num_views: int = 1):
    """Return the function (variables, batch) -> probabilities (N, K), averaged over ``num_views`` views."""

    def probabilities(variables, batch):
        return jax.nn.softmax(predict_logits(net, variables, batch["inputs"], num_views).astype(jnp.float32))

    return probabilities


@functools.cache
def make_embeddings(net: Network, num_views: int = 1):
    """Return the function (variables, batch) -> L2-normalized embeddings (N, E), averaged over ``num_views`` views."""

    def embeddings(variables, batch):
        def embed(images):
            return l2_normalize(net.predict(variables, images)[0].astype(jnp.float32))

        if num_views == 1:
            return embed(batch["inputs"])
        return l2_normalize(jax.lax.map(embed, tta_views(batch["inputs"], num_views)).mean(0))

    return embeddings


@functools.cache
def make_features(net: Network, name: str = "features"):
    """Return the function (variables, batch) -> endpoint ``name``, by default features (N, D)."""

    def features(variables, batch):
        return net.predict(variables, batch["inputs"])[1][name]

    return features


def predict_logits(net: Network, variables: Any, images: jax.Array, num_views: int) -> jax.Array:
    """Return the logits (N, K) of images, or the log of the mean probabilities over ``num_views`` views."""
    if num_views == 1:
        return net.predict(variables, images)[0]
    logits = jax.lax.map(lambda view: net.predict(variables, view)[0].astype(jnp.float32), tta_views(images, num_views))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(num_views)


def _pretext_terms(net: Network, pretext: ImagePretextConfig, variables: Any, batch: Any, key: jax.Array):
    """Return the loss, score and new BatchNorm statistics of a pretext."""
    captured = {}

    def embed(images):
        _, endpoints, captured["stats"] = net.train(variables, net.inputs(images), key)
        return endpoints["features"]

    value, score = self_supervised.pretext_loss(
        pretext, embed, variables["params"]["extra"]["pretext"], batch["inputs"], key
    )
    return value, score, captured["stats"]


def _metric_sums(losses, logits, batch):
    correct = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
    mask = batch["mask"]
    count = mask.sum()
    return {"loss": ((losses * mask).sum(), count), "accuracy": ((correct * mask).sum(), count)}


class Head(nn.Module):
    """The head of a text network alone, on precomputed features (N, D) or (N, L, D)."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits (..., K) and the features."""
        y = Dropout(self.dropout, name="head_dropout")(x, train)
        return nn.Dense(self.num_classes, kernel_init=normal_init, name="head")(y), {"features": x}


class Encoder(NamedTuple):
    """A text network with its adapters.

    Attributes:
        model: with its head.
        adapters: added to the kernels.
        frozen: whether all layers below the head run in evaluation mode while the head trains.
    """

    model: Bert
    adapters: AdapterConfig = AdapterConfig()
    frozen: bool = False

    @property
    def head(self) -> Head:
        """The head alone."""
        return Head(self.model.num_classes, self.model.head_dropout)

    def predict(self, variables: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return output and endpoints of a batch in evaluation mode."""
        return self.model.apply(self._merged_variables(variables), **_tokens(batch), train=False)

    def train(self, variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return output and endpoints of a batch in training mode."""
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT_KEY)}
        if not self.frozen:
            return self.model.apply(self._merged_variables(variables), **_tokens(batch), train=True, rngs=rngs)
        _, endpoints = self.predict(variables, batch)
        last_endpoint = (*self.model.layer_names(), "embeddings")[-2 if self.model.layer_names() else 0]
        head_inputs = (
            endpoints[last_endpoint].astype(jnp.float32) if self.model.output == "tokens" else endpoints["features"]
        )
        return self.head.apply(self._merged_variables(variables), head_inputs, train=True, rngs=rngs)[0], endpoints

    def predict_masked(self, variables: Any, batch: Any, hidden: MaskedTexts, key: jax.Array | None) -> jax.Array:
        """Return the logits (N, P, V) of masked words; in training mode if ``key`` is given."""
        ids, positions, _ = hidden
        params = {
            **self._merged_variables(variables)["params"],
            **variables["params"].get("extra", {}).get("pretext", {}),
        }
        model = self.model.clone(num_classes=0, output="masked")
        rngs = {} if key is None else {"dropout": jax.random.fold_in(key, DROPOUT_KEY)}
        inputs = {**_tokens(batch), "input_ids": ids, "positions": positions}
        return model.apply({"params": params}, **inputs, train=key is not None, rngs=rngs)[0]

    def _merged_variables(self, variables: Any) -> dict[str, Any]:
        return {"params": merged_params(variables["params"], self.adapters)}


def _tokens(batch: Any) -> dict[str, jax.Array]:
    return {name: batch[name] for name in TOKEN_ARRAYS}


@functools.cache
def make_text_loss(net: Encoder, regularize: RegularizeConfig, masked_lm: tuple[Masking, float] | None = None):
    """Return the training loss: softmax cross-entropy in nats, averaged over texts or over labelled tokens.

    Penalties and the weighted ``masked_lm`` loss are added and reported separately.
    """

    def loss(variables, batch, key):
        logits, endpoints = net.train(variables, batch, key)
        targets = jax.nn.one_hot(batch["label"], net.model.num_classes)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, regularize.label_smoothing))
        sums = _text_sums(losses, logits, batch["label"], _example_weights(batch))
        value = _mean_of_sums(sums["loss"])
        source = variables.get("source", {})
        source_endpoints = net.predict(source, batch)[1] if regularize.compares_maps else {}
        masked_endpoints = [_mask_padding(maps, batch, regularize.endpoints) for maps in (endpoints, source_endpoints)]
        added_loss = regularizers.penalty(
            regularize, variables["params"], masked_endpoints[0], batch, source, masked_endpoints[1]
        )
        if added_loss is not None:
            value, sums["penalty"] = value + added_loss, (added_loss, 1.0)
        if masked_lm:
            masked_sums = _masked_lm_sums(net, variables, batch, masked_lm[0], jax.random.fold_in(key, PRETEXT_KEY))
            value += masked_lm[1] * _mean_of_sums(masked_sums["loss"])
            sums |= {"words": masked_sums["loss"], "words_score": masked_sums["accuracy"]}
        return value, ({}, sums)

    return loss


@functools.cache
def make_masked_lm_loss(net: Encoder, masking: Masking):
    """Return the masked language modelling loss, averaged over masked words."""

    def loss(variables, batch, key):
        sums = _masked_lm_sums(net, variables, batch, masking, key)
        return _mean_of_sums(sums["loss"]), ({}, sums)

    return loss


@functools.cache
def make_text_metrics(net: Encoder):
    """Return the evaluation function: sums and counts of loss (nats) and accuracy over texts or labelled tokens."""

    def metrics(variables, batch):
        logits, _ = net.predict(variables, batch)
        losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], net.model.num_classes))
        return _text_sums(losses, logits, batch["label"], _example_weights(batch))

    return metrics


@functools.cache
def make_masked_lm_metrics(net: Encoder, masking: Masking):
    """Return the evaluation function of masked language modelling; the mask of a text depends on that text alone."""

    def mask_text(ids, attention_mask):
        """Mask words of one text (L,)."""
        key = jax.random.fold_in(jax.random.key(0), (ids * attention_mask).sum())
        return MaskedTexts(*(leaf[0] for leaf in mask_tokens(ids[None], attention_mask[None], key, masking)))

    def metrics(variables, batch):
        hidden = jax.vmap(mask_text)(batch["input_ids"], batch["attention_mask"])
        return _masked_sums(net, variables, batch, hidden, None)

    return metrics


@functools.cache
def make_text_predict(net: Encoder):
    """Return the function (variables, batch) -> probabilities (N, K), or (N, L, K)."""

    def predict(variables, batch):
        return jax.nn.softmax(net.predict(variables, batch)[0].astype(jnp.float32))

    return predict


@functools.cache
def make_classes(net: Encoder):
    """Return the function (variables, batch) -> most likely classes, int (N,) or (N, L)."""

    def classes(variables, batch):
        return net.predict(variables, batch)[0].argmax(-1)

    return classes


@functools.cache
def make_text_features(net: Encoder):
    """Return the function (variables, batch) -> features (N, D)."""

    def features(variables, batch):
        return net.predict(variables, batch)[1]["features"]

    return features


def _masked_lm_sums(net: Encoder, variables: Any, batch: Any, masking: Masking, key: jax.Array):
    """Return the sums of loss and accuracy for newly masked words."""
    hidden = mask_tokens(batch["input_ids"], batch["attention_mask"], key, masking)
    return _masked_sums(net, variables, batch, hidden, key)


def _masked_sums(net: Encoder, variables: Any, batch: Any, hidden: MaskedTexts, key: jax.Array | None):
    logits = net.predict_masked(variables, batch, hidden, key)
    token_ids = jnp.take_along_axis(batch["input_ids"], hidden.positions, 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, token_ids)
    return _text_sums(losses, logits, token_ids, hidden.weights * batch["mask"][:, None])


def _example_weights(batch: Any) -> jax.Array:
    """Return 1 for texts (N,) or tokens (N, L) with a label, else 0."""
    if batch["label"].ndim == 1:
        return batch["mask"]
    return batch["mask"][:, None] * (batch["label"] != IGNORED)


def _text_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> dict[str, tuple[Any, Any]]:
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    count = weights.sum()
    return {"loss": ((losses * weights).sum(), count), "accuracy": ((correct * weights).sum(), count)}


def _mean_of_sums(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return pair[0] / jnp.maximum(pair[1], 1.0)


def _mask_padding(endpoints: Any, batch: Any, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Return endpoints; those of ``names`` (N, L, D) are zeroed at padding."""
    attention_mask = batch["attention_mask"][..., None]
    return {**endpoints, **{name: endpoints[name] * attention_mask for name in names if name in endpoints}}
