"""A head that is kept must know the same classes as the data: matched by their names, not only by their number."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tl_jax import tree
from tl_jax.errors import UserError
from tl_jax.network import HEADS, Pretrained
from tl_jax.tasks.run_record import differing
from tl_jax.train.log import say
from tl_jax.weights import own


def of_images(config: Any, net: Pretrained, classes: Sequence[str]) -> Pretrained:
    """Return the network with the outputs of a head that is to be kept in the order of ``classes``."""
    if config.init.head != "keep" or net.spec.num_classes != len(classes):
        return net
    names = own.class_names(net.path) if config.init.source == "tl_jax" and net.path else ()
    order = match(names, classes, str(net.path))
    return net if order is None else net._replace(variables=reordered(net.variables, order))


def match(names: Sequence[str], classes: Sequence[str], where: str) -> list[int] | None:
    """Return the row of ``names`` that each of ``classes`` is, None if the outputs can stay as they are.

    If either side has only numbers, the outputs are taken in their order, and a line says so.

    Args:
        names: of the outputs of the head; empty if the file has none.
        classes: of the data, as many.
        where: the file, for messages.

    Raises:
        UserError: the names differ.
    """
    if tuple(names) == tuple(classes):
        return None
    if names and set(names) == set(classes):
        return [list(names).index(name) for name in classes]
    unnamed = [side for side, found in (("the head in the file has", names), ("the data have", classes))
               if positions(found)]  # fmt: skip
    if unnamed:
        say(f"{where}: {unnamed[0]} no class names, so output k of the head is taken for class k of the data")
        return None
    raise UserError(
        f"the head in {where} has other classes than the data: {differing(names, classes)}; pass --config.init.head=new"
    )


def positions(names: Sequence[str]) -> bool:
    """Whether names say no more than the position of a class: "0" to "K - 1", "1" to "K", or "LABEL_0" and so on."""
    bare = [name.removeprefix("LABEL_") for name in names]
    numbers = sorted(int(name) for name in bare if name.isascii() and name.isdigit())
    return any(numbers == list(range(first, first + len(names))) for first in (0, 1))


def reordered(variables: Any, order: Sequence[int]) -> dict[str, Any]:
    """Return variables whose heads give the output ``order[k]`` as output k."""
    leaves = {
        path: leaf[..., np.asarray(order)] if re.fullmatch(HEADS, path) else leaf
        for path, leaf in tree.flatten(variables).items()
    }
    return tree.unflatten(leaves)
