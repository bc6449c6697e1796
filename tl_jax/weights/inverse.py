"""Conversion tables read backwards: our leaves under the names, and in the layouts, of another library."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tl_jax import tree
from tl_jax.weights.rules import INVERSES, OWN, Rule, Table

# The regexes of the tables are names with these in them: groups that a path refers to, and spellings of which the last
# is today's.
_GROUP = re.compile(r"\((?!\?)([^()]*)\)")
_SPELLINGS = re.compile(r"\(\?:[^()]*?([^()|]*)\)")


class Named(NamedTuple):
    """An array as another library has it: its name there, and the path of the leaf of ours that it is made from."""

    name: str
    path: str
    array: np.ndarray


def named(variables: Mapping[str, Any], table: Table) -> list[Named]:
    """Return the leaves of a network as arrays under the names of a table's source.

    Leaves of layers that Keras names automatically have no name there; they keep our path.

    Args:
        variables: ``{"params": ..., "batch_stats": ...}``.
        table: of the source.
    """
    backwards = [_backwards(rule) for rule in table.rules if rule.path != OWN.path]
    found = []
    for path, leaf in tree.flatten(variables).items():
        array = np.asarray(leaf, np.float32)
        match, name, transform = next(
            ((m, name, turn) for pattern, name, turn in backwards if (m := pattern.fullmatch(path))),
            (None, path, None),
        )
        if match is None and not table.layers:
            raise ValueError(f"no rule of the table leads to {path}")
        if match is not None:
            name, array = match.expand(name), INVERSES[transform](array)
        found.append(Named(name, path, np.ascontiguousarray(array)))
    return found


def _backwards(rule: Rule) -> tuple[re.Pattern[str], str, Any]:
    r"""Return the regex over our paths, the name that it expands to, and the transform of the rule.

    ``layer(\d)\.0\.conv(\d)\.weight -> params/stage\1/block1/conv\2/kernel`` becomes
    ``params/stage(?P<g1>\d)/block1/conv(?P<g2>\d)/kernel -> layer\g<g1>.0.conv\g<g2>.weight``.
    """
    pieces = _GROUP.split(_SPELLINGS.sub(r"\1", rule.pattern))  # text and groups in turn
    name = "".join(rf"\g<g{i // 2 + 1}>" if i % 2 else piece.replace(r"\.", ".") for i, piece in enumerate(pieces))
    path = re.split(r"\\(\d)", rule.path)
    pattern = "".join(
        f"(?P<g{part}>{pieces[2 * int(part) - 1]})" if i % 2 else re.escape(part) for i, part in enumerate(path)
    )
    return re.compile(pattern), name, rule.transform
