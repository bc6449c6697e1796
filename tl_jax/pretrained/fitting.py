"""What of a converted file fits a network: how far the trunk goes, whether it has the network's head, what else it has.

A trunk must be whole, or whole up to a part: then it serves networks that end there. A head, VGG's hidden layers and
InceptionV3's auxiliary head may be missing or be others: they are left out, and only a new head fits.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax.pretrained.convert import Converted, MergeReport, Table, format_names, leaf_mismatches

AUXILIARY = "aux"


class Fit(NamedTuple):
    """What fits.

    Attributes:
        converted: without what was left out.
        report: what is missing, extra or wrong in the trunk; all empty for a whole one.
        last_stage: the last stage up to which the trunk is complete, "" where not even the first is.
    """

    converted: Converted
    report: MergeReport
    last_stage: str


def fit(
    arrays: Mapping[str, np.ndarray],
    converted: Converted,
    table: Table,
    expected: Mapping[str, Any],
    stages: Sequence[str],
) -> Fit:
    """Separate trunk, head and what belongs to neither.

    Args:
        arrays: of a file.
        converted: what the table made of them.
        table: of its source.
        expected: leaves of the network with the head and hidden layers that the file seems to have, by path.
        stages: names of the stages of its trunk, from the input on.
    """
    missing, wrong = _find_mismatches(converted, expected)
    unexpected = [path for path in converted.leaves if path not in expected and top_module(path) in stages]
    broken_stages = {top_module(path) for path in (*missing, *wrong, *unexpected)}
    num_complete = next((i for i, stage in enumerate(stages) if stage in broken_stages), len(stages))
    trunk_prefixes = {
        _first_component(origin) for path, origin in converted.origin.items() if top_module(path) in stages
    }
    in_trunk = [name for name in converted.extra if _in_trunk(name, trunk_prefixes, table)]
    report = MergeReport(
        sorted(
            (path for path in missing if top_module(path) in stages), key=lambda path: stages.index(top_module(path))
        ),
        [*in_trunk, *(converted.origin[path] for path in unexpected)],
        [*converted.conflicts, *(text for path, text in wrong.items() if top_module(path) in stages)],
    )
    if in_trunk or converted.conflicts:
        num_complete = 0
    elif num_complete < len(stages):
        report = report._replace(extra=[*converted.extra, *report.extra])
    other_names = [name for name in converted.extra if name not in in_trunk]
    head_problems = [text for path, text in wrong.items() if top_module(path) not in (*stages, AUXILIARY)]
    head_problems += [f"{path} is missing" for path in missing if top_module(path) not in (*stages, AUXILIARY)]
    head_problems += [
        f"{converted.origin[p]} is not part of it"
        for p in converted.leaves
        if p not in expected and p not in unexpected
    ]
    heads = {top_module(path) for path in converted.leaves if top_module(path) not in stages}
    kept_heads = set() if num_complete < len(stages) or head_problems or other_names else heads
    if any(top_module(path) == AUXILIARY for path in (*missing, *wrong)):
        kept_heads.discard(AUXILIARY)
    selected = _select(converted, {*stages[:num_complete], *kept_heads}, expected)
    selected = selected._replace(
        extra=[],
        other_names=other_names,
        no_head=_head_mismatch(head_problems, {name: arrays[name].shape for name in other_names}),
    )
    return Fit(selected, report, stages[num_complete - 1] if num_complete else "")


def top_module(path: str) -> str:
    """Return the top-level module that a leaf belongs to: "params/stage1/conv/kernel" gives "stage1"."""
    return path.split("/")[1]


def input_norms(arrays: Mapping[str, np.ndarray], other_names: Sequence[str]) -> list[str]:
    """Return the layers among those outside the network that normalize its inputs, and not by doing nothing."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name in other_names:
        layer, _, leaf = name.rpartition("/")
        layers.setdefault(layer, {})[leaf] = arrays[name]
    norms = []
    for layer, leaves in layers.items():
        is_numbered = set(leaves) == {"0", "1", "2"} and leaves["2"].ndim == 0  # mean, variance, and a count
        mean, variance = (leaves.get("0"), leaves.get("1")) if is_numbered else map(leaves.get, ("mean", "variance"))
        if mean is not None and variance is not None and not (np.all(mean == 0) and np.all(variance == 1)):
            norms.append(layer)
    return norms


def _find_mismatches(converted: Converted, expected: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the leaves that are missing, and those that do not fit, each with what is wrong."""
    wrong = {}
    for path, leaf in expected.items():
        if path in converted.leaves and (problems := leaf_mismatches(path, converted.leaves[path], leaf)):
            wrong[path] = problems[0]
    return [path for path in expected if path not in converted.leaves], wrong


def _in_trunk(name: str, trunk_prefixes: set[str], table: Table) -> bool:
    """Tell whether a name that no rule knows stands among those of the trunk, so that the file is another network's."""
    if table.trunk_pattern:
        return bool(re.fullmatch(table.trunk_pattern, name))
    return _first_component(name) in trunk_prefixes


def _first_component(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]


def _select(converted: Converted, modules: set[str], expected: Mapping[str, Any]) -> Converted:
    """Return what belongs to ``modules``."""
    paths = [path for path in converted.leaves if top_module(path) in modules and path in expected]
    leaves, origin, transforms = (
        {path: entries[path] for path in paths}
        for entries in (converted.leaves, converted.origin, converted.transforms)
    )
    return converted._replace(leaves=leaves, origin=origin, transforms=transforms)


def _head_mismatch(head_problems: Sequence[str], other_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return why the head of a file is not the network's, "" where it is, or where there is nothing like one."""
    if head_problems or not other_shapes:
        return "; ".join(head_problems[:3])
    return f"beside the network it has {format_names([f'{name} {shape}' for name, shape in other_shapes.items()])}"


def format_layers(names: Sequence[str]) -> str:
    """Return the layers that arrays belong to, by name and in one line."""
    return format_names(
        list(dict.fromkeys(name[: end if (end := _last_separator(name)) >= 0 else None] for name in names)), max_names=8
    )


def _last_separator(name: str) -> int:
    return max(name.rfind("."), name.rfind("/"))
