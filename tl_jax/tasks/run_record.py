"""Record of a run's data: ordered class names and split fingerprints, from which its task is rebuilt.

A pretrained head that is kept must have the classes of the data. They are matched by name, not only by number.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data import value_range
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.detection import CLASS
from tl_jax.data.fingerprint import fingerprint
from tl_jax.data.labels import check_dataset
from tl_jax.pretrained import formats
from tl_jax.pretrained.network import HEAD_LEAVES, Pretrained
from tl_jax.tasks import head_init
from tl_jax.train.logging import say
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError, join_names
from tl_jax.utils.log import warn

SPLITS = ("train", "validation", "test")
MAX_NAMES = 4  # class names per message


class RunRecord(NamedTuple):
    """Record of a run, from its folder.

    Attributes:
        facts: content of ``facts.json``; empty for a run that has not started.
        folder: folder of the run, for messages.
        reads_data: whether the task loads the data. Without data it has no examples and can only predict and export.
        reads_weights: whether it loads the source weights. Without them the network is built from the facts, and a
            checkpoint supplies its weights.
        fitted: values that the finished run fitted on its validation split, ``temperature`` or ``threshold``.
        splits: splits of the data, if they differ from those of the configuration.
    """

    facts: Mapping[str, Any] = MappingProxyType({})
    folder: str = ""
    reads_data: bool = True
    reads_weights: bool = True
    fitted: Mapping[str, float] = MappingProxyType({})
    splits: Mapping[str, Split] | None = None

    def source(self, read: Callable[[], Dataset], images: np.ndarray, labels: np.ndarray) -> Dataset:
        """Return the data with labels in the run's class order, or only the classes.

        Args:
            read: returns the data.
            images, labels: empty arrays, for a task that does not load its data.

        Raises:
            UserError: The classes of the data differ from those of the run, or a label is invalid.
        """
        if not self.reads_data:
            return self.source_without_data(images, labels)
        source = check_dataset(read())
        if not self.facts:
            return source
        if "classes" not in self.facts:
            warn(
                f"{self.folder}: the run is older than the record of its classes; their names and order are taken "
                f"from the current {source.name}"
            )
            return source
        return with_class_order(source, self.facts["classes"], self.folder)

    def source_without_data(self, images: np.ndarray, labels: np.ndarray) -> Dataset:
        """Return the dataset of a task that does not load its data; ``images`` and ``labels`` are empty."""
        no_examples, facts = Split(images, labels), self.facts
        limits = value_range.range_from_facts(facts)
        return Dataset(
            facts["data"], no_examples, no_examples, tuple(facts["classes"]), facts["tested"], no_examples, limits
        )

    def split_data(self, config: Any, source: Dataset) -> dict[str, Split]:
        """Return the splits of ``head_init.split_data``; empty splits if the data are not loaded."""
        if self.splits is not None:
            return dict(self.splits)
        if self.reads_data:
            return head_init.split_data(config, source)
        return dict.fromkeys((*SPLITS, *(("unlabelled",) if config.pretext.name else ())), source.train)

    def sizes(self, splits: Mapping[str, Any]) -> dict[str, int]:
        """Return the number of examples of each split, from the facts if the data are not loaded."""
        if not self.reads_data:
            return dict(self.facts["examples"])
        return {name: len(split.labels) for name, split in splits.items()}

    def describe(self, source: Dataset, splits: Mapping[str, Split], folder: str) -> dict[str, Any]:
        """Return the record of the data: ``classes``, and ``examples`` and ``data_sha256`` of each split.

        Args:
            source: the data, for their name and classes.
            splits: from ``split_data``.
            folder: folder of the data, ``config.data.dir``.
        """
        if not self.reads_data:
            return {name: self.facts[name] for name in ("classes", "examples", "data_sha256")}
        fingerprints = {name: fingerprint(splits[name], source.classes, folder, source.name) for name in SPLITS}
        return {"classes": list(source.classes), "examples": self.sizes(splits), "data_sha256": fingerprints}


NEW_RUN = RunRecord()


def with_class_order(source: Dataset, classes: Sequence[str], where: str) -> Dataset:
    """Return the data with labels as indices of ``classes``.

    Raises:
        UserError: The data have other classes; the message names them.
    """
    if tuple(classes) == source.classes:
        return source
    if set(classes) != set(source.classes):
        differences = describe_differences(classes, source.classes)
        raise UserError(
            f"{where}: the classes of {source.name} are not those of the run: {differences}; "
            "restore the classes of the data, or use predict, which does not need them"
        )
    index = {name: k for k, name in enumerate(classes)}
    order = np.asarray([index[name] for name in source.classes], np.int32)
    splits = {split_name: getattr(source, split_name) for split_name in SPLITS}
    splits = {
        split_name: split._replace(labels=relabel(split.labels, order)) for split_name, split in splits.items() if split
    }
    return source._replace(classes=tuple(classes), **splits)


def describe_differences(expected: Sequence[str], names_now: Sequence[str]) -> str:
    """Describe the names that are in only one of two lists."""
    missing, new = (
        [repr(n) for n in expected if n not in set(names_now)],
        [repr(n) for n in names_now if n not in set(expected)],
    )
    return ", ".join(
        f"{join_names(names, MAX_NAMES)} {verb}" for names, verb in ((missing, "missing"), (new, "new")) if names
    )


def relabel(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Map class k to ``order[k]`` in labels, tags or boxes."""
    if labels.dtype == object:
        changed = np.empty(len(labels), object)
        changed[:] = [order[row] for row in labels]
        return changed
    if labels.ndim == 3:
        numbers = labels[..., CLASS].astype(np.int64)
        changed = labels.copy()
        changed[..., CLASS] = np.where(numbers >= 0, order[numbers], labels[..., CLASS])
        return changed
    return order[labels]


