"""Conversion of published weights: rules that map a file's names and layouts to ours, checks, and the merge.

A trunk must be complete, or complete up to a stage, and then serves networks that end there. A head, VGG's hidden
layers and InceptionV3's auxiliary head may be missing or different: they are dropped, and a new head is needed. A merge
that fails lists everything that is missing, left over or of another shape.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax.models.rules import NO_SHAPES, Rule, Shapes, Table
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

AUXILIARY = "aux"  # name of InceptionV3's auxiliary head


class Converted(NamedTuple):
    """Result of applying a table to a file.

    Attributes:
        leaves: target path -> array.
        origin: target path -> name in the file.
        transforms: target path -> name of the transform applied to the array.
        extra: names in the file that no rule and no ``ignored`` pattern matches.
        ignored: names in the file that the table drops.
        conflicts: descriptions of names that match several rules or map to a leaf that is already filled.
        other_names: names of arrays in the file outside the network.
        no_head: why the file's head does not fit the network; "" if it fits, or if the file has none.
        notes: lines for the user about what was used and dropped.
    """

    leaves: dict[str, np.ndarray]
    origin: dict[str, str]
    transforms: dict[str, str]
    extra: list[str]
    ignored: list[str]
    conflicts: list[str]
    other_names: Sequence[str] = ()
    no_head: str = ""
    notes: tuple[str, ...] = ()


class Matcher:
    """Matches names with the rules of a table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rules = [(re.compile(rule.pattern), rule) for rule in table.rules]
        self._any = re.compile("|".join(f"(?:{_without_groups(rule.pattern)})" for rule in table.rules))
        self._ignored = [re.compile(pattern) for pattern in table.ignored]

    def map_names(self, arrays: Mapping[str, np.ndarray], shapes: Shapes = NO_SHAPES) -> Mapping[str, str]:
        """Return for each name in a file the name that the rules use."""
        return self._table.map_names(arrays, shapes) if self._table.map_names else {name: name for name in arrays}

    def matching_rules(self, known: str) -> list[tuple[re.Match[str], Rule]]:
        """Return the rules that match a name, each with its match."""
        if not self._any.fullmatch(known):
            return []
        return [(m, rule) for pattern, rule in self._rules if (m := pattern.fullmatch(known))]

    def ignores(self, known: str) -> bool:
        """Return whether the table drops a name."""
        return any(pattern.fullmatch(known) for pattern in self._ignored)

    def count_known(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return how many names of a file the table covers."""
        names = self.map_names(arrays).values()
        return sum(bool(self._any.fullmatch(name)) or self.ignores(name) for name in names)


def _without_groups(pattern: str) -> str:
    """Replace capturing groups of a regex, since one expression may not have too many of them."""
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", pattern)


def convert(arrays: Mapping[str, np.ndarray], table: Table, shapes: Shapes = NO_SHAPES) -> Converted:
    """Apply a table to the arrays of a file. Everything is recorded; nothing is raised here.

    Args:
        arrays: arrays of the file.
        table: conversion table of its source.
        shapes: shapes of our leaves by path, if known; they distinguish the network's layers from others in the file.
    """
    matcher = Matcher(table)
    names = matcher.map_names(arrays, shapes)
    converted = Converted({}, {}, {}, [], [], [])
    for name, array in arrays.items():
        rule_name = names.get(name, name)
        matches = matcher.matching_rules(rule_name)
        if len(matches) > 1:
            converted.conflicts.append(f"{name} matches {len(matches)} rules")
        if not matches:
            (converted.ignored if matcher.ignores(rule_name) else converted.extra).append(name)
            continue
        match, rule = matches[0]
        path = match.expand(rule.path)
        if path in converted.leaves:
            converted.conflicts.append(f"{name} and {converted.origin[path]} both map to {path}")
        converted.leaves[path] = _transform(rule.transform, array)
        converted.origin[path] = name
        converted.transforms[path] = rule.transform.__name__
    return converted


def _transform(transform: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """Transform an array. An array of the wrong shape is returned unchanged, and the merge reports it."""
    try:
        return transform(array)
    except (ValueError, TypeError, IndexError):
        return array


class MergeReport(NamedTuple):
    """Everything that does not fit, by kind; all empty if the file matches the model."""

    missing: Sequence[str]
    extra: Sequence[str]
    wrong: Sequence[str]


class MergeError(UserError):
    """Weights that do not fit the model. ``report`` lists everything; the message has the first of each kind."""

    def __init__(self, message: str, report: MergeReport):
        super().__init__(message)
        self.report = report


def merge(target: tree.Tree, converted: Converted) -> dict[str, Any]:
    """Return the leaves of ``converted`` as float32, nested like ``target``.

    Args:
        target: the model's variables, a nested dict of arrays or shape structs.
        converted: the converted file.

    Returns:
        Nested dict with every leaf of ``target``.

    Raises:
        MergeError: Names are missing or extra, shapes or dtypes are wrong, or values are not finite.
    """
    expected = tree.flatten(target)
    missing = [path for path in expected if path not in converted.leaves]
    extra = list(converted.extra) + [converted.origin[p] for p in converted.leaves if p not in expected]
    wrong = list(converted.conflicts)
    for path, leaf in expected.items():
        if path in converted.leaves:
            wrong += leaf_mismatches(path, converted.leaves[path], leaf)
    report = MergeReport(missing, extra, wrong)
    if any(report):
        raise MergeError(describe_report(report), report)
    return tree.unflatten({p: np.asarray(converted.leaves[p], np.float32) for p in expected})


def leaf_mismatches(path: str, array: np.ndarray, leaf: Any) -> list[str]:
    """Return the reasons why an array does not fit a leaf; empty if it fits."""
    if array.shape != leaf.shape:
        return [f"{path} has shape {array.shape}, the model needs {leaf.shape}"]
    # ml_dtypes' bfloat16 has kind "V", so check its name too.
    if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
        return [f"{path} has dtype {array.dtype}, the model needs floating point"]
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        return [f"{path} has values that are not finite"]
    return []


def describe_report(report: MergeReport, max_names: int = 6) -> str:
    """Return a report as one line, with the first entries of each kind."""
    groups = []
    for kind, names in zip(("missing", "extra", "wrong"), report, strict=True):
        if names:
            groups.append(f"{len(names)} {kind}: {format_names(names, max_names)}")
    return "; ".join(groups)


def format_names(names: Sequence[str], max_names: int = 4) -> str:
    """Return names in one line, truncated after ``max_names``."""
    return ", ".join(names[:max_names]) + (f" (+{len(names) - max_names} more)" if len(names) > max_names else "")


class Fit(NamedTuple):
    """The part of a converted file that fits a network.

    Attributes:
        converted: without what was dropped.
        report: missing, extra or wrong leaves of the trunk; all empty for a complete trunk.
        last_stage: last stage up to which the trunk is complete; "" if the first stage is not.
    """

    converted: Converted
    report: MergeReport
    last_stage: str


def find_fit(
    arrays: Mapping[str, np.ndarray],
    converted: Converted,
    table: Table,
    expected: Mapping[str, Any],
    stages: Sequence[str],
) -> Fit:
    """Determine what fits a network: its trunk, its head, and what belongs to neither.

    Args:
        arrays: arrays of the file.
        converted: the converted file.
        table: conversion table of its source.
        expected: leaves by path of the network, with the head and hidden layers that the file appears to have.
        stages: names of the trunk's stages, input first.
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
    """Return the top-level module of a leaf: "stage1" for "params/stage1/conv/kernel"."""
    return path.split("/")[1]


def input_norms(arrays: Mapping[str, np.ndarray], other_names: Sequence[str]) -> list[str]:
    """Return the layers outside the network that normalize its inputs, except identity normalizations."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name in other_names:
        layer, _, leaf = name.rpartition("/")
        layers.setdefault(layer, {})[leaf] = arrays[name]
    norms = []
    for layer, leaves in layers.items():
        is_numbered = set(leaves) == {"0", "1", "2"} and leaves["2"].ndim == 0  # mean, variance and count
        mean, variance = (leaves.get("0"), leaves.get("1")) if is_numbered else map(leaves.get, ("mean", "variance"))
        if mean is not None and variance is not None and not (np.all(mean == 0) and np.all(variance == 1)):
            norms.append(layer)
    return norms


def _find_mismatches(converted: Converted, expected: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the missing leaves, and the leaves that do not fit, each with the reason."""
    wrong = {}
    for path, leaf in expected.items():
        if path in converted.leaves and (problems := leaf_mismatches(path, converted.leaves[path], leaf)):
            wrong[path] = problems[0]
    return [path for path in expected if path not in converted.leaves], wrong


def _in_trunk(name: str, trunk_prefixes: set[str], table: Table) -> bool:
    """Return whether an unknown name is within the trunk, so that the file belongs to another network."""
    if table.trunk_pattern:
        return bool(re.fullmatch(table.trunk_pattern, name))
    return _first_component(name) in trunk_prefixes


def _first_component(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]


def _select(converted: Converted, modules: set[str], expected: Mapping[str, Any]) -> Converted:
    """Return the leaves of ``modules``."""
    paths = [path for path in converted.leaves if top_module(path) in modules and path in expected]
    leaves, origin, transforms = (
        {path: entries[path] for path in paths}
        for entries in (converted.leaves, converted.origin, converted.transforms)
    )
    return converted._replace(leaves=leaves, origin=origin, transforms=transforms)


def _head_mismatch(head_problems: Sequence[str], other_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return why the file's head does not fit the network; "" if it fits, or if there is none."""
    if head_problems or not other_shapes:
        return "; ".join(head_problems[:3])
    return f"other layers in the file: {format_names([f'{name} {shape}' for name, shape in other_shapes.items()])}"


def format_layers(names: Sequence[str]) -> str:
    """Return the layers of the named arrays, in one line."""
    return format_names(
        list(dict.fromkeys(name[: end if (end := _last_separator(name)) >= 0 else None] for name in names)), max_names=8
    )


def _last_separator(name: str) -> int:
    return max(name.rfind("."), name.rfind("/"))
