"""Put loaded arrays into a model's tree, or refuse with the list of everything that does not fit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax import tree
from tl_jax.errors import UserError
from tl_jax.weights.rules import Converted


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
    wanted = tree.flatten(target)
    missing = [path for path in wanted if path not in converted.leaves]
    extra = list(converted.extra) + [converted.origin[p] for p in converted.leaves if p not in wanted]
    wrong = list(converted.clashes)
    for path, leaf in wanted.items():
        if path in converted.leaves:
            wrong += misfits(path, converted.leaves[path], leaf)
    report = MergeReport(missing, extra, wrong)
    if any(report):
        raise MergeError(describe(report), report)
    return tree.unflatten({p: np.asarray(converted.leaves[p], np.float32) for p in wanted})


def misfits(path: str, array: np.ndarray, leaf: Any) -> list[str]:
    """Return what keeps an array from filling a leaf; nothing where it fits."""
    if array.shape != leaf.shape:
        return [f"{path} has shape {array.shape}, the model needs {leaf.shape}"]
    # ml_dtypes' bfloat16 has kind "V", so ask whether it casts to float rather than for its kind.
    if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
        return [f"{path} holds {array.dtype}, the model needs floating point"]
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        return [f"{path} holds values that are not finite"]
    return []


def describe(report: MergeReport, most: int = 6) -> str:
    """Return a report in one line, with the first offenders of each kind."""
    parts = []
    for kind, names in zip(("missing", "extra", "wrong"), report, strict=True):
        if names:
            parts.append(f"{len(names)} {kind}: {listed(names, most)}")
    return "; ".join(parts)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names in one line, the first of them where they are many."""
    return ", ".join(names[:most]) + (f" (+{len(names) - most} more)" if len(names) > most else "")
