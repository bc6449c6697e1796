"""Conversion of published weights: rules from names and layouts in a file to ours, what fits, and the merge.

A trunk must be whole, or whole up to a part: then it serves networks that end there. A head, VGG's hidden layers and
InceptionV3's auxiliary head may be missing or be others: they are left out, and only a new head fits. A merge that does
not fit is refused with a list of everything that is missing, left over or of another shape.
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
    """What a table made of a file.

    Attributes:
        leaves: target path -> array.
        origin: target path -> name in the file.
        transforms: target path -> name of what was done to the array.
        extra: names in the file that no rule and no ``ignored`` pattern matches.
        ignored: names in the file that were dropped, as the table says.
        conflicts: descriptions of names that match several rules, or fall on a leaf already filled.
        other_names: names of what a file has beside the network.
        no_head: why the head in the file is not the network's; "" where it is, or where the file has none.
        notes: what was taken and left out, for the user to read, a line each.
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
    """Finds the rules of a table that match a name."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rules = [(re.compile(rule.pattern), rule) for rule in table.rules]
        self._any = re.compile("|".join(f"(?:{_without_groups(rule.pattern)})" for rule in table.rules))
        self._ignored = [re.compile(pattern) for pattern in table.ignored]

    def map_names(self, arrays: Mapping[str, np.ndarray], shapes: Shapes = NO_SHAPES) -> Mapping[str, str]:
        """Return for each name in a file the one that the rules know."""
        return self._table.map_names(arrays, shapes) if self._table.map_names else {name: name for name in arrays}

    def matching_rules(self, known: str) -> list[tuple[re.Match[str], Rule]]:
        """Return the rules that match a name, each with its match."""
        if not self._any.fullmatch(known):
            return []
        return [(m, rule) for pattern, rule in self._rules if (m := pattern.fullmatch(known))]

    def ignores(self, known: str) -> bool:
        """Tell whether the table says that a name may be dropped."""
        return any(pattern.fullmatch(known) for pattern in self._ignored)

    def count_known(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return how many names of a file are known."""
        names = self.map_names(arrays).values()
        return sum(bool(self._any.fullmatch(name)) or self.ignores(name) for name in names)


def _without_groups(pattern: str) -> str:
    """Return a regex without groups that are counted, of which one expression may not have too many."""
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", pattern)


def convert(arrays: Mapping[str, np.ndarray], table: Table, shapes: Shapes = NO_SHAPES) -> Converted:
    """Apply a table to the arrays of a file; nothing is dropped silently and nothing is raised here.

    Args:
        arrays: of the file.
        table: of its source.
        shapes: of our leaves by path, as far as they are known; they tell layers that a file has beside the network's.
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
            converted.conflicts.append(f"{name} and {converted.origin[path]} both fill {path}")
        converted.leaves[path] = _transform(rule.transform, array)
        converted.origin[path] = name
        converted.transforms[path] = rule.transform.__name__
    return converted


def _transform(transform: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """Transform an array; one that is not of the shape for it stays as it is, and the merge reports its shape."""
    try:
        return transform(array)
    except (ValueError, TypeError, IndexError):
        return array


class MergeReport(NamedTuple):
    """Everything that does not fit, by kind; all empty when the file matches the model."""

    missing: Sequence[str]
    extra: Sequence[str]
    wrong: Sequence[str]


class MergeError(UserError):
    """Weights that do not fit the model. ``report`` holds every offender; the message the first of each kind."""

    def __init__(self, message: str, report: MergeReport):
        super().__init__(message)
        self.report = report


def merge(target: tree.Tree, converted: Converted) -> dict[str, Any]:
    """Return the leaves of ``converted`` as float32 in the nesting of ``target``.

    Args:
        target: nested dict of arrays or shape structs, the model's variables.
        converted: what a table made of a file.

    Returns:
        Nested dict with every leaf of ``target``.

    Raises:
        MergeError: missing or extra names, wrong shapes or dtypes, values that are not finite; nothing is half loaded.
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
    """Return what keeps an array from filling a leaf; nothing where it fits."""
    if array.shape != leaf.shape:
        return [f"{path} has shape {array.shape}, the model needs {leaf.shape}"]
    # ml_dtypes' bfloat16 has kind "V", so ask whether it casts to float rather than for its kind.
    if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
        return [f"{path} holds {array.dtype}, the model needs floating point"]
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        return [f"{path} holds values that are not finite"]
    return []


def describe_report(report: MergeReport, max_names: int = 6) -> str:
    """Return a report in one line, with the first offenders of each kind."""
    groups = []
    for kind, names in zip(("missing", "extra", "wrong"), report, strict=True):
        if names:
            groups.append(f"{len(names)} {kind}: {format_names(names, max_names)}")
    return "; ".join(groups)


def format_names(names: Sequence[str], max_names: int = 4) -> str:
    """Return names in one line, the first of them where they are many."""
    return ", ".join(names[:max_names]) + (f" (+{len(names) - max_names} more)" if len(names) > max_names else "")


class Fit(NamedTuple):
    """What of a converted file fits a network.

    Attributes:
        converted: without what was left out.
        report: what is missing, extra or wrong in the trunk; all empty for a whole one.
        last_stage: the last stage up to which the trunk is complete, "" where not even the first is.
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
    """Return what fits a network: its trunk, its head, and what belongs to neither.

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
