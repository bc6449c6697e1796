"""One mesh over all devices: batches are split along ``data``, everything else is replicated."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tl_jax.errors import UserError


@functools.cache
def mesh() -> Mesh:
    """Return the mesh of all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
    """Return the sharding that keeps a whole copy on each device."""
    return NamedSharding(mesh(), PartitionSpec())


def split() -> NamedSharding:
    """Return the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh(), PartitionSpec("data"))


def put(batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Move a batch of numpy arrays onto the devices, split along the examples."""
    return jax.device_put(batch, split())


def check_batch(field: str, size: int) -> None:
    """Refuse a batch size that the devices cannot share evenly."""
    devices = jax.device_count()
    if size % devices:
        near = max(devices, round(size / devices) * devices)
        raise UserError(f"config.{field}={size} is not divisible by the {devices} devices; {near} is")


@functools.cache
def _compile(function: Any, treedef: Any, leaves: tuple[Any, ...]) -> Any:
    lowered = function.lower(*jax.tree.unflatten(treedef, leaves))
    return lowered.compile(), (lowered.cost_analysis() or {}).get("flops", float("nan"))


def compiled(function: Any, *args: Any) -> tuple[Any, float]:
    """Compile a jitted function for arguments like ``args``, once per function and shapes.

    Returns:
        The executable, and the floating-point operations of one call as XLA counts them before optimisation.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args)
    leaves, treedef = jax.tree.flatten(shapes)
    return _compile(function, treedef, tuple(leaves))
