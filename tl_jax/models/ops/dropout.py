"""Dropout with a cheap random number generator."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) of values (N, ...); kept values are scaled to preserve the mean.

    Uses the rng "dropout" during training. It is ``nn.Dropout`` with another generator: threefry takes 20 rounds per
    number, which was a fifth of a training step of MiniLM on two CPU cores. Here threefry only provides the key, and
    the numbers are a hash of key and position, which XLA computes where they are used.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        threshold = jnp.uint32(round(2**32 * self.rate))
        keep = hashed_bits(self.make_rng("dropout"), x.shape) >= threshold
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype)).astype(x.dtype)


def hashed_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return 32 random bits for each position of an array, uint32; not cryptographically secure.

    The position is mixed by the function "lowbias32" (C. Wellons, 2018), whose multipliers and shifts were optimized so
    that each input bit flips every output bit with a probability near one half. Half of the key is added before and
    half in between, so two keys give two functions, not shifts of one function.
    """
    before, between = jax.random.bits(key, (2,), jnp.uint32)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    positions = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * (s % 2**32) for axis, s in enumerate(strides)]
    x = sum(positions, before)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = x ^ between
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
