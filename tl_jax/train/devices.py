"""One mesh over all devices: batches are split along ``data``, everything else is replicated."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


def scalar(value: np.generic) -> jax.Array:
    """Put one number onto every device."""
    return jax.device_put(value, replicated())


def check_batch(field: str, size: int) -> None:
    """Refuse a batch size that the devices cannot share evenly."""
    devices = jax.device_count()
    if size % devices:
        near = max(devices, round(size / devices) * devices)
        raise UserError(f"config.{field}={size} is not divisible by the {devices} devices; {near} is")


class Program(NamedTuple):
    """A compiled function.

    Attributes:
        execute: the executable.
        flops: floating-point operations of one call, as XLA counts them before it optimises.
        seconds: spent on compiling just now, 0 where it had been compiled before.
    """

    execute: Any
    flops: float
    seconds: float


def compiled(function: Any, *args: Any) -> Program:
    """Compile a jitted function for arguments like ``args``, once per function and shapes."""
    clock = time.monotonic()
    leaves, treedef = jax.tree.flatten(_shapes(args))
    key = (function, treedef, tuple(leaves))
    known = key in _PROGRAMS
    if not known:
        make_room()
        lowered = function.lower(*jax.tree.unflatten(treedef, leaves))
        _PROGRAMS[key] = lowered.compile(), _flops(lowered)
    return Program(*_PROGRAMS[key], seconds=0.0 if known else time.monotonic() - clock)


def make_room() -> None:
    """Forget all compiled programs where they hold half of the memory maps that the system allows a process.

    A program takes some ten maps on a CPU and Linux allows 65,530: a process that compiles thousands, as studies and
    test suites do, ends in a segmentation fault within XLA. What is needed again is read from the cache on disk.
    """
    allowed = Path("/proc/sys/vm/max_map_count")
    if allowed.is_file() and _maps() > int(allowed.read_text()) // 2:
        forget()


def forget() -> None:
    """Forget all compiled programs of this process."""
    _PROGRAMS.clear()
    jax.clear_caches()


def flops(function: Any, *args: Any) -> float:
    """Return the floating-point operations of one call, without compiling it."""
    return _flops(function.lower(*_shapes(args)))


_PROGRAMS: dict[Any, tuple[Any, float]] = {}  # of this process; runs that differ in their seed share them


def _maps() -> int:
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def _shapes(args: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args)


def _flops(lowered: Any) -> float:
    return (lowered.cost_analysis() or {}).get("flops", float("nan"))
