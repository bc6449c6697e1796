"""Scores of a whole part: of classes by scikit-learn, of entities by seqeval."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_jax.data.texts import OUTSIDE
from tl_jax.data.token_batches import IGNORED
from tl_jax.task import Batch, Verdict
from tl_jax.tasks.details import scored

Judge = Callable[[Sequence[Any], Sequence[Batch]], Verdict]
NAMES = ("precision", "recall", "f1", "examples")


class Tagged(NamedTuple):
    """Tags of the words of N sentences, as labelled and as predicted, in the order of the batches."""

    labels: list[list[str]]
    found: list[list[str]]


def of_texts(classes: Sequence[str]) -> Judge:
    """Return the judge of texts: ``f1`` is the mean over classes (macro), ``matthews`` Matthews' correlation."""
    return functools.partial(_classes, tuple(classes))


def of_tokens(classes: Sequence[str]) -> Judge:
    """Return the judge of tagged words: of entities where the tags are IOB's, else of words.

    ``f1`` is then that of whole entities, found or not, kind and both ends right (micro, CoNLL's). Tags that do not
    fit, such as an I- that begins an entity, are read as CoNLL's own script reads them.
    """
    entities = all(re.fullmatch(r"O|[BI]-.+", name) for name in classes) and len(classes) > 1
    return functools.partial(_entities if entities else _classes, tuple(classes))


def tags(classes: Sequence[str], numbers: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> list[list[str]]:
    """Return the names of tags (N, L) where ``labels`` count, of the rows that are no padding."""
    rows = zip(numbers[mask > 0], labels[mask > 0], strict=True)
    return [[classes[n] for n, label in zip(row, own, strict=True) if label != IGNORED] for row, own in rows]


def _classes(classes: tuple[str, ...], found: Sequence[Any], batches: Sequence[Batch]) -> Verdict:
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support  # takes a second

    pairs = [_counted(np.asarray(each), batch) for each, batch in zip(found, batches, strict=True)]
    predicted, true = (np.concatenate(side) for side in zip(*pairs, strict=True))
    texts = predicted.ndim == 2  # probabilities, where tags come as numbers
    kept = scored(found, batches) if texts else _tagged(classes, found, batches)
    predicted = predicted.argmax(-1) if texts else predicted
    numbers = np.arange(len(classes))
    each = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0)
    table = {name: _row(*(column[i] for column in each)) for i, name in enumerate(classes)}
    values = {"f1": float(np.mean(each[2])), "matthews": float(matthews_corrcoef(true, predicted))}
    return Verdict(values, table, kept=kept)


def _counted(predicted: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    label, mask = np.asarray(batch["label"]), np.asarray(batch["mask"]) > 0
    counts = (mask if label.ndim == 1 else mask[:, None]) & (label != IGNORED)
    return predicted[counts], label[counts]


def _entities(classes: tuple[str, ...], found: Sequence[Any], batches: Sequence[Batch]) -> Verdict:
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support  # takes two seconds

    true, predicted = kept = _tagged(classes, found, batches)
    micro, by_kind = (
        precision_recall_fscore_support(true, predicted, average=how, zero_division=0) for how in ("micro", None)
    )
    kinds = sorted({tag[2:] for sentence in true + predicted for tag in sentence if tag != OUTSIDE})  # seqeval's order
    table = {kind: _row(*(column[i] for column in by_kind)) for i, kind in enumerate(kinds)}
    return Verdict(dict(zip(NAMES[:3], map(float, micro), strict=False)), table, kept=kept)


def _tagged(classes: tuple[str, ...], found: Sequence[Any], batches: Sequence[Batch]) -> Tagged:
    kept = Tagged([], [])
    for each, batch in zip(found, batches, strict=True):
        labels, mask = np.asarray(batch["label"]), np.asarray(batch["mask"])
        if labels.ndim == 2:
            kept.labels.extend(tags(classes, labels, labels, mask))
            kept.found.extend(tags(classes, np.asarray(each), labels, mask))
    return kept


def _row(*numbers: Any) -> dict[str, float]:
    return dict(zip(NAMES, map(float, numbers), strict=True))
