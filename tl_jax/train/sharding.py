"""Parameters, statistics and optimizer state split over the devices: fully sharded data parallelism.

Each device keeps a part of every large leaf. The whole leaf is gathered where the network uses it, and its gradient is
reduced back to the parts (ZeRO, arXiv:1910.02054; FSDP, arXiv:2304.11277). XLA inserts the communication.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tl_jax.train.devices import AXIS, mesh, replicated

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
