"""Metrics of a split of texts: of classes as in scikit-learn, of entities as in seqeval."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from tl_jax.data.conll import TagScheme, find_scheme
from tl_jax.data.tokenize import IGNORED
from tl_jax.metrics import Batch, Evaluation
from tl_jax.metrics.classification import collect_predictions
from tl_jax.utils.errors import join_names

Evaluator = Callable[[Sequence[Any], Sequence[Batch]], Evaluation]
COLUMNS = ("precision", "recall", "f1", "examples")
UNREAD = "(not read)"  # prediction for a word that is not read, if there is no tag "O"
MAX_LISTED = 8  # absent classes in a message


class Tags(NamedTuple):
    """Labelled and predicted tags of all words of N sentences, in the order of the batches.

    A word that the network does not read, because it is truncated or has no token, is predicted as "O", or as
    ``UNREAD`` if the data have no such tag.
    """

    labels: list[list[str]]
    predictions: list[list[str]]


def text_evaluator(classes: Sequence[str]) -> Evaluator:
    """Return the evaluator of texts: ``f1`` is the macro-F1, ``matthews`` the Matthews correlation.

    The macro-F1 is the mean over the classes in the labels or the predictions, as in scikit-learn.
    """
    return functools.partial(_evaluate_texts, tuple(classes))


def token_evaluator(classes: Sequence[str]) -> Evaluator:
    """Return the evaluator of tagged words: of entities if the tags follow a scheme for them, else of words.

    ``f1`` of entities is the micro-F1 over exact matches of kind and both ends, as in CoNLL's script and seqeval, so it
    does not depend on the scheme; see ``data.conll`` for the schemes. ``f1`` of words is the macro-F1. Words that the
    network does not read count as missed.
    """
    scheme = find_scheme(classes)
    evaluate = functools.partial(_evaluate_entities, scheme) if scheme.name else _evaluate_words
    return functools.partial(evaluate, tuple(classes))


def collect_tags(classes: Sequence[str], predictions: Sequence[Any], batches: Sequence[Batch]) -> Tags:
    """Return the tags of sentences from the predicted classes (B, L) of the tokens in each batch."""
    outside = find_scheme(classes).outside or UNREAD
    tagged = Tags([], [])
    for rows, batch in zip(predictions, batches, strict=True):
        class_ids, labels = np.asarray(rows), np.asarray(batch["label"])
        for i in np.flatnonzero(np.asarray(batch["mask"]) > 0):
            counted = labels[i] != IGNORED
            tags = np.asarray(batch["tags"][i]) if "tags" in batch else labels[i][counted]
            tags = tags[tags != IGNORED]
            read = np.asarray(batch["read"][i])[: len(tags)] > 0 if "read" in batch else np.ones(len(tags), bool)
            token_classes = iter(class_ids[i][counted])
            tagged.labels.append([classes[int(tag)] for tag in tags])
            tagged.predictions.append([classes[int(next(token_classes))] if is_read else outside for is_read in read])
    return tagged


def _evaluate_texts(classes: tuple[str, ...], predictions: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    collected = collect_predictions(predictions, batches)
    predicted = collected.probabilities.argmax(-1) if collected.probabilities.ndim == 2 else collected.probabilities
    return _class_scores(classes, collected.labels, predicted.astype(int), collected)


def _evaluate_words(classes: tuple[str, ...], predictions: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    tagged = collect_tags(classes, predictions, batches)
    indices = {name: i for i, name in enumerate((*classes, UNREAD))}
    true, predicted = (np.asarray([indices[tag] for sentence in tags for tag in sentence], int) for tags in tagged)
    return _with_accuracy(_class_scores(classes, true, predicted, tagged), batches)


def _class_scores(classes: tuple[str, ...], true: np.ndarray, predicted: np.ndarray, predictions: Any) -> Evaluation:
    """Return the scores of labels and predictions (N,); a prediction of K is none of the classes."""
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support  # takes 1 s

    class_ids = [i for i in range(len(classes)) if (true == i).any() or (predicted == i).any()]
    options: dict[str, Any] = {"labels": class_ids, "zero_division": 0}
    # scikit-learn is untyped, and the inferred types are those of averages.
    scores = cast(tuple[np.ndarray, ...], precision_recall_fscore_support(true, predicted, **options))
    per_class = {classes[i]: _class_row(*(column[row] for column in scores)) for row, i in enumerate(class_ids)}
    values = {"f1": float(np.mean(scores[2])), "matthews": float(matthews_corrcoef(true, predicted))}
    absent = [name for i, name in enumerate(classes) if not (true == i).any()]  # independent of the predictions
    return Evaluation(values, per_class, _missing_classes(absent), predictions)


def _missing_classes(absent: Sequence[str]) -> dict[str, str]:
    """Return metric -> reason for classes without a label in the split."""
    if not absent:
        return {}
    return {f"f1 of {join_names(absent, MAX_LISTED)}": "needs examples of the class, which this split lacks"}


def _evaluate_entities(
    scheme: TagScheme, classes: tuple[str, ...], predictions: Sequence[Any], batches: Sequence[Batch]
) -> Evaluation:
    tagged = collect_tags(classes, predictions, batches)
    counts = {name: Counter() for name in ("labelled", "predicted", "right")}
    for labels, tags in zip(*tagged, strict=True):
        true, predicted = set(scheme.entities(labels)), set(scheme.entities(tags))
        for name, entities in (("labelled", true), ("predicted", predicted), ("right", true & predicted)):
            counts[name].update(kind for kind, _, _ in entities)
    kinds = sorted({*counts["labelled"], *counts["predicted"]})
    per_class = {kind: _precision_recall(*(counts[name][kind] for name in counts)) for kind in kinds}
    micro = _precision_recall(*(counter.total() for counter in counts.values()))
    evaluation = Evaluation({name: micro[name] for name in COLUMNS[:3]}, per_class, predictions=tagged)
    return _with_accuracy(evaluation, batches)


def _precision_recall(labelled: int, predicted: int, right: int) -> dict[str, float]:
    precision = right / predicted if predicted else 0.0
    recall = right / labelled if labelled else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return _class_row(precision, recall, f1, labelled)


def _with_accuracy(evaluation: Evaluation, batches: Sequence[Batch]) -> Evaluation:
    """Add the accuracy over all words if some are not read; otherwise it is the metric of the task."""
    if all((np.asarray(batch["read"]) > 0)[np.asarray(batch["tags"]) != IGNORED].all()
           for batch in batches if "read" in batch):  # fmt: skip
        return evaluation
    pairs = [pair for sentence in zip(*evaluation.predictions, strict=True) for pair in zip(*sentence, strict=True)]
    accuracy = float(np.mean([label == tag for label, tag in pairs]))
    return evaluation._replace(values={**evaluation.values, "accuracy": accuracy})


def _class_row(*numbers: Any) -> dict[str, float]:
    return dict(zip(COLUMNS, map(float, numbers), strict=True))


def predicted_classes(classes: Sequence[str], tagged: Tags) -> tuple[str, ...]:
    """Return the classes of ``tagged``: those of the data, and ``UNREAD`` if a word was not read."""
    return (*classes, UNREAD) if any(UNREAD in tags for tags in tagged.predictions) else tuple(classes)
