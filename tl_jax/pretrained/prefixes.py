"""Name differences between a file and its conversion table: prefixes (``module.``, ``model.``) and rename rules."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tl_jax.models.rules import Table
from tl_jax.pretrained.convert import Matcher
from tl_jax.utils.errors import UserError

Arrays = dict[str, np.ndarray]
Renames = Sequence[tuple[str, str]]  # (regex, replacement), applied by re.sub
_PREFIX_DEPTH = 4  # dots of the longest prefix: "module._orig_mod.model.backbone."


class Stripped(NamedTuple):
    """Arrays under the names of a table.

    Attributes:
        arrays: by name, without the prefix.
        prefix: the removed prefix; "" for none.
        other_names: names without the prefix: other networks and heads in the same file.
    """

    arrays: Arrays
    prefix: str
    other_names: list[str]


def rename_arrays(arrays: Mapping[str, np.ndarray], renames: Renames, where: str) -> Arrays:
    """Rename arrays; one whose new name is empty is dropped.

    Args:
        arrays: by name.
        renames: pairs (regex, replacement), applied to each name in order by ``re.sub``.
        where: file, for messages.

    Raises:
        UserError: A rule is invalid or changes nothing, or two arrays get the same name.
    """
    names = {name: name for name in arrays}
    for rule in renames:
        pattern, replacement = _compile_rule(rule)
        changed = {old: pattern.sub(replacement, new) for old, new in names.items() if pattern.search(new)}
        if not changed:
            examples = ", ".join(list(names.values())[:3])
            raise UserError(
                f"{where}: the rename rule {pattern.pattern!r} matches no name; use names such as {examples}"
            )
        names |= changed
    sources: dict[str, str] = {}
    for old, new in names.items():
        if new and new in sources:
            raise UserError(
                f"{where}: the rename rules map both {sources[new]!r} and {old!r} to {new!r}; make them more specific"
            )
        sources[new] = old
    sources.pop("", None)
    return {new: arrays[old] for new, old in sources.items()}


def check_renames(renames: Renames) -> None:
    """Raise ``UserError`` unless every rule is a pair (regex, replacement)."""
    for rule in renames:
        _compile_rule(rule)


def _compile_rule(rule: tuple[str, str]) -> tuple[re.Pattern[str], str]:
    if not isinstance(rule, tuple | list) or len(rule) != 2 or not all(isinstance(part, str) for part in rule):
        raise UserError(f"init.rename: {rule!r} is not a pair (regex, replacement); write ((regex, replacement), ...)")
    pattern, replacement = rule
    try:
        compiled = re.compile(pattern)
        re.sub(f"(?:{pattern})?", replacement, "")  # raises for unknown groups
    except (re.error, IndexError) as e:
        raise UserError(
            f"init.rename: {pattern!r} -> {replacement!r} is not a valid regex rule ({e}); correct it"
        ) from None
    return compiled, replacement


def strip_prefix(arrays: Mapping[str, np.ndarray], table: Table, where: str) -> Stripped:
    """Remove the prefix under which the table knows most names; none is removed if that does not help.

    Args:
        arrays: arrays of the file.
        table: conversion table of its source.
        where: file, for messages.

    Raises:
        UserError: Two prefixes fit equally well, so the file holds the network twice.
    """
    matcher = Matcher(table)
    best = matcher.count_known(arrays)
    if best == len(arrays):
        return Stripped(dict(arrays), "", [])
    best_prefix, tied = "", [""]
    groups = _group_by_prefix(arrays)
    for prefix in sorted(groups, key=len):
        count = matcher.count_known(groups[prefix])
        if count > best:
            best, best_prefix, tied = count, prefix, [prefix]
        elif (
            count == best and best_prefix and not best_prefix.startswith(prefix) and not prefix.startswith(best_prefix)
        ):
            tied.append(prefix)
    if len(tied) > 1:
        first, second = tied[:2]
        rule = f'(("^{re.escape(second)}.*", ""),)'
        raise UserError(f"{where}: holds the network as {first!r} and as {second!r}; drop one with init.rename={rule}")
    other_names = [name for name in arrays if not name.startswith(best_prefix)]
    return Stripped(groups[best_prefix] if best_prefix else dict(arrays), best_prefix, other_names)


def _group_by_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """Return the arrays below each dotted prefix, without the prefix; in one pass, since there may be many."""
    groups: dict[str, Arrays] = {}
    for name, array in arrays.items():
        components = name.split(".", _PREFIX_DEPTH + 1)
        for depth in range(1, min(len(components), _PREFIX_DEPTH + 1)):
            prefix = ".".join(components[:depth]) + "."
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = array
    return groups
