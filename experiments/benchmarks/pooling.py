"""Pooling at the shapes of VGG16, ResNet50 and InceptionV3: shifted pictures against XLA's windows, in turns.

    python -m experiments.benchmarks.pooling

Each line has the least of five turns of either, in milliseconds, forward and with the gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp

from experiments.benchmarks.depthwise import BATCH, in_turns
from tl_jax.models.ops import conv, pooling

# side, channels, then window, stride and padding of a maximum; none for a mean
SHAPES = ((224, 64, 2, 2, 0), (56, 256, 2, 2, 0), (112, 64, 3, 2, 1), (147, 64, 3, 2, 0), (71, 192, 3, 2, 0),
          (17, 768, 3, 2, 0), (35, 288), (17, 768), (8, 1280))  # fmt: skip


def main() -> None:
    """Print a table."""
    print(f"batch {BATCH}, ms            shifted    windows   ratio   | with gradient: shifted    windows   ratio")
    for side, channels, *window in SHAPES:
        x = jax.nn.relu(jax.random.normal(jax.random.key(0), (BATCH, side, side, channels)))
        pool = partial(pooling.max_pool, window=window[0], stride=window[1], pad=window[2]) if window else mean

        def plain(x, pool=pool):
            with conv.plain():
                return pool(x)

        dy = jnp.ones_like(pool(x))
        forward = in_turns([jax.jit(pool), jax.jit(plain)], x)
        backward = in_turns([jax.jit(with_gradient(pool)), jax.jit(with_gradient(plain))], x, dy)
        cells = "   | ".join(f"{a:10.1f} {b:10.1f} {b / a:7.1f}" for a, b in (forward, backward))
        print(f"{side:4d} x {channels:4d} {'max' if window else 'mean'}   {cells}", flush=True)


def mean(x):
    """Average as Keras' InceptionV3 does."""
    return pooling.mean_pool(x, count_padding=False)


def with_gradient(pool):
    """Return the gradient of a pooling, which computes its value as well."""
    return lambda x, dy: jax.vjp(pool, x)[1](dy)


if __name__ == "__main__":
    main()