def with_head_order(config: Any, net: Pretrained, classes: Sequence[str]) -> Pretrained:
    """Return the network with the outputs of a kept head reordered to ``classes``."""
    if config.init.head != "keep" or net.spec.num_classes != len(classes):
        return net
    names = formats.class_names(net.path) if config.init.source == "tl_jax" and net.path else ()
    order = match_classes(names, classes, str(net.path))
    return net if order is None else net._replace(variables=reorder_heads(net.variables, order))


def match_classes(names: Sequence[str], classes: Sequence[str], where: str) -> list[int] | None:
    """Return the index in ``names`` of each of ``classes``; None if the order is unchanged.

    If either side has only numbers, outputs are matched by position, and a message is printed.

    Args:
        names: class names of the head's outputs; empty if the file has none.
        classes: class names of the data, as many.
        where: the file, for messages.

    Raises:
        UserError: The names differ.
    """
    if tuple(names) == tuple(classes):
        return None
    if names and set(names) == set(classes):
        return [list(names).index(name) for name in classes]
    unnamed = [side for side, side_names in (("the head in the file has", names), ("the data have", classes))
               if are_positions(side_names)]  # fmt: skip
    if unnamed:
        say(f"{where}: {unnamed[0]} no class names, so output k of the head is used for class k of the data")
        return None
    differences = describe_differences(names, classes)
    raise UserError(f"{where}: the head has other classes than the data: {differences}; pass config.init.head=new")


def are_positions(names: Sequence[str]) -> bool:
    """Return whether names are mere positions: "0" to "K - 1", "1" to "K", or "LABEL_0" and so on."""
    bare = [name.removeprefix("LABEL_") for name in names]
    numbers = sorted(int(name) for name in bare if name.isascii() and name.isdigit())
    return any(numbers == list(range(first, first + len(names))) for first in (0, 1))


def reorder_heads(variables: Any, order: Sequence[int]) -> dict[str, Any]:
    """Return variables with the heads' outputs reordered: output k is the old output ``order[k]``."""
    leaves = {
        path: leaf[..., np.asarray(order)] if re.fullmatch(HEAD_LEAVES, path) else leaf
        for path, leaf in tree.flatten(variables).items()
    }
    return tree.unflatten(leaves)
