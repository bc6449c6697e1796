"""Losses that need no labels, on two views of the same examples or on pictures turned by a known angle."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tl_jax.errors import UserError


def nt_xent(z1: jax.Array, z2: jax.Array, temperature: float) -> jax.Array:
    """Return SimCLR's loss (Chen et al. 2020, arXiv:2002.05709, eq. 1), mean over the 2N views, in nats.

    Args:
        z1: (N, D) projections of one view; rows are brought to length 1 here.
        z2: (N, D) of the other, in the same order.
        temperature: above 0; cosine similarities are divided by it.
    """
    z = _unit(jnp.concatenate([z1, z2]))
    # A view is no negative of itself, and full precision: similarities are divided by a small temperature.
    logits = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
    logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, logits)
    partners = jnp.roll(jnp.arange(len(z)), len(z1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, partners).mean()


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    """Return SimSiam's minus cosine similarity, mean over N (Chen and He 2021, arXiv:2011.10566, eq. 1 and 3).

    No gradient flows to ``z``. The paper's loss is the mean of this over both ways round, (p1, z2) and (p2, z1).

    Args:
        p: (N, D) predictions from one view.
        z: (N, D) projections of the other.
    """
    return -(_unit(p) * _unit(jax.lax.stop_gradient(z))).sum(1).mean()


def quarter_turns(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Turn each picture by a random multiple of 90 degrees: RotNet (Gidaris et al. 2018, arXiv:1803.07728).

    Args:
        images: (N, S, S, C).
        key: draws the turns.

    Returns:
        The pictures, of the same type, and ``turns`` int32 (N,) in [0, 4), counter-clockwise.

    Raises:
        UserError: pictures that are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise UserError(f"quarter turns need square pictures, not {images.shape[1]}x{images.shape[2]}; crop them first")
    turns = jax.random.randint(key, images.shape[:1], 0, 4, jnp.int32)
    ways = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])
    return ways[turns, jnp.arange(len(images))], turns


class Projector(nn.Module):
    """Dense, normalisation over the batch, ReLU, Dense: (N, D) -> (N, out), what the losses above are taken on.

    The normalisation always uses the batch and keeps no running statistics: a projector is thrown away after training.

    Attributes:
        hidden: width of the hidden layer.
        out: width of the output.
        norm: whether to normalise.
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


def _unit(x: jax.Array) -> jax.Array:
    """Bring rows of (N, D) to length 1; rows shorter than 1e-6 are divided by that, so that zeros have a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(1, keepdims=True), 1e-12))
