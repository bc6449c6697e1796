"""Sharding over devices and processes: one mesh, data parallelism, and fully sharded data parallelism (FSDP).

Batches are split along ``data``. Everything else is replicated, or with FSDP each device keeps a shard of every large
leaf. The whole leaf is gathered where the network uses it, and its gradient is reduced back to the shards (ZeRO,
arXiv:1910.02054; FSDP, arXiv:2304.11277). XLA inserts the communication. Processes may run on the hosts of a TPU
slice, the nodes of a cluster, or one machine.
"""

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tl_jax.train import flops as flops_module
from tl_jax.utils.errors import UserError
from tl_jax.utils.waiting import show_elapsed

AXIS = "data"  # of the mesh


@functools.cache
def mesh() -> Mesh:
    """Return the mesh of all devices, of all processes."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
    """Return the sharding that keeps a whole copy on each device."""
    return NamedSharding(mesh(), PartitionSpec())


def split() -> NamedSharding:
    """Return the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def put(batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Move a batch of numpy arrays onto the devices, split along the examples; every process has all of it."""
    return _place(batch, split())


def put_share(batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Move a batch of which every process has its own rows, see ``share``, onto the devices."""
    if jax.process_count() == 1:
        return put(batch)
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, split()), batch)


def share(size: int) -> slice:
    """Return the rows of a batch of ``size`` examples that the devices of this process work on."""
    each = size // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def everywhere(tree: Any) -> Any:
    """Put arrays, of which every process has the same, onto every device."""
    return _place(tree, replicated())


def fetch(tree: Any) -> Any:
    """Return the whole of every array as numpy, also of those of which other processes hold a part."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    whole = all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in arrays)
    return jax.device_get(tree if whole else _gatherer()(tree))


def check_batch(field: str, size: int, parts: int = 1) -> None:
    """Refuse a batch size that the devices cannot share evenly, nor each of its ``parts`` where it is cut into some."""
    each = jax.device_count() * parts
    if size % each:
        near, cut = max(each, round(size / each) * each), f" times optim.accumulate={parts}" if parts > 1 else ""
        raise UserError(f"config.{field}={size} is not divisible by the {jax.device_count()} devices{cut}; {near} is")


def whole(size: int) -> int:
    """Return the smallest batch that holds ``size`` examples and that the devices share evenly."""
    return -(-size // jax.device_count()) * jax.device_count()


class Program(NamedTuple):
    """A compiled function.

    Attributes:
        execute: the executable.
        seconds: spent on compiling just now, 0 where it had been compiled before.
    """

    execute: Any
    seconds: float


def compiled(function: Any, *args: Any) -> Program:
    """Compile a jitted function for arguments like ``args``, once per function and shapes."""
    clock, shapes = time.monotonic(), _shapes(args)
    key = _call(function, shapes)
    known = key in _PROGRAMS
    if not known:
        make_room()
        with show_elapsed("compiling"):
            _PROGRAMS[key] = function.lower(*shapes).compile()
    return Program(_PROGRAMS[key], 0.0 if known else time.monotonic() - clock)


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
    _FLOPS.clear()
    jax.clear_caches()


def flops(function: Any, *args: Any) -> float:
    """Return the floating-point operations of one call, without compiling it; counted once per function and shapes."""
    shapes = _shapes(args)
    key = _call(function, shapes)
    if key not in _FLOPS:
        _FLOPS[key] = flops_module.flops(function, *shapes)
    return _FLOPS[key]


# Of this process; runs that differ in their seed share them.
_PROGRAMS: dict[Any, Any] = {}
_FLOPS: dict[Any, float] = {}


def _call(function: Any, shapes: Any) -> Any:
    """Return what tells calls apart that need programs of their own."""
    leaves, treedef = jax.tree.flatten(shapes)
    return function, treedef, tuple(leaves)


def _place(tree: Any, sharding: NamedSharding) -> Any:
    """Put what every process has the whole of onto the devices; each process sends what its own devices keep."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


@functools.cache
def _gatherer():
    return jax.jit(lambda tree: tree, out_shardings=replicated())


def _maps() -> int:
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def _shapes(args: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args)


LEAST = 512  # values of a leaf from which on it is split; gathering fewer costs more than it saves


def layout(shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of a leaf: split along its longest axis that the devices share evenly, the later of equals.

    A leaf that is small, or that no axis can be split evenly of, is whole on each device.
    """
    count, size = mesh().size, 1
    for length in shape:
        size *= length
    fits = [axis for axis, length in enumerate(shape) if length % count == 0 and length > 1]
    if size < LEAST or not fits:
        return replicated()
    longest = max(fits, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh(), PartitionSpec(*(AXIS if axis == longest else None for axis in range(len(shape)))))


def layouts(tree: Any) -> Any:
    """Return the sharding of each leaf of a tree of arrays or shapes."""
    return jax.tree.map(lambda leaf: layout(leaf.shape), tree)


def is_sharded(tree: Any) -> bool:
    """Whether some leaf of a tree of arrays, of JAX or of NumPy, is not whole on each device."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree))


def constrain(tree: Any) -> Any:
    """Split the leaves of a tree within a jitted function."""
    return jax.lax.with_sharding_constraint(tree, layouts(tree))


@jax.custom_vjp
def gather(tree: Any) -> Any:
    """Return the leaves whole, within a jitted function; what flows back to them is split again at once."""
    return jax.lax.with_sharding_constraint(tree, replicated())


gather.defvjp(lambda tree: (gather(tree), None), lambda _, grads: (constrain(grads),))


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that a tree of arrays takes on the device that keeps most of it."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)


VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_first = True


def join() -> None:
    """Meet the other processes of this run; to be called before JAX looks for devices.

    Where the environment has all of ``VARIABLES`` (HOST:PORT of process 0, how many processes, which one this is), they
    say how. Otherwise JAX finds out from SLURM, Open MPI, or the metadata of a TPU slice.

    Raises:
        UserError: nothing says which processes there are, or they do not answer.
    """
    global _first
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    missing = [name for name in VARIABLES if name not in given]
    if given and missing:
        raise UserError(f"{', '.join(given)} without {', '.join(missing)}; set all three, or none for SLURM and TPUs")
    try:
        if given:
            address, count, index = (given[name] for name in VARIABLES)
            jax.distributed.initialize(address, int(count), int(index), cluster_detection_method="deactivate")
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(
            f"--distributed: {reason}; start by srun, mpirun or on a TPU slice, or set {', '.join(VARIABLES)}"
        ) from None
    _first = jax.process_index() == 0


def first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return _first  # rather than to ask JAX, which would look for devices


def meet(where: str) -> None:
    """Wait until all processes have come to ``where``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
