"""Task2Vec: task embedding by the importance of each network parameter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.utils.errors import UserError

MAX_GRADIENTS = 2**26  # numbers in the per-label gradients in memory at once: 256 MiB


def task2vec(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: Any,
    key: jax.Array | None = None,
    draws: int = 0,
    per_filter: bool = True,
) -> jax.Array:
    """Return the Task2Vec embedding of a task: the diagonal of a network's Fisher information on its inputs.

    For each parameter w it is the mean over examples of E (d log p(y | x) / dw)^2, with labels y distributed as the
    network's p (Achille et al. 2019, arXiv:1902.03545). By default the expectation is exact, over all K classes, which
    takes K backward passes per example; with ``draws`` it uses that many labels sampled with ``key``. In the paper, the
    trunk is fixed, the head is fitted to the task first, and the embedding is that of the trunk: pass the trunk's
    parameters as ``params``, and close over the others. Reverse mode is used, so custom backward passes are supported.

    Args:
        apply: pure function, (params, inputs (N, ...)) -> logits (N, K); each example's logits must not depend on other
            examples.
        params: tree of float arrays.
        inputs: (N, ...), or a tree of such arrays.
        key: random key of the labels, with ``draws``.
        draws: labels per example; 0 for all, weighted by their probability.
        per_filter: average each leaf over all axes but the last, which gives one number per filter, as in the paper.

    Returns:
        (E,) float32, leaves concatenated in the order of ``jax.tree.leaves``.

    Raises:
        UserError: There are no inputs, logits have another shape, values are not finite, or ``draws`` lacks a key.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    counts = {len(leaf) if leaf.ndim else 0 for leaf in jax.tree.leaves(inputs)}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"task2vec: inputs have N of {sorted(counts)}; pass inputs (N, ...) with one N above 0")
    if draws < 0 or (draws and key is None):
        raise UserError(f"draws={draws}: must be 0, for all labels, or positive with a key; pass key")
    logits = jax.eval_shape(apply, params, inputs)
    if not hasattr(logits, "shape") or logits.ndim != 2 or len(logits) not in counts or logits.shape[1] < 2:
        raise UserError(f"apply: returned {jax.tree.map(jnp.shape, logits)}; it must return logits (N, K), K 2 or more")
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(logits))
    fisher = jax.jit(_fisher, static_argnums=(0, 4))(apply, params, inputs, keys, draws)
    leaves = [leaf.reshape(-1, leaf.shape[-1]).mean(0) if per_filter and leaf.ndim else leaf.ravel() for leaf in fisher]
    embedding = jnp.concatenate(leaves)
    _inputs.check_finite(embedding, "Fisher information")
    return embedding


def task2vec_distance(e1: np.ndarray | jax.Array, e2: np.ndarray | jax.Array) -> float:
    """Return the symmetric distance of two embeddings, 1 - cos(e1 / (e1 + e2), e2 / (e1 + e2)), in [0, 1].

    This is the paper's distance (Achille et al. 2019, arXiv:1902.03545). The quotients give small and large entries the
    same weight; entries that are zero in both are omitted.

    Args:
        e1: (E,) float, nonnegative.
        e2: (E,) float, of the same parameters of the same network.

    Raises:
        UserError: The shapes differ, values are negative or not finite, or an embedding is zero.
    """
    a, b = (
        np.asarray(_inputs.as_real(e, name), np.float64) for e, name in ((e1, "entries of e1"), (e2, "entries of e2"))
    )
    if a.ndim != 1 or a.shape != b.shape:
        raise UserError(f"embeddings {a.shape} and {b.shape} do not match; pass (E,) of the same parameters")
    for e, name in ((a, "e1"), (b, "e2")):
        if not (np.isfinite(e) & (e >= 0)).all() or not e.any():
            raise UserError(f"{name}: not a task2vec embedding; it must be finite, nonnegative and not all zero")
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
        # Row y of the identity selects the gradient of log p(y).
        rows, weights = jnp.eye(classes), jnp.exp(value)
        if draws:
            rows, weights = rows[jax.random.categorical(key, value, shape=(draws,))], jnp.full(draws, 1 / draws)
        (gradients,) = jax.vmap(backward)(rows)
        leaves = [g.astype(jnp.float32) for g in jax.tree.leaves(gradients)]
        return [valid * jnp.tensordot(weights, g**2, 1, precision="highest") for g in leaves]

    def add(total: list[jax.Array], examples: Any) -> tuple[list[jax.Array], None]:
        return [t + f.sum(0) for t, f in zip(total, jax.vmap(example_fisher)(examples), strict=True)], None

    # The last chunk is padded with examples of weight 0.
    index = jnp.arange(-(-n // chunk) * chunk)
    examples = *jax.tree.map(lambda leaf: leaf[index % n], (inputs, keys)), (index < n).astype(jnp.float32)
    chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), examples)
    start = [jnp.zeros(leaf.shape, jnp.float32) for leaf in jax.tree.leaves(params)]
    return [total / n for total in jax.lax.scan(add, start, chunks)[0]]
