"""Scores of a whole split: of classes as scikit-learn computes them, of entities as seqeval does."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from tl_jax.data.conll import TagScheme, find_scheme
from tl_jax.data.tokenize import IGNORED
from tl_jax.metrics import Batch, Verdict
from tl_jax.metrics.classification import scored
from tl_jax.utils.errors import join_names

Judge = Callable[[Sequence[Any], Sequence[Batch]], Verdict]
NAMES = ("precision", "recall", "f1", "examples")
UNREAD = "(not read)"  # prediction for a word that the network does not read, if no tag says "nothing"
SHOWN = 8  # absent classes that are named


class Tagged(NamedTuple):
    """Tags of all words of N sentences, as labelled and as predicted, in the order of the batches.

    A word that the network does not read, because it lies behind the length limit or has no token, is predicted as
    "O", or as ``UNREAD`` if the data has no such tag.
    """

    labels: list[list[str]]
    found: list[list[str]]


def of_texts(classes: Sequence[str]) -> Judge:
    """Return the judge of texts: ``f1`` is the macro-F1, ``matthews`` Matthews' correlation.

    The macro-F1 is the mean over the classes that occur in the labels or the predictions, as in scikit-learn.
    """
    return functools.partial(_classes, tuple(classes))


def of_tokens(classes: Sequence[str]) -> Judge:
    """Return the judge of tagged words: of entities if the tags follow a scheme of these, else of words.

    ``f1`` is then that of whole entities, found or not, kind and both ends right (micro, as CoNLL's and seqeval's), so
    that it does not depend on the scheme; ``data.conll`` says which ones are known. Otherwise it is the macro-F1 over
    words. Words that the network does not read count as missed.
    """
    scheme = find_scheme(classes)
    judge = functools.partial(_entities, scheme) if scheme.name else _word_classes
    return functools.partial(judge, tuple(classes))


def tagged(classes: Sequence[str], found: Sequence[Any], batches: Sequence[Batch]) -> Tagged:
    """Return the tags of whole sentences from the predicted classes (B, L) of the tokens of each batch."""
    outside = find_scheme(classes).outside or UNREAD
    kept = Tagged([], [])
    for each, batch in zip(found, batches, strict=True):
        numbers, labels = np.asarray(each), np.asarray(batch["label"])
        for i in np.flatnonzero(np.asarray(batch["mask"]) > 0):
            counted = labels[i] != IGNORED
            tags = np.asarray(batch["tags"][i]) if "tags" in batch else labels[i][counted]
            tags = tags[tags != IGNORED]
            read = np.asarray(batch["read"][i])[: len(tags)] > 0 if "read" in batch else np.ones(len(tags), bool)
            predictions = iter(numbers[i][counted])
            kept.labels.append([classes[int(tag)] for tag in tags])
            kept.found.append([classes[int(next(predictions))] if word else outside for word in read])
    return kept


def _classes(classes: tuple[str, ...], found: Sequence[Any], batches: Sequence[Batch]) -> Verdict:
    kept = scored(found, batches)
    predicted = kept.probabilities.argmax(-1) if kept.probabilities.ndim == 2 else kept.probabilities
    return _judged(classes, kept.labels, predicted.astype(int), kept)


def _word_classes(classes: tuple[str, ...], found: Sequence[Any], batches: Sequence[Batch]) -> Verdict:
    kept = tagged(classes, found, batches)
    indices = {name: i for i, name in enumerate((*classes, UNREAD))}
    true, predicted = (np.asarray([indices[tag] for own in tags for tag in own], int) for tags in kept)
    return _with_accuracy(_judged(classes, true, predicted, kept), batches)


def _judged(classes: tuple[str, ...], true: np.ndarray, predicted: np.ndarray, kept: Any) -> Verdict:
    """Return the scores of labels and predictions (N,); a prediction may be K, none of the classes."""
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support  # takes a second

    numbers = [i for i in range(len(classes)) if (true == i).any() or (predicted == i).any()]
    how: dict[str, Any] = {"labels": numbers, "zero_division": 0}
    # scikit-learn has no types, and those that are guessed of it are of averages.
    each = cast(tuple[np.ndarray, ...], precision_recall_fscore_support(true, predicted, **how))
    table = {classes[i]: _row(*(column[row] for column in each)) for row, i in enumerate(numbers)}
    values = {"f1": float(np.mean(each[2])), "matthews": float(matthews_corrcoef(true, predicted))}
    absent = [name for i, name in enumerate(classes) if not (true == i).any()]  # the same whatever is predicted
    return Verdict(values, table, _missing(absent), kept)


def _missing(absent: Sequence[str]) -> dict[str, str]:
    """Return what to say of classes that no label of the split has."""
    if not absent:
        return {}
    return {f"f1 of {join_names(absent, SHOWN)}": "needs examples of the class, and there are none in this split"}


def _entities(scheme: TagScheme, classes: tuple[str, ...], found: Sequence[Any], batches: Sequence[Batch]) -> Verdict:
    kept = tagged(classes, found, batches)
    counts = {name: Counter() for name in ("labelled", "predicted", "right")}
    for labels, tags in zip(*kept, strict=True):
        true, predicted = set(scheme.entities(labels)), set(scheme.entities(tags))
        for name, entities in (("labelled", true), ("predicted", predicted), ("right", true & predicted)):
            counts[name].update(kind for kind, _, _ in entities)
    kinds = sorted({*counts["labelled"], *counts["predicted"]})
    table = {kind: _scores(*(counts[name][kind] for name in counts)) for kind in kinds}
    micro = _scores(*(each.total() for each in counts.values()))
    verdict = Verdict({name: micro[name] for name in NAMES[:3]}, table, kept=kept)
    return _with_accuracy(verdict, batches)


def _scores(labelled: int, predicted: int, right: int) -> dict[str, float]:
    precision = right / predicted if predicted else 0.0
    recall = right / labelled if labelled else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return _row(precision, recall, f1, labelled)


def _with_accuracy(verdict: Verdict, batches: Sequence[Batch]) -> Verdict:
    """Return the verdict with the accuracy over all words, if some are not read; else the task's own metric has it."""
    if all((np.asarray(batch["read"]) > 0)[np.asarray(batch["tags"]) != IGNORED].all()
           for batch in batches if "read" in batch):  # fmt: skip
        return verdict
    pairs = [pair for own in zip(*verdict.kept, strict=True) for pair in zip(*own, strict=True)]
    accuracy = float(np.mean([label == tag for label, tag in pairs]))
    return verdict._replace(values={**verdict.values, "accuracy": accuracy})


def _row(*numbers: Any) -> dict[str, float]:
    return dict(zip(NAMES, map(float, numbers), strict=True))


def names_of(classes: Sequence[str], kept: Tagged) -> tuple[str, ...]:
    """Return the classes that ``kept`` speaks of: those of the data, and ``UNREAD`` if a word was not read."""
    return (*classes, UNREAD) if any(UNREAD in tags for tags in kept.found) else tuple(classes)
