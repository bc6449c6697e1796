"""Sharding over devices and processes: one mesh, data parallelism, and fully sharded data parallelism (FSDP).

Batches are split along the mesh axis ``data``. Everything else is replicated, or with FSDP each device keeps a shard of
every large leaf. The leaf is gathered where the network uses it, and its gradient is reduced back to the shards (ZeRO,
arXiv:1910.02054; FSDP, arXiv:2304.11277). XLA inserts the communication. Processes may run on the hosts of a TPU slice,
the nodes of a cluster, or one machine.
"""

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tl_jax.config.options import Options, option
from tl_jax.train import flops
from tl_jax.utils import compile_cache
from tl_jax.utils.command import show_elapsed
from tl_jax.utils.errors import UserError, first_line

AXIS = "data"  # mesh axis


@dataclass(frozen=True)
class ParallelConfig(Options):
    """Parallelism over several devices, which always split the batch."""

    state: str = option(
        "replicated",
        "parameters and optimizer state: replicated on each device, or sharded (FSDP)",
        ("replicated", "sharded"),
    )


@functools.cache
def mesh() -> Mesh:
    """Return the mesh of all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
    """Return the sharding that replicates an array on each device."""
    return NamedSharding(mesh(), PartitionSpec())


def batch_sharding() -> NamedSharding:
    """Return the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def shard_batch(batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Move a batch of NumPy arrays, complete in every process, onto the devices, split along the examples."""
    return _place(batch, batch_sharding())


def shard_local_batch(batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Move a batch onto the devices, given each process's own rows (see ``local_slice``)."""
    if jax.process_count() == 1:
        return shard_batch(batch)
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, batch_sharding()), batch)


def local_slice(size: int) -> slice:
    """Return the rows of a batch of ``size`` examples that belong to this process's devices."""
    rows = size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def replicate(tree: Any) -> Any:
    """Replicate arrays, complete in every process, onto every device."""
    return _place(tree, replicated())


def to_host(tree: Any) -> Any:
    """Return every array as NumPy, including arrays that are sharded over processes."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    is_local = all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in arrays)
    return jax.device_get(tree if is_local else _make_gather()(tree))


def check_batch(field: str, size: int, accumulate: int = 1) -> None:
    """Raise UserError if the devices cannot split a batch size evenly, in each of ``accumulate`` micro-batches."""
    divisor = jax.device_count() * accumulate
    if size % divisor:
        nearest = max(divisor, round(size / divisor) * divisor)
        chunks = f" times optim.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"config.{field}={size} is not divisible by the {jax.device_count()} devices{chunks}; use {nearest}"
        )


def round_up(size: int) -> int:
    """Round a batch size up to a multiple of the number of devices."""
    return -(-size // jax.device_count()) * jax.device_count()


class Program(NamedTuple):
    """A compiled function.

    Attributes:
        execute: the executable.
        seconds: compilation time of this call; 0 if it was cached.
    """

    execute: Any
    seconds: float


def compile_cached(function: Any, *args: Any) -> Program:
    """Compile a jitted function for arguments like ``args``, once per function and shapes."""
    start, shapes = time.monotonic(), _shapes(args)
    key = _program_key(function, shapes)
    is_cached = key in _PROGRAMS
    if not is_cached:
        limit_memory_maps()
        with show_elapsed("compiling"):
            _PROGRAMS[key] = function.lower(*shapes).compile()
    return Program(_PROGRAMS[key], 0.0 if is_cached else time.monotonic() - start)


def limit_memory_maps() -> None:
    """Drop all compiled programs when they use half of the memory maps that the system allows a process.

    A program takes about ten maps on a CPU, and Linux allows 65,530. A process that compiles thousands, such as a study
    or a test suite, would crash in XLA with a segmentation fault. Dropped programs are reloaded from the disk cache.
    """
    allowed = Path("/proc/sys/vm/max_map_count")
    if allowed.is_file() and _count_memory_maps() > int(allowed.read_text()) // 2:
        clear_programs()


def clear_programs() -> None:
    """Drop the compiled programs of training and evaluation."""
    _PROGRAMS.clear()
    _FLOPS.clear()
    compile_cache.clear()


def count_flops(function: Any, *args: Any) -> float:
    """Return the FLOPs of one call without compiling it; cached per function and shapes."""
    shapes = _shapes(args)
    key = _program_key(function, shapes)
    if key not in _FLOPS:
        _FLOPS[key] = flops.count_flops(function, *shapes)
    return _FLOPS[key]


# Cache of this process; runs that differ only in their seed share programs.
_PROGRAMS: dict[Any, Any] = {}
_FLOPS: dict[Any, float] = {}


def _program_key(function: Any, shapes: Any) -> Any:
    """Return a key that is equal for calls that can share a compiled program."""
    leaves, treedef = jax.tree.flatten(shapes)
    return function, treedef, tuple(leaves)


def _place(tree: Any, sharding: NamedSharding) -> Any:
    """Put arrays that every process has onto the devices; each process sends its own devices' shards."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


