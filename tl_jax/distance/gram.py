"""Scatters of features by blocks of rows, in double precision or in single products with double sums."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl_jax.distance import matrices

BLOCK = 1024  # rows whose products are summed before the sum goes on in double precision
PANELS = 4  # strips of a scatter: what is below the diagonal's blocks is not computed, 3 / 8 of the work
DISTORTION = 1e-4  # of TransRate's coding rate


def over_blocks(function: Callable, n: int, block: int):
    """Return the sum over blocks of rows of ``function(index, there)``; ``there`` is 0 past the last row, else 1."""
    size = min(block, n)

    def body(total, start):
        place = start + jnp.arange(size)
        found = function(jnp.minimum(place, n - 1), (place < n).astype(jnp.float64))
        return jax.tree.map(jnp.add, total, found), None

    first = jax.eval_shape(function, jnp.zeros(size, int), jnp.zeros(size))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    return jax.lax.scan(body, zeros, jnp.arange(0, n, size))[0]


def scatters(
    rows: Callable,
    order: jax.Array,
    bounds: jax.Array,
    d: int,
    single: bool,
    rated: bool = False,
    counts: jax.Array | None = None,
    block: int = BLOCK,
    panels: int = PANELS,
) -> tuple[jax.Array, jax.Array]:
    """Return Z' Z (D, D) of all rows, and the coding rate of each group of them, zeros unless ``rated``.

    Args:
        rows: gives rows (B, D) of Z for their index (B,), times the second argument's 0 or 1 (B,).
        order: (N,) the rows, one group's beside each other.
        bounds: (G + 1,) where in ``order`` each group begins, and the end.
        d: D.
        single: products in float32.
        rated: whether groups are classes, of ``counts`` (G,), and their rates wanted.
        counts: (G,).
        block: rows of which products are taken at once.
        panels: strips of the scatter.
    """
    size, width = min(block, len(order)), -(-d // panels)
    edges = list(range(0, d, width))
    zeros = [jnp.zeros((min(width, d - i), d - i)) for i in edges]

    def strips(place, end):
        there = place < end
        z = rows(order[jnp.minimum(place, len(order) - 1)], there.astype(jnp.float64))
        z = z.astype(jnp.float32) if single else z
        return [_product(z[:, i : i + width].T, z[:, i:]).astype(jnp.float64) for i in edges]

    def group(total, g):
        start, end = bounds[g], bounds[g + 1]

        def body(j, sums):
            return jax.tree.map(jnp.add, sums, strips(start + j * size + jnp.arange(size), end))

        own = jax.lax.fori_loop(0, (end - start + size - 1) // size, body, zeros)
        if rated:
            rate = matrices.half_logdet(_whole(own) / (jnp.maximum(counts[g], 1e-300) * DISTORTION))
        else:
            rate = jnp.zeros(())
        return jax.tree.map(jnp.add, total, own), rate

    total, rates = jax.lax.scan(group, zeros, jnp.arange(len(bounds) - 1))
    return _whole(total), rates


def _whole(strips: list[jax.Array]) -> jax.Array:
    """Return the symmetric matrix whose strips, from the diagonal's blocks on, are given."""
    d = strips[0].shape[1]
    upper = jnp.concatenate([jnp.pad(s, ((0, 0), (d - s.shape[1], 0))) for s in strips])
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def class_rates(rows, order, starts, counts, longest: int, single: bool) -> jax.Array:
    """Return the coding rate of each class (K,) from the products of its examples with each other."""

    def rate(c):
        place = starts[c] + jnp.arange(longest)
        there = (place < starts[c + 1]).astype(jnp.float64)
        z = rows(order[jnp.minimum(place, len(order) - 1)], there)
        z = z.astype(jnp.float32) if single else z
        return matrices.half_logdet(
            _product(z, z.T).astype(jnp.float64) / (jnp.maximum(counts[c], 1e-300) * DISTORTION)
        )

    return jax.lax.map(rate, jnp.arange(len(counts)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
