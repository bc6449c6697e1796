"""What of a converted file fits a network: how far the trunk goes, whether it has the network's head, what else it has.

A trunk must be whole, or whole up to a part: then it serves networks that end there. A head, VGG's hidden layers and
InceptionV3's auxiliary head may be missing or be others: they are left out, and only a new head fits.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax.pretrained.convert import Converted, MergeReport, Table, listed, misfits

AUXILIARY = "aux"


class Fit(NamedTuple):
    """What fits.

    Attributes:
        converted: without what was left out.
        report: what is missing, extra or wrong in the trunk; all empty for a whole one.
        ends: the last part up to which the trunk is whole, "" where not even the first is.
    """

    converted: Converted
    report: MergeReport
    ends: str


def fit(
    arrays: Mapping[str, np.ndarray],
    converted: Converted,
    table: Table,
    wanted: Mapping[str, Any],
    parts: Sequence[str],
) -> Fit:
    """Separate trunk, head and what belongs to neither.

    Args:
        arrays: of a file.
        converted: what the table made of them.
        table: of its source.
        wanted: leaves of the network with the head and hidden layers that the file seems to have, by path.
        parts: names of the parts of its trunk, from the input on.
    """
    missing, wrong = _problems(converted, wanted)
    strange = [path for path in converted.leaves if path not in wanted and top(path) in parts]
    broken = {top(path) for path in (*missing, *wrong, *strange)}
    whole = next((i for i, part in enumerate(parts) if part in broken), len(parts))
    beginnings = {_first(origin) for path, origin in converted.origin.items() if top(path) in parts}
    inside = [name for name in converted.extra if _inside(name, beginnings, table)]
    report = MergeReport(
        sorted((path for path in missing if top(path) in parts), key=lambda path: parts.index(top(path))),
        [*inside, *(converted.origin[path] for path in strange)],
        [*converted.clashes, *(text for path, text in wrong.items() if top(path) in parts)],
    )
    if inside or converted.clashes:
        whole = 0
    elif whole < len(parts):
        report = report._replace(extra=[*converted.extra, *report.extra])
    outside = [name for name in converted.extra if name not in inside]
    head = [text for path, text in wrong.items() if top(path) not in (*parts, AUXILIARY)]
    head += [f"{path} is missing" for path in missing if top(path) not in (*parts, AUXILIARY)]
    head += [
        f"{converted.origin[p]} is not part of it" for p in converted.leaves if p not in wanted and p not in strange
    ]
    left = {top(path) for path in converted.leaves if top(path) not in parts}
    keeps = set() if whole < len(parts) or head or outside else left
    if any(top(path) == AUXILIARY for path in (*missing, *wrong)):
        keeps.discard(AUXILIARY)
    kept = _only(converted, {*parts[:whole], *keeps}, wanted)
    kept = kept._replace(
        extra=[], outside=outside, no_head=_no_head(head, {name: arrays[name].shape for name in outside})
    )
    return Fit(kept, report, parts[whole - 1] if whole else "")


def top(path: str) -> str:
    """Return the part that a leaf belongs to: "params/stage1/conv/kernel" gives "stage1"."""
    return path.split("/")[1]


def inputs(arrays: Mapping[str, np.ndarray], outside: Sequence[str]) -> list[str]:
    """Return the layers among those outside the network that normalize its inputs, and not by doing nothing."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name in outside:
        layer, _, leaf = name.rpartition("/")
        layers.setdefault(layer, {})[leaf] = arrays[name]
    found = []
    for layer, leaves in layers.items():
        numbered = set(leaves) == {"0", "1", "2"} and leaves["2"].ndim == 0  # mean, variance, and a count
        mean, variance = (leaves.get("0"), leaves.get("1")) if numbered else map(leaves.get, ("mean", "variance"))
        if mean is not None and variance is not None and not (np.all(mean == 0) and np.all(variance == 1)):
            found.append(layer)
    return found


def _problems(converted: Converted, wanted: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the leaves that are missing, and those that do not fit, each with what is wrong."""
    wrong = {}
    for path, leaf in wanted.items():
        if path in converted.leaves and (texts := misfits(path, converted.leaves[path], leaf)):
            wrong[path] = texts[0]
    return [path for path in wanted if path not in converted.leaves], wrong


def _inside(name: str, beginnings: set[str], table: Table) -> bool:
    """Tell whether a name that no rule knows stands among those of the trunk, so that the file is another network's."""
    if table.inside:
        return bool(re.fullmatch(table.inside, name))
    return _first(name) in beginnings


def _first(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]


def _only(converted: Converted, tops: set[str], wanted: Mapping[str, Any]) -> Converted:
    """Return what belongs to ``tops``."""
    paths = [path for path in converted.leaves if top(path) in tops and path in wanted]
    leaves, origin, transforms = (
        {path: entries[path] for path in paths}
        for entries in (converted.leaves, converted.origin, converted.transforms)
    )
    return converted._replace(leaves=leaves, origin=origin, transforms=transforms)


def _no_head(head: Sequence[str], outside: Mapping[str, tuple[int, ...]]) -> str:
    """Return why the head of a file is not the network's, "" where it is, or where there is nothing like one."""
    if head or not outside:
        return "; ".join(head[:3])
    return f"beside the network it has {listed([f'{name} {shape}' for name, shape in outside.items()])}"


def modules(names: Sequence[str]) -> str:
    """Return the layers that arrays belong to, by name and in one line."""
    return listed(list(dict.fromkeys(name[: end if (end := _last(name)) >= 0 else None] for name in names)), most=8)


def _last(name: str) -> int:
    return max(name.rfind("."), name.rfind("/"))
