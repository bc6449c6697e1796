"""Self-supervised learning on images: views, heads and losses of SimCLR, SimSiam and RotNet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tl_jax.config.options import Options, option
from tl_jax.data.augment import AugmentConfig, augment
from tl_jax.utils.errors import UserError


def nt_xent(z1: jax.Array, z2: jax.Array, temperature: float) -> jax.Array:
    """Return SimCLR's loss (Chen et al. 2020, arXiv:2002.05709, eq. 1), averaged over the 2N views, in nats.

    Args:
        z1: (N, D) projections of one view; rows are L2-normalized here.
        z2: (N, D) projections of the other view, in the same order.
        temperature: divisor of the cosine similarities, above 0.
    """
    z = _normalize_rows(jnp.concatenate([z1, z2]))
    # Full precision, since similarities are divided by a small temperature.
    logits = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
    logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, logits)
    partners = jnp.roll(jnp.arange(len(z)), len(z1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, partners).mean()


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    """Return SimSiam's negative cosine similarity, averaged over N (Chen and He 2021, arXiv:2011.10566, eq. 1 and 3).

    No gradient flows to ``z``. The paper's loss is the mean over both orders, (p1, z2) and (p2, z1).

    Args:
        p: (N, D) predictions from one view.
        z: (N, D) projections of the other view.
    """
    return -(_normalize_rows(p) * _normalize_rows(jax.lax.stop_gradient(z))).sum(1).mean()


def quarter_turns(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotate each image by a random multiple of 90 degrees: RotNet (Gidaris et al. 2018, arXiv:1803.07728).

    Args:
        images: (N, S, S, C).
        key: samples the rotations.

    Returns:
        The images, with the same dtype, and ``turns``, int32 (N,) in [0, 4), counter-clockwise.

    Raises:
        UserError: The images are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise UserError(
            f"images are {images.shape[1]}x{images.shape[2]}: rotations need square images; crop them first"
        )
    turns = jax.random.randint(key, images.shape[:1], 0, 4, jnp.int32)
    rotations = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])
    return rotations[turns, jnp.arange(len(images))], turns


class Projector(nn.Module):
    """Projection head: Dense, batch normalization, ReLU, Dense; (N, D) -> (N, out).

    The normalization always uses batch statistics and tracks no running ones, since the head is discarded after
    training.

    Attributes:
        hidden: width of the hidden layer.
        out: width of the output.
        norm: whether to normalize.
    """

    hidden: int
    out: int
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.hidden, use_bias=not self.norm, name="dense1")(x)
        if self.norm:
            scale = self.param("scale", nn.initializers.ones, (self.hidden,))
            bias = self.param("bias", nn.initializers.zeros, (self.hidden,))
            x = (x - x.mean(0)[None]) * jax.lax.rsqrt(x.var(0) + 1e-5)[None]
            x = x * scale[None] + bias[None]
        return nn.Dense(self.out, name="dense2")(nn.relu(x))


def _normalize_rows(x: jax.Array) -> jax.Array:
    """L2-normalize the rows of (N, D); norms below 1e-6 are clamped, so zero rows have a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(1, keepdims=True), 1e-12))


TURNS = 4
Embed = Callable[[jax.Array], jax.Array]  # images (N, H, W, C) in [0, 255] -> features (N, D), in training mode


@dataclass(frozen=True)
class PretextConfig(Options):
    """Self-supervised training: in phases with objective "pretext", or jointly with the labels."""

    name: str = option("", "pretext task", ("", "rotation", "simclr", "simsiam", "masked"))
    weight: float = option(
        0.0, "weight of the pretext loss next to the labels' loss; 0: in pretext phases only", low=0.0
    )


@dataclass(frozen=True)
class ImagePretextConfig(PretextConfig):
    """Pretext task on images: rotation, SimCLR or SimSiam."""

    temperature: float = option(0.1, "temperature of simclr", low=1e-3)
    width: int = option(128, "output width of the projection head of simclr and simsiam", low=2)
    crop: float = option(0.3, "smallest fraction of the image area in a view", low=0.05, high=1.0)
    jitter: float = option(0.4, "strength of color jitter in a view", low=0.0, high=1.0)

    @property
    def views(self) -> AugmentConfig:
        """Augmentation of the views: SimCLR's (arXiv:2002.05709, appendix A) without blur."""
        return AugmentConfig(flip=True, resized_crop=self.crop, jitter=self.jitter, grey=0.2)


def init_heads(pretext: ImagePretextConfig, dims: int, key: jax.Array) -> dict[str, Any]:
    """Initialize the pretext's own head on ``dims`` features."""
    features, (first, second) = jnp.zeros((2, dims)), jax.random.split(key)
    if pretext.name == "rotation":
        return {"kernel": jax.random.normal(first, (dims, TURNS)) * dims**-0.5, "bias": jnp.zeros(TURNS)}
    heads = {"projector": _projector(pretext, dims).init(first, features)["params"]}
    if pretext.name == "simsiam":
        heads["predictor"] = _predictor(pretext).init(second, jnp.zeros((2, pretext.width)))["params"]
    return heads


def pretext_loss(
    pretext: ImagePretextConfig, embed: Embed, heads: Any, images: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the pretext loss of images (N, H, W, C) in [0, 255], and an accuracy in [0, 1].

    The accuracy is the share of rotations predicted correctly, or of views whose most similar other view is their
    partner.
    """
    first, second = jax.random.split(key)
    if pretext.name == "rotation":
        turned, turns = quarter_turns(augment(images, first, AugmentConfig(flip=True)), second)
        logits = embed(turned) @ heads["kernel"] + heads["bias"][None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, turns)
        return losses.mean(), (logits.argmax(-1) == turns).mean()
    views = jnp.concatenate([augment(images, k, pretext.views) for k in (first, second)])
    features = embed(views)
    projector = _projector(pretext, features.shape[-1])
    projections = cast(jax.Array, projector.apply({"params": heads["projector"]}, features))
    z1, z2 = jnp.split(projections, 2)
    if pretext.name == "simclr":
        return nt_xent(z1, z2, pretext.temperature), _match_accuracy(z1, z2)
    predictions = cast(jax.Array, _predictor(pretext).apply({"params": heads["predictor"]}, projections))
    p1, p2 = jnp.split(predictions, 2)
    return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2, _match_accuracy(z1, z2)


def _projector(pretext: ImagePretextConfig, dims: int) -> Projector:
    return Projector(hidden=min(dims, 512), out=pretext.width)


def _predictor(pretext: ImagePretextConfig) -> Projector:
    return Projector(hidden=max(2, pretext.width // 4), out=pretext.width)  # a bottleneck, as in the paper


def _match_accuracy(z1: jax.Array, z2: jax.Array) -> jax.Array:
    z1, z2 = (z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-6) for z in (z1, z2))
    return ((z1 @ z2.T).argmax(1) == jnp.arange(len(z1))).mean()
