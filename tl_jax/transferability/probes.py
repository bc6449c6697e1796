"""Probes of frozen features: nearest neighbors, logistic and ridge regression, and their cross-validated accuracy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from sklearn.model_selection import StratifiedKFold

from tl_jax.transferability import _inputs
from tl_jax.transferability.registry import CLASSIFIER, register_score
from tl_jax.utils.errors import UserError, nearest

METRICS = ("cosine", "euclidean")
QUERY_BLOCK = 2**24  # numbers per block of queries, besides the features: 64 MiB


def knn(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    queries: np.ndarray | jax.Array,
    k: int = 5,
    metric: str = "cosine",
) -> jax.Array:
    """Return the majority class of the ``k`` nearest examples of each query (Cover and Hart 1967), int (M,).

    If classes tie, the one with the nearest member wins; of equally distant examples, the earlier counts as nearer.
    Distances are float32. Queries are processed in blocks, so memory is N D + M D plus 64 MiB.

    Args:
        features: (N, D) float, the examples.
        labels: (N,) int in [0, K), their classes.
        queries: (M, D) float.
        k: number of neighbors that vote, in [1, N].
        metric: "cosine", without centering (a zero vector is orthogonal to all), or "euclidean".

    Raises:
        UserError: The shapes do not match, values are not finite, there is only one class, the metric is unknown, or
            ``k`` exceeds the number of examples.
    """
    x, y, _ = _inputs.probe_inputs(features, labels)
    shape = np.shape(queries)
    if len(shape) != 2 or shape[1] != x.shape[1]:
        raise UserError(f"queries: shape {shape} does not match (M, {x.shape[1]}); use the network of the features")
    q = jnp.asarray(_inputs.as_real(queries, "queries", _inputs.MAX_VALUE), jnp.float32)
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}; {nearest(metric, METRICS)}")
    if not 1 <= k <= len(x):
        raise UserError(f"k={k}: out of range; it must be from 1 to {len(x)}, the number of examples")
    return _vote(x, y, q, int(k), metric)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _vote(x: jax.Array, y: jax.Array, queries: jax.Array, k: int, metric: str) -> jax.Array:
    if metric == "cosine":
        x, queries, offset = _normalize_rows(x), _normalize_rows(queries), jnp.zeros(len(x))
    else:
        # |x - q|^2 = |q|^2 - 2 (q x - |x|^2 / 2), where |q|^2 is the same for all x. Centering reduces rounding in the
        # difference of the others.
        scale = _scale_exponent(jnp.abs(x).max())
        x, queries = jnp.ldexp(x, -scale), jnp.ldexp(queries, -scale)
        mean = x.mean(0)
        x, queries = x - mean[None], queries - mean[None]
        offset = (x**2).sum(1) / 2

    def classify(query: jax.Array) -> jax.Array:
        similarity = jnp.matmul(query, x.T, precision="highest") - offset
        classes = y[jax.lax.top_k(similarity, k)[1]]
        votes = (classes[:, None] == classes[None]).sum(1)
        return classes[votes.argmax()]  # argmax returns the first of tied votes, that of the nearest

    return jax.lax.map(classify, queries, batch_size=max(1, QUERY_BLOCK // (len(x) + k * k)))


def _scale_exponent(size: jax.Array) -> jax.Array:
    """Return the exponent of an exact scaling, so that squares of tiny numbers do not underflow."""
    return jnp.where(size < 1e-9, jnp.frexp(size)[1], 0)


def _normalize_rows(x: jax.Array) -> jax.Array:
    """L2-normalize the rows of ``x``; zero stays zero."""
    x = jnp.ldexp(x, -_scale_exponent(jnp.abs(x).max(1, keepdims=True)))
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), jnp.finfo(x.dtype).tiny)


class LinearProbe(NamedTuple):
    """A linear classifier on features (N, D): kernel (D, K), bias (K,)."""

    kernel: jax.Array
    bias: jax.Array

    def predict(self, features: np.ndarray | jax.Array) -> jax.Array:
        """Return the most likely class of each of (N, D) features, int (N,).

        Raises:
            UserError: The features have another width, or are not finite real numbers.
        """
        shape, dims = np.shape(features), self.kernel.shape[0]
        if len(shape) != 2 or shape[1] != dims or not shape[0]:
            raise UserError(f"probe: fitted to {dims} features, but got {shape}; take both from the same layer")
        x = jnp.asarray(_inputs.as_real(features, max_value=_inputs.MAX_VALUE), jnp.float32)
        return (x @ self.kernel + self.bias[None]).argmax(-1)

    def accuracy(self, features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
        """Return the accuracy on (N, D) features with ``labels`` (N,).

        A class that the probe was not fitted to is never predicted, so its examples count as wrong.

        Raises:
            UserError: As ``predict``, or the labels do not match the features, or are not class indices.
        """
        predictions, shape = np.asarray(self.predict(features)), np.shape(labels)
        if shape not in (predictions.shape, (*predictions.shape, 1)):
            raise UserError(
                f"labels: shape {shape} does not match {len(predictions)} examples ({len(predictions)},); pass one each"
            )
        return float((predictions == _inputs.as_class_ids(labels)).mean(dtype=np.float32))


def logistic_probe(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    c: float = 1.0,
    steps: int = 1000,
    tolerance: float = 1e-4,
) -> LinearProbe:
    """Fit multinomial logistic regression by L-BFGS: sum of cross-entropies plus half the squared kernel over ``c``.

    The objective is that of scikit-learn's ``LogisticRegression(C=c)``, so both agree if they converge.

    Args:
        features: (N, D) float.
        labels: (N,) int in [0, K), where K is the largest label plus 1.
        c: inverse regularization strength; the bias is not regularized.
        steps: maximum number of steps.
        tolerance: largest gradient entry of the mean objective at which the fit stops.

    Raises:
        UserError: The shapes do not match, values are not finite, or there is only one class.
    """
    x, y, classes = _inputs.probe_inputs(features, labels)
    if not c > 0:
        raise UserError(f"c={c}: out of range; it must be above 0")
    # Centering and scaling improve the conditioning; the penalty is converted exactly.
    mean, scale = x.mean(0), jnp.maximum(x.std(), 1e-12)
    kernel, bias = _fit_logistic((x - mean[None]) / scale, y, c * scale**2, classes, steps, tolerance)
    _inputs.check_finite(kernel, "weights of the fitted probe")
    kernel = kernel / scale
    return LinearProbe(kernel, bias - mean @ kernel)


def ridge_probe(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    c: float = 1.0,
) -> LinearProbe:
    """Fit ridge regression to the classes in closed form: sum of squared errors plus the squared kernel over ``c``.

    The target of an example is 1 for its class and -1 for the others; the bias is not regularized. This is
    scikit-learn's ``RidgeClassifier(alpha=1 / c)`` (Hoerl and Kennard 1970 for the penalty). The cost is
    N D min(N, D).

    Args:
        features: (N, D) float.
        labels: (N,) int in [0, K), where K is the largest label plus 1.
        c: inverse regularization strength.

    Raises:
        UserError: The shapes do not match, values are not finite, there is only one class, or ``c`` is too large to
            determine the kernel for linearly dependent features.
    """
    single, y, classes = _inputs.probe_inputs(features, labels)
    if not c > 0:
        raise UserError(f"c={c}: out of range; it must be above 0")
    # On the host in double precision, since the Gram matrix squares the condition number of the features.
    x = np.array(single, np.float64)
    targets = np.where(np.asarray(y)[:, None] == np.arange(classes)[None], 1.0, -1.0)
    mean, target_mean = x.mean(0), targets.mean(0)
    x -= mean[None]
    targets -= target_mean[None]
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    gram[np.diag_indices_from(gram)] += 1 / c
    try:
        factor = scipy.linalg.cho_factor(gram, overwrite_a=True)
    except np.linalg.LinAlgError:
        raise UserError(f"c={c}: too large for linearly dependent features; decrease it") from None
    kernel = x.T @ scipy.linalg.cho_solve(factor, targets) if wide else scipy.linalg.cho_solve(factor, x.T @ targets)
    return LinearProbe(jnp.asarray(kernel, jnp.float32), jnp.asarray(target_mean - mean @ kernel, jnp.float32))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fit_logistic(x: jax.Array, y: jax.Array, c: jax.Array, classes: int, steps: int, tolerance: float):
    """Minimize the mean objective; ``c`` refers to features on the scale of ``x``."""
    optimizer = optax.lbfgs(memory_size=20)

    def loss(params):
        kernel, bias = params
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias[None], y)
        return (losses.sum() + (kernel**2).sum() / (2 * c)) / len(x)

    value_and_grad = cast(Callable[..., Any], optax.value_and_grad_from_state(loss))  # optax' gradient type is too wide

    def step(carry):
        params, state, i, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        largest = jnp.maximum(jnp.abs(grad[0]).max(), jnp.abs(grad[1]).max())
        return optax.apply_updates(params, updates), state, i + 1, largest

    def not_converged(carry):
        return (carry[2] < steps) & (carry[3] > tolerance)

    initial = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
    return jax.lax.while_loop(not_converged, step, (initial, optimizer.init(initial), 0, jnp.inf))[0]


Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # features, labels, queries -> classes

# With k = 5 and c = 1.
register_score("knn", CLASSIFIER)(lambda x, y, q: np.asarray(knn(x, y, q, min(5, len(x)))))
register_score("ridge_probe", CLASSIFIER)(lambda x, y, q: np.asarray(ridge_probe(x, y).predict(q)))
register_score("logistic_probe", CLASSIFIER)(lambda x, y, q: np.asarray(logistic_probe(x, y).predict(q)))


def cross_validated_hits(classify: Classifier, x: np.ndarray, y: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return for each example whether a classifier fitted to the other folds predicts its class, float (N,).

    Args:
        classify: fits and predicts.
        x: (N, D) float.
        y: (N,) int in [0, K).
        folds: number of stratified folds.
        seed: random seed of the folds.

    Raises:
        UserError: No class has as many examples as there are folds, or there are fewer than two folds.
    """
    max_folds = np.bincount(y).max()
    if not 2 <= folds <= max_folds:
        raise UserError(f"folds={folds}: must be from 2 to {max_folds}, the number of examples of the largest class")
    hits = np.zeros(len(y))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(x, y):
        is_single_class = len(np.unique(y[train])) < 2  # the only example of the other class is held out
        hits[test] = (y[train][0] if is_single_class else classify(x[train], y[train], x[test])) == y[test]
    return hits
