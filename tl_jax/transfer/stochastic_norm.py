"""Stochastic normalisation: BatchNorm that now and then trusts the statistics it brought along."""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.errors import UserError

STREAM = "stochastic_norm"  # flax rng stream of the draws


@contextlib.contextmanager
def stochastic_norm(probability: float) -> Iterator[None]:
    """Make training BatchNorm layers normalise some channels with their running statistics.

    Kou et al., NeurIPS 2020, "Stochastic Normalization". At every call of a layer in training mode each channel is
    drawn on its own; the running statistics are those before the call, and constants to the gradient. They are updated
    from the batch as ever. Layers in evaluation mode stay as they are, also those that
    ``partition.running_statistics`` holds there, whichever of the two contexts is opened first.

    Args:
        probability: of the running statistics, in [0, 1]: 0 is plain BatchNorm, 1 gives the outputs of evaluation. The
            authors' code counts the other way round, its ``p`` is that of the batch's statistics; both are 0.5 there.

    The network is applied with ``rngs={"stochastic_norm": key}``; where it is missing, flax takes the stream "params",
    or raises its InvalidRngError.

    Raises:
        UserError: ``probability`` outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise UserError(f"stochastic norm: probability {probability} is not in [0, 1]")
    if not probability:  # no second branch in the program, which would be paid for at each step
        yield
        return

    def intercept(call, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, nn.BatchNorm) or layer.is_initializing() or _evaluates(layer, *args, **kwargs):
            return call(*args, **kwargs)
        x = args[0]
        variables = {name: values for name, values in layer.variables.items() if name in ("params", "batch_stats")}
        # A copy, because linen refuses to make a layer's variables twice in one call; first, because the call of the
        # layer itself moves its statistics.
        steady = layer.clone(parent=None, name=None, use_running_average=True).apply(variables, x)
        drawn = jax.random.bernoulli(layer.make_rng(STREAM), float(probability), _channels(layer, x))
        return jnp.where(drawn, steady, call(*args, **kwargs))

    with nn.intercept_methods(intercept):
        yield


def _evaluates(layer: nn.BatchNorm, _, use_running_average: bool | None = None, **others) -> bool:
    """Whether a layer that is called with these arguments uses its running statistics."""
    return nn.merge_param("use_running_average", layer.use_running_average, use_running_average)


def _channels(layer: nn.BatchNorm, x: jax.Array) -> tuple[int, ...]:
    """Return the shape of ``x`` with 1 for every axis that is not the layer's channels."""
    axes = {axis % x.ndim for axis in np.atleast_1d(layer.axis)}
    return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
