"""Linear probes: how well a linear classifier does on fixed features."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

from tl_jax.distance import checks
from tl_jax.errors import UserError


class LinearProbe(NamedTuple):
    """A linear classifier on features (N, D): kernel (D, K), bias (K,)."""

    kernel: jax.Array
    bias: jax.Array

    def predict(self, features: np.ndarray | jax.Array) -> jax.Array:
        """Return the likeliest class of each of (N, D) features, int (N,).

        Raises:
            UserError: features of another width, or that are no finite real numbers.
        """
        shape, dims = np.shape(features), self.kernel.shape[0]
        if len(shape) != 2 or shape[1] != dims or not shape[0]:
            raise UserError(f"a probe of {dims} features takes (N, {dims}), not {shape}; take both from the same layer")
        x = jnp.asarray(checks.real(features, largest=checks.LARGEST), jnp.float32)
        return (x @ self.kernel + self.bias[None]).argmax(-1)

    def accuracy(self, features: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> float:
        """Return the share of (N, D) features whose class is that of ``labels`` (N,).

        A class that the probe was not fitted to is never predicted, so that its examples count as wrong.

        Raises:
            UserError: what ``predict`` refuses, another number of labels, or labels that are no classes.
        """
        found, shape = np.asarray(self.predict(features)), np.shape(labels)
        if shape not in (found.shape, (*found.shape, 1)):
            raise UserError(f"{len(found)} examples need labels ({len(found)},), not {shape}; pass one for each")
        return float((found == checks.whole(labels)).mean(dtype=np.float32))


def logistic_probe(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    c: float = 1.0,
    steps: int = 1000,
    tolerance: float = 1e-4,
) -> LinearProbe:
    """Fit multinomial logistic regression by L-BFGS: sum of cross-entropies plus half the squared kernel over ``c``.

    The objective is that of scikit-learn's ``LogisticRegression(C=c)``, so the two agree where both converge.

    Args:
        features: (N, D) float.
        labels: (N,) int in [0, K), K one more than the largest.
        c: inverse strength of the regularisation; the bias is free.
        steps: at most this many steps.
        tolerance: largest entry of the gradient of the mean objective at which the fit ends.

    Raises:
        UserError: shapes that do not belong together, values that are not finite, or a single class.
    """
    x, y, classes = checks.labelled(features, labels)
    if not c > 0:
        raise UserError(f"c={c} must be above 0")
    # Centred and on one scale the problem is far better conditioned; the penalty is carried over exactly.
    mean, scale = x.mean(0), jnp.maximum(x.std(), 1e-12)
    kernel, bias = _fit((x - mean[None]) / scale, y, c * scale**2, classes, steps, tolerance)
    checks.finite(kernel, "weights of the fitted probe")
    kernel = kernel / scale
    return LinearProbe(kernel, bias - mean @ kernel)


def ridge_probe(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    c: float = 1.0,
) -> LinearProbe:
    """Fit ridge regression to the classes in closed form: sum of squared errors plus the squared kernel over ``c``.

    The target of an example is 1 for its class and -1 for the others; the bias is free. This is scikit-learn's
    ``RidgeClassifier(alpha=1 / c)`` (Hoerl and Kennard 1970 for the penalty). Its cost is N D min(N, D).

    Args:
        features: (N, D) float.
        labels: (N,) int in [0, K), K one more than the largest.
        c: inverse strength of the regularisation.

    Raises:
        UserError: shapes that do not belong together, values that are not finite, a single class, or a ``c`` so large
            that linearly dependent features leave the kernel open.
    """
    single, y, classes = checks.labelled(features, labels)
    if not c > 0:
        raise UserError(f"c={c} must be above 0")
    # In double precision and therefore on the host: the Gram matrix squares the condition of the features.
    x = np.array(single, np.float64)
    targets = np.where(np.asarray(y)[:, None] == np.arange(classes)[None], 1.0, -1.0)
    mean, average = x.mean(0), targets.mean(0)
    x -= mean[None]
    targets -= average[None]
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    gram[np.diag_indices_from(gram)] += 1 / c
    try:
        factor = scipy.linalg.cho_factor(gram, overwrite_a=True)
    except np.linalg.LinAlgError:
        raise UserError(f"c={c} is too large for linearly dependent features; make it smaller") from None
    kernel = x.T @ scipy.linalg.cho_solve(factor, targets) if wide else scipy.linalg.cho_solve(factor, x.T @ targets)
    return LinearProbe(jnp.asarray(kernel, jnp.float32), jnp.asarray(average - mean @ kernel, jnp.float32))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fit(x: jax.Array, y: jax.Array, c: jax.Array, classes: int, steps: int, tolerance: float):
    """Minimise the mean objective; ``c`` belongs to features on the scale of ``x``."""
    optimizer = optax.lbfgs(memory_size=20)

    def loss(params):
        kernel, bias = params
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias[None], y)
        return (losses.sum() + (kernel**2).sum() / (2 * c)) / len(x)

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, i, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        largest = jnp.maximum(jnp.abs(grad[0]).max(), jnp.abs(grad[1]).max())
        return optax.apply_updates(params, updates), state, i + 1, largest

    def unfinished(carry):
        return (carry[2] < steps) & (carry[3] > tolerance)

    start = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
    return jax.lax.while_loop(unfinished, step, (start, optimizer.init(start), 0, jnp.inf))[0]
