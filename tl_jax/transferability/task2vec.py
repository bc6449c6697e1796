"""Task2Vec: a task as the vector of what each parameter of a network matters to it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.utils.errors import UserError

MAX_GRADIENTS = 2**26  # gradients of one label each that may be in memory at once, in numbers: 256 MiB


def task2vec(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: Any,
    key: jax.Array | None = None,
    draws: int = 0,
    per_filter: bool = True,
) -> jax.Array:
    """Return the Task2Vec embedding of a task: the diagonal of a network's Fisher information on its inputs.

    For each parameter w it is the mean over examples of E (d log p(y | x) / dw)^2, labels y drawn as the network p has
    them (Achille et al. 2019, arXiv:1902.03545). By default that expectation is taken over all K classes, exactly,
    which takes K backward passes an example; with ``draws`` over as many labels drawn from ``key``. The paper's trunk
    is fixed and its head fitted to the task beforehand, and the embedding is the trunk's: pass as ``params`` what it
    is to be of, and close over the rest. Reverse mode, so that layers with a backward pass of their own will do.

    Args:
        apply: pure function, (params, inputs (N, ...)) -> logits (N, K); what it makes of one example must not depend
            on others.
        params: tree of float arrays.
        inputs: (N, ...), or a tree of such.
        key: of the labels, with ``draws``.
        draws: labels an example; 0 for all, each with its probability.
        per_filter: average over all axes but the last of a leaf, which gives one number a filter, as in the paper.

    Returns:
        (E,) float32, leaves one after another in the order of ``jax.tree.leaves``.

    Raises:
        UserError: no inputs, logits of another shape, values that are not finite, or draws without a key.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    counts = {len(leaf) if leaf.ndim else 0 for leaf in jax.tree.leaves(inputs)}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"task2vec takes inputs (N, ...), N the same in all and above 0, not N of {sorted(counts)}")
    if draws < 0 or (draws and key is None):
        raise UserError(f"draws={draws} must be 0, for all labels, or above with a key; pass key")
    logits = jax.eval_shape(apply, params, inputs)
    if not hasattr(logits, "shape") or logits.ndim != 2 or len(logits) not in counts or logits.shape[1] < 2:
        raise UserError(f"apply must return logits (N, K), K 2 or more, not {jax.tree.map(jnp.shape, logits)}")
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(logits))
    fisher = jax.jit(_fisher, static_argnums=(0, 4))(apply, params, inputs, keys, draws)
    leaves = [leaf.reshape(-1, leaf.shape[-1]).mean(0) if per_filter and leaf.ndim else leaf.ravel() for leaf in fisher]
    embedding = jnp.concatenate(leaves)
    _inputs.check_finite(embedding, "Fisher information")
    return embedding


def task2vec_distance(e1: np.ndarray | jax.Array, e2: np.ndarray | jax.Array) -> float:
    """Return the symmetric distance of two embeddings, 1 - cos(e1 / (e1 + e2), e2 / (e1 + e2)), in [0, 1].

    This is the paper's (Achille et al. 2019, arXiv:1902.03545). The quotients make small and large entries count the
    same; entries which both have at zero say nothing and are left out.

    Args:
        e1: (E,) float, not negative.
        e2: (E,) float, of the same parameters of the same network.

    Raises:
        UserError: other shapes, values that are negative or not finite, or embeddings that are zero.
    """
    a, b = (
        np.asarray(_inputs.as_real(e, name), np.float64) for e, name in ((e1, "entries of e1"), (e2, "entries of e2"))
    )
    if a.ndim != 1 or a.shape != b.shape:
        raise UserError(f"embeddings are (E,) of the same parameters, not {a.shape} and {b.shape}")
    for e, name in ((a, "e1"), (b, "e2")):
        if not (np.isfinite(e) & (e >= 0)).all() or not e.any():
            raise UserError(f"{name} must be a task2vec embedding: finite, not negative, and not zero throughout")
    total = np.where(a + b > 0, a + b, 1)
    a, b = a / total, b / total
    return float(np.clip(1 - (a @ b) / np.sqrt((a @ a) * (b @ b)), 0, 1))


def _fisher(apply: Callable, params: Any, inputs: Any, keys: jax.Array, draws: int) -> list[jax.Array]:
    """Return for each leaf the mean over examples of the expected squared gradient of log p, float32."""
    n = len(keys)
    classes = jax.eval_shape(apply, params, inputs).shape[1]
    num_values = sum(leaf.size for leaf in jax.tree.leaves(params)) * (draws or classes)
    chunk = max(1, min(n, MAX_GRADIENTS // max(1, num_values)))

    def example_fisher(example: tuple[Any, jax.Array, jax.Array]) -> list[jax.Array]:
        x, key, valid = example

        def log_p(params: Any) -> jax.Array:
            return jax.nn.log_softmax(apply(params, jax.tree.map(lambda leaf: leaf[None], x))[0].astype(jnp.float32))

        value, backward = jax.vjp(log_p, params)
        # Row y of the identity asks for the gradient of log p(y).
        rows, weights = jnp.eye(classes), jnp.exp(value)
        if draws:
            rows, weights = rows[jax.random.categorical(key, value, shape=(draws,))], jnp.full(draws, 1 / draws)
        (gradients,) = jax.vmap(backward)(rows)
        leaves = [g.astype(jnp.float32) for g in jax.tree.leaves(gradients)]
        return [valid * jnp.tensordot(weights, g**2, 1, precision="highest") for g in leaves]

    def add(total: list[jax.Array], examples: Any) -> tuple[list[jax.Array], None]:
        return [t + f.sum(0) for t, f in zip(total, jax.vmap(example_fisher)(examples), strict=True)], None

    # The last chunk is filled with examples that do not count.
    index = jnp.arange(-(-n // chunk) * chunk)
    examples = *jax.tree.map(lambda leaf: leaf[index % n], (inputs, keys)), (index < n).astype(jnp.float32)
    chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), examples)
    start = [jnp.zeros(leaf.shape, jnp.float32) for leaf in jax.tree.leaves(params)]
    return [total / n for total in jax.lax.scan(add, start, chunks)[0]]
