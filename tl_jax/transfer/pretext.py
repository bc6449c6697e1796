"""Learning from pictures without labels: views, heads and losses of the pretext tasks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl_jax.data.augment import Augment, augment
from tl_jax.transfer.self_supervision import Projector, negative_cosine, nt_xent, quarter_turns

TURNS = 4
Embed = Callable[[jax.Array], jax.Array]  # pictures (N, H, W, C) in [0, 255] -> features (N, D), in training mode


class Pretext(NamedTuple):
    """A pretext task.

    Attributes:
        name: "rotation", "simclr" or "simsiam".
        weight: of its loss beside that of the labels, 0 where it has phases of its own only.
        temperature: of simclr.
        width: outputs of the projector.
        crop: least share of the area that a view keeps.
        jitter: strength of colour jitter in a view.
    """

    name: str
    weight: float = 0.0
    temperature: float = 0.1
    width: int = 128
    crop: float = 0.3
    jitter: float = 0.4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Pretext":
        """Return the pretext of the fields of ``config.pretext``, one of which is for texts."""
        return cls(**{name: value for name, value in values.items() if name in cls._fields})

    @property
    def views(self) -> Augment:
        """How a view is made of a picture: SimCLR's recipe (arXiv:2002.05709, appendix A) without blur."""
        return Augment(flip=True, resized_crop=self.crop, jitter=self.jitter, grey=0.2)


def init_heads(how: Pretext, dims: int, key: jax.Array) -> dict[str, Any]:
    """Draw the parameters of the pretext's own head on ``dims`` features."""
    features, (first, second) = jnp.zeros((2, dims)), jax.random.split(key)
    if how.name == "rotation":
        return {"kernel": jax.random.normal(first, (dims, TURNS)) * dims**-0.5, "bias": jnp.zeros(TURNS)}
    heads = {"projector": _projector(how, dims).init(first, features)["params"]}
    if how.name == "simsiam":
        heads["predictor"] = _predictor(how).init(second, jnp.zeros((2, how.width)))["params"]
    return heads


def loss(how: Pretext, embed: Embed, heads: Any, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the loss of pictures (N, H, W, C) in [0, 255], and a score in [0, 1] that should rise.

    The score is the share of turns that are recognised, or of views whose most similar other view is their partner.
    """
    first, second = jax.random.split(key)
    if how.name == "rotation":
        turned, turns = quarter_turns(augment(images, first, Augment(flip=True)), second)
        logits = embed(turned) @ heads["kernel"] + heads["bias"][None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, turns)
        return losses.mean(), (logits.argmax(-1) == turns).mean()
    views = jnp.concatenate([augment(images, k, how.views) for k in (first, second)])
    features = embed(views)
    projections = _projector(how, features.shape[-1]).apply({"params": heads["projector"]}, features)
    z1, z2 = jnp.split(projections, 2)
    if how.name == "simclr":
        return nt_xent(z1, z2, how.temperature), _matched(z1, z2)
    p1, p2 = jnp.split(_predictor(how).apply({"params": heads["predictor"]}, projections), 2)
    return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2, _matched(z1, z2)


def _projector(how: Pretext, dims: int) -> Projector:
    return Projector(hidden=min(dims, 512), out=how.width)


def _predictor(how: Pretext) -> Projector:
    return Projector(hidden=max(2, how.width // 4), out=how.width)  # a bottleneck, as in the paper


def _matched(z1: jax.Array, z2: jax.Array) -> jax.Array:
    z1, z2 = (z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-6) for z in (z1, z2))
    return ((z1 @ z2.T).argmax(1) == jnp.arange(len(z1))).mean()
