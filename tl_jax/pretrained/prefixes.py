"""Names in a file that differ from the table's by a prefix (``module.``, ``model.``), or by rules that a user gives."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tl_jax.models.rules import Table
from tl_jax.pretrained.convert import Matcher
from tl_jax.utils.errors import UserError

Arrays = dict[str, np.ndarray]
Renames = Sequence[tuple[str, str]]  # (regex, replacement), as re.sub takes them
_PREFIX_DEPTH = 4  # dots of the longest prefix: "module._orig_mod.model.backbone."


class Stripped(NamedTuple):
    """Arrays under the names of a table.

    Attributes:
        arrays: by name, without the prefix.
        prefix: that was taken off, "" for none.
        other_names: names that do not have it: other networks and heads in the same file.
    """

    arrays: Arrays
    prefix: str
    other_names: list[str]


def rename_arrays(arrays: Mapping[str, np.ndarray], renames: Renames, where: str) -> Arrays:
    """Return the arrays under new names; one whose new name is empty is left out.

    Args:
        arrays: by name.
        renames: pairs (regex, replacement), applied to each name one after another by ``re.sub``.
        where: file, for messages.

    Raises:
        UserError: a rule that is no such pair or changes nothing, or one new name for two arrays.
    """
    names = {name: name for name in arrays}
    for rule in renames:
        pattern, replacement = _compile_rule(rule)
        changed = {old: pattern.sub(replacement, new) for old, new in names.items() if pattern.search(new)}
        if not changed:
            examples = ", ".join(list(names.values())[:3])
            raise UserError(
                f"{where}: the rename rule {pattern.pattern!r} matches no name; names there: {examples}, ..."
            )
        names |= changed
    sources: dict[str, str] = {}
    for old, new in names.items():
        if new and new in sources:
            raise UserError(
                f"{where}: the rename rules make {new!r} of both {sources[new]!r} and {old!r}; be more exact"
            )
        sources[new] = old
    sources.pop("", None)
    return {new: arrays[old] for new, old in sources.items()}


def check_renames(renames: Renames) -> None:
    """Raise ``UserError`` unless every rule is a pair of a regex and a replacement."""
    for rule in renames:
        _compile_rule(rule)


def _compile_rule(rule: tuple[str, str]) -> tuple[re.Pattern[str], str]:
    if not isinstance(rule, tuple | list) or len(rule) != 2 or not all(isinstance(part, str) for part in rule):
        raise UserError(f"init.rename: {rule!r} is no pair (regex, replacement); write ((regex, replacement), ...)")
    pattern, replacement = rule
    try:
        compiled = re.compile(pattern)
        re.sub(f"(?:{pattern})?", replacement, "")  # fails on groups that are not there
    except (re.error, IndexError) as e:
        raise UserError(
            f"init.rename: {pattern!r} -> {replacement!r} is no valid regex rule ({e}); correct it"
        ) from None
    return compiled, replacement


def strip_prefix(arrays: Mapping[str, np.ndarray], table: Table, where: str) -> Stripped:
    """Take off the prefix under which most names are known to the table; none is taken off if that helps nothing.

    Args:
        arrays: of the file.
        table: of its source.
        where: file, for messages.

    Raises:
        UserError: two prefixes do equally well: the file holds the network twice.
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
        raise UserError(
            f"{where}: holds the network as {first!r} and as {second!r}; leave one out with init.rename={rule}"
        )
    other_names = [name for name in arrays if not name.startswith(best_prefix)]
    return Stripped(groups[best_prefix] if best_prefix else dict(arrays), best_prefix, other_names)


def _group_by_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """Return the arrays below each dotted prefix, without it; in one pass, as each name may have its own."""
    groups: dict[str, Arrays] = {}
    for name, array in arrays.items():
        components = name.split(".", _PREFIX_DEPTH + 1)
        for depth in range(1, min(len(components), _PREFIX_DEPTH + 1)):
            prefix = ".".join(components[:depth]) + "."
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = array
    return groups