@functools.cache
def _make_gather():
    return jax.jit(lambda tree: tree, out_shardings=replicated())


def _count_memory_maps() -> int:
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def _shapes(args: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args)


MIN_SPLIT_SIZE = 512  # elements; gathering a smaller leaf costs more than sharding saves


def leaf_sharding(shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of a leaf: split along its longest evenly divisible axis, the last if tied.

    A leaf that is small, or that has no divisible axis, is replicated.
    """
    count, size = mesh().size, 1
    for length in shape:
        size *= length
    axes = [axis for axis, length in enumerate(shape) if length % count == 0 and length > 1]
    if size < MIN_SPLIT_SIZE or not axes:
        return replicated()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh(), PartitionSpec(*(AXIS if axis == longest else None for axis in range(len(shape)))))


def tree_shardings(tree: Any) -> Any:
    """Return the sharding of each leaf of a tree of arrays or shapes."""
    return jax.tree.map(lambda leaf: leaf_sharding(leaf.shape), tree)


def is_sharded(tree: Any) -> bool:
    """Return whether a leaf of a tree of JAX or NumPy arrays is not replicated."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree))


def constrain(tree: Any) -> Any:
    """Shard the leaves of a tree within a jitted function."""
    return jax.lax.with_sharding_constraint(tree, tree_shardings(tree))


@jax.custom_vjp
def gather(tree: Any) -> Any:
    """Gather the leaves within a jitted function; their gradients are sharded again at once."""
    return jax.lax.with_sharding_constraint(tree, replicated())


gather.defvjp(lambda tree: (gather(tree), None), lambda _, grads: (constrain(grads),))


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree of arrays on the device that holds most of it."""
    totals: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            totals[shard.device] = totals.get(shard.device, 0) + shard.data.nbytes
    return max(totals.values(), default=0)


ENV_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_is_first = True


def join_processes() -> None:
    """Connect to the other processes of this run. Call it before JAX initializes its devices.

    If the environment sets all of ``ENV_VARIABLES`` (HOST:PORT of process 0, number of processes, index of this one),
    they are used. Otherwise JAX detects SLURM, Open MPI or a TPU slice.

    Raises:
        UserError: No processes are configured or detected, or they do not answer.
    """
    global _is_first
    settings = {name: os.environ[name] for name in ENV_VARIABLES if os.environ.get(name)}
    missing = [name for name in ENV_VARIABLES if name not in settings]
    if settings and missing:
        raise UserError(
            f"{', '.join(settings)}: {', '.join(missing)} must be set too; set all three, or none for SLURM and TPUs"
        )
    try:
        if settings:
            address, count, index = (settings[name] for name in ENV_VARIABLES)
            jax.distributed.initialize(address, int(count), int(index), cluster_detection_method="deactivate")
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as e:
        reason = first_line(e)
        raise UserError(
            f"--distributed: {reason}; start with srun, mpirun or on a TPU slice, or set {', '.join(ENV_VARIABLES)}"
        ) from None
    _is_first = jax.process_index() == 0


def is_first_process() -> bool:
    """Return whether this is the process that writes files and prints."""
    return _is_first  # jax.process_index() would initialize the devices


def wait_for_all(where: str) -> None:
    """Wait until all processes have reached ``where``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
