"""Batch normalization with a memory-saving backward pass, and stochastic normalization.

The backward pass keeps only the input of the layer. Stochastic normalization sometimes normalizes with the pretrained
statistics instead of the batch's.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tl_jax.utils.errors import UserError


class BatchNorm(nn.BatchNorm):
    """flax's BatchNorm over all axes but the last, with the same variables and values and a custom backward pass.

    With automatic differentiation, flax's layer stores the centered input besides the input and needs more loops: on
    2 CPU cores a step of MobileNetV2 took an eighth longer. Attributes as in flax; ``axis``, ``axis_name`` and ``mask``
    are not supported. Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Normalize (..., C) with the running statistics, or with batch statistics, which update the running ones."""
        running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else jnp.zeros(shape)
        dtype = self.dtype or x.dtype
        if running_average:
            return _affine(x, mean.value, lax.rsqrt(var.value + self.epsilon), scale, bias).astype(dtype)
        # JAX's types lose the return type of a function with a custom gradient.
        y, batch_mean, batch_var = cast(tuple[jax.Array, ...], _normalise(x, scale, bias, self.epsilon))
        if not self.is_initializing():
            for statistic, new in ((mean, batch_mean), (var, batch_var)):
                statistic.value = self.momentum * statistic.value + (1 - self.momentum) * lax.stop_gradient(new)
        return y.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
    """Return the normalized (..., C) in float32, and mean (C,) and variance (C,), which carry no gradient."""
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[Any, Any]:
    x32, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = x32.mean(axes)
    var = jnp.maximum(0, (x32 * x32).mean(axes) - mean * mean)
    inv_std = lax.rsqrt(var + epsilon)
    return (_affine(x, mean, inv_std, scale, bias), mean, var), (x, scale, mean, inv_std)


def _backward(epsilon: float, residuals: Any, cotangents: Any) -> tuple[jax.Array, ...]:
    """Return the gradients of input, scale and bias by the equations of the paper's section 3.

    The equations are expanded so that loops run over x and dy: a centered x would be shared with the forward pass, and
    therefore stored.
    """
    (x, scale, mean, inv_std), dy = residuals, cotangents[0]
    x32, axes, count = x.astype(jnp.float32), tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    grad_bias = dy.sum(axes)
    grad_scale = ((x32 * dy).sum(axes) - mean * grad_bias) * inv_std
    factor = inv_std * scale
    slope = -factor * inv_std * grad_scale / count
    dx = (
        dy * _broadcast(factor, x)
        + x32 * _broadcast(slope, x)
        - _broadcast(factor * grad_bias / count + slope * mean, x)
    )
    return dx.astype(x.dtype), grad_scale, grad_bias


_normalise.defvjp(_forward, _backward)


def _affine(x: jax.Array, mean: jax.Array, inv_std: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Return (x - mean) * inv_std * scale + bias with vectors (C,), in float32."""
    return (x.astype(jnp.float32) - _broadcast(mean, x)) * _broadcast(inv_std * scale, x) + _broadcast(bias, x)


def _broadcast(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


RNG_STREAM = "stochastic_norm"  # flax rng stream of the sampled channels


@contextlib.contextmanager
def stochastic_norm(probability: float) -> Iterator[None]:
    """Make training BatchNorm layers normalize some channels with their running statistics.

    Kou et al., NeurIPS 2020, "Stochastic Normalization". At every call in training mode, each channel is sampled
    independently. The running statistics are those before the call, and constants in the gradient; they are updated
    from the batch as usual. Layers in evaluation mode are unchanged, including those in
    ``freeze.use_running_statistics``, whichever context is entered first.

    Args:
        probability: of using the running statistics, in [0, 1]: 0 is plain BatchNorm, 1 gives the outputs of
            evaluation. In the authors' code ``p`` is the probability of the batch statistics; both are 0.5 there.

    The network needs ``rngs={"stochastic_norm": key}``; without it, flax uses the stream "params" or raises
    InvalidRngError.

    Raises:
        UserError: ``probability`` is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise UserError(f"stochastic_norm: probability {probability} is out of range; it must be in [0, 1]")
    if not probability:  # avoids the cost of a second branch
        yield
        return

    def intercept(call, args, kwargs, context):
        layer = context.module
        if (
            not isinstance(layer, nn.BatchNorm)
            or layer.is_initializing()
            or _uses_running_average(layer, *args, **kwargs)
        ):
            return call(*args, **kwargs)
        x = args[0]
        variables = {name: values for name, values in layer.variables.items() if name in ("params", "batch_stats")}
        # A clone, because linen rejects creating a layer's variables twice in one call; before the layer's own call,
        # which updates its statistics.
        eval_layer = layer.clone(parent=None, name=None, use_running_average=True)
        eval_output = cast(jax.Array, eval_layer.apply(variables, x))
        use_running = jax.random.bernoulli(layer.make_rng(RNG_STREAM), float(probability), _channels(layer, x))
        return jnp.where(use_running, eval_output, call(*args, **kwargs))

    with nn.intercept_methods(intercept):
        yield


def _uses_running_average(layer: nn.BatchNorm, _, use_running_average: bool | None = None, **others) -> bool:
    """Return whether a layer called with these arguments uses its running statistics."""
    return nn.merge_param("use_running_average", layer.use_running_average, use_running_average)


def _channels(layer: nn.BatchNorm, x: jax.Array) -> tuple[int, ...]:
    """Return the shape of ``x`` with 1 for every axis but the layer's channels."""
    axes = {axis % x.ndim for axis in np.atleast_1d(layer.axis)}
    return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
