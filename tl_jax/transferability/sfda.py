"""SFDA: Fisher discriminant analysis of the features, and of features made harder to separate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import eigh_tridiagonal

from tl_jax.transferability import _inputs, _statistics
from tl_jax.transferability.registry import register_score

DECAY, MIN_SHRINKAGE = 5.0, 1e-10  # decay of the shrinkage with the largest eigenvalue, and its minimum


def sfda(features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, log: bool = False) -> float:
    """Return the score of self-challenging Fisher discriminant analysis (Shao et al. 2022, arXiv:2207.03036).

    1. S_w is the within-class covariance with 1 / n. The shrinkage is a = max(exp(-5 s), 1e-10) for its largest
       eigenvalue s (the public code stops its power iteration after six products), and W is
       (1 - a) S_w + a trace(S_w) / D I.
    2. The discriminant of class c is x' inv(W) m_c - 1/2 m_c' inv(W) m_c + log q_c with class means m and proportions
       q, which equals regularized Fisher discriminant analysis with all axes. p(c|x) is the softmax over c.
    3. Confident mixing: each x becomes t x + (1 - t) u, where u is the mean of the other classes' means. t is the entry
       of x's own class in a second softmax, of p itself, with which public code softens p.
    4. Steps 1 and 2 are repeated for these, with the same a. The score is the mean of p(y|x) as in the public code, in
       [0, 1], or with ``log`` the mean of log p(y|x).

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.
        log: return the mean log-likelihood, in nats, at most 0.

    Raises:
        UserError: The shapes do not match, features are not finite, labels are not class indices, or there is only one
            class.
    """
    with jax.enable_x64(True):
        x, y, classes = _inputs.score_inputs(features, labels)
        m = _statistics.compute_moments(x, y, classes)
        return float(sfda_from(m, x, y, single=_statistics.allows_single(x))[int(log)])


@functools.partial(jax.jit, static_argnames="single")
def sfda_from(
    m: _statistics.Moments, x: jax.Array, y: jax.Array, *, single: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return ``sfda`` without and with ``log``, from (N, D) features, (N,) labels and their unweighted moments.

    Args:
        m: the moments.
        x: (N, D) float.
        y: (N,) int in [0, K).
        single: whether products of the second scatter are float32.
    """
    n, d = x.shape
    nonempty = m.counts > 0

    def centred(index):
        return x[index].astype(_statistics.widest()) - m.mean[None]

    means = m.means - m.mean[None]
    if m.wide:
        within = _within_covariance(centred, y, means, n, d, single)
    else:
        within = (m.scatter - m.between()) / n
    a = _shrinkage(within)
    kernel, bias = _discriminants(within, a, means, m.counts)
    others = (means.sum(0, where=nonempty[:, None])[None] - means) / (nonempty.sum() - 1)

    def mixed(index):
        z = centred(index)
        p = jax.nn.softmax(z @ kernel + bias[None])
        own_probability = jnp.exp(jnp.take_along_axis(p, y[index][:, None], 1))
        t = own_probability / jnp.where(nonempty[None], jnp.exp(p), 0.0).sum(1, keepdims=True)
        return t * z + (1 - t) * others[y[index]]

    def sums(index, valid):
        return jax.ops.segment_sum(mixed(index) * valid[:, None], y[index], len(nonempty))

    means = _statistics.sum_over_blocks(sums, n, _statistics.BLOCK) / jnp.where(nonempty, m.counts, 1.0)[:, None]
    new_kernel, new_bias = _discriminants(_within_covariance(mixed, y, means, n, d, single), a, means, m.counts)

    def scores(index, valid):
        p = jax.nn.log_softmax(mixed(index) @ new_kernel + new_bias[None])
        p = jnp.take_along_axis(p, y[index][:, None], 1)[:, 0]
        return (jnp.exp(p) * valid).sum(), (p * valid).sum()

    total, logs = _statistics.sum_over_blocks(scores, n, _statistics.BLOCK)
    return total / n, logs / n


def _within_covariance(rows, y: jax.Array, means: jax.Array, n: int, d: int, single: bool) -> jax.Array:
    """Return the within-class covariance (D, D) of the rows that ``rows`` returns for an index (B,)."""

    def deviations(index, valid):
        return (rows(index) - means[y[index]]) * valid[:, None]

    return _statistics.sum_scatters(deviations, jnp.arange(n), jnp.array([0, n]), d, single)[0] / n


def _shrinkage(within: jax.Array) -> jax.Array:
    # A row's norm is a lower bound of the eigenvalue; if it already gives the minimum shrinkage, it suffices.
    bound = jnp.sqrt((within**2).sum(1)).max()
    needed = (jnp.exp(-DECAY * bound) > MIN_SHRINKAGE) & (len(within) > 1)
    largest = jax.lax.cond(needed, _largest_eigenvalue, lambda a: bound, within)
    return jnp.maximum(jnp.exp(-DECAY * largest), MIN_SHRINKAGE)


def _largest_eigenvalue(a: jax.Array) -> jax.Array:
    """Return the largest eigenvalue of a symmetric matrix, in a third of the time of ``eigvalsh``."""
    if len(a) == 1:
        return a[0, 0]
    _, diagonal, off_diagonal, _ = jax.lax.linalg.tridiagonal(a)
    last = (len(a) - 1, len(a) - 1)
    return eigh_tridiagonal(diagonal, off_diagonal, eigvals_only=True, select="i", select_range=last)[0]


def _discriminants(within: jax.Array, a: jax.Array, means: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return kernel (D, K) and bias (K,) of the class discriminants."""
    d = len(within)
    regularized = (1 - a) * within + a * jnp.trace(within) / d * jnp.eye(d)
    kernel = _statistics.solve_psd(regularized, means.T)
    return kernel, jnp.log(counts / counts.sum()) - 0.5 * (means.T * kernel).sum(0)


register_score("sfda")(lambda x, y, key: sfda(x, y))  # the report computes it from the shared moments
