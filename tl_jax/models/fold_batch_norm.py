"""BatchNorm folding for evaluation: its scale and shift per channel are merged into the preceding convolution."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.backbone import Backbone
from tl_jax.models.layers import Conv, DepthwiseConv
from tl_jax.utils import tree


class ConvNormPair(NamedTuple):
    """Paths of a convolution and of the BatchNorm on its output, and the BatchNorm's epsilon."""

    conv: str
    norm: str
    epsilon: float


@functools.cache
def find_pairs(model: Backbone, size: int) -> tuple[ConvNormPair, ...]:
    """Return the pairs of a model for images of ``size`` pixels, found by tracing its data flow abstractly."""
    pairs: list[ConvNormPair] = []
    outputs: list[tuple[Any, str]] = []  # kept alive, so that ids are not reused

    def follow(call, args, kwargs, context):
        layer, path = context.module, "/".join(context.module.path)
        if isinstance(layer, nn.BatchNorm):
            pairs.extend(ConvNormPair(conv, path, layer.epsilon) for output, conv in outputs if output is args[0])
        output = call(*args, **kwargs)
        if isinstance(layer, (Conv, DepthwiseConv)) and context.method_name == "__call__":
            outputs.append((output, path))
        return output

    with nn.intercept_methods(follow):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, model.channels)))
    return tuple(pairs)


def fold_variables(pairs: tuple[ConvNormPair, ...], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with the scales in the kernels, and the shifts (C,) by path of the norm as "shifts"."""
    params, stats = dict(tree.flatten(variables["params"])), tree.flatten(variables["batch_stats"])
    shifts = {}
    for conv, norm, epsilon in pairs:
        mean, var = stats[f"{norm}/mean"], stats[f"{norm}/var"]
        factor = params.get(f"{norm}/scale", jnp.ones_like(var)) * jax.lax.rsqrt(var + epsilon)
        params[f"{conv}/kernel"] = params[f"{conv}/kernel"] * factor[None, None, None]
        offset = params.get(f"{norm}/bias", jnp.zeros_like(mean)) - mean * factor
        if f"{conv}/bias" in params:
            offset = offset + params[f"{conv}/bias"] * factor
            params[f"{conv}/bias"] = jnp.zeros_like(mean)
        shifts[norm] = offset
    return {**variables, "params": tree.unflatten(params), "shifts": shifts}


@contextlib.contextmanager
def folded_norms(shifts: Mapping[str, jax.Array]) -> Iterator[None]:
    """Make folded BatchNorm layers only add their shift."""

    def intercept(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if isinstance(context.module, nn.BatchNorm) and path in shifts:
            return args[0] + shifts[path].astype(args[0].dtype)[None, None, None]
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
