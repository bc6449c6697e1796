"""A task is a handful of functions; the training loop knows nothing else about images, text or policies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tl_jax.metrics import Batch, Evaluation, Sums, Variables


class Objective(NamedTuple):
    """Something to learn: ``loss``, ``train_batch`` and ``make_stepper`` as those of a ``Task``."""

    loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Any, Sums]]]
    train_batch: Callable[[int], Batch]
    make_stepper: Callable[..., Any] | None = None


class Task(NamedTuple):
    """What training, evaluation and feature extraction need.

    Attributes:
        name: what the run is about, for messages.
        classes: names of the K classes.
        init: key -> variables, with pretrained weights put in and the head drawn from the key.
        loss: (variables, batch, key) -> (loss, (new batch_stats, sums)); train mode, augmented. The variables hold a
            third collection, "source", where ``init`` gives one: what the loss needs of the weights at the start.
        metrics: (variables, batch) -> sums; evaluation mode.
        features: (variables, batch) -> (N, D) features before the head.
        train_batch: step -> batch of numpy arrays, a pure function of seed and step.
        eval_batches: split name -> iterator of padded, masked batches that hold every example once.
        sizes: split name -> number of examples.
        facts: what was loaded and from where, for the summary and for resuming.
        stages: names of the network's stages from the input on, for freeze recipes and rates by depth.
        pretext: what may be learned from images without labels, None if nothing is.
        cache_features: (this task, variables, phase) -> a task with the same results that does not recompute what the
            phase leaves frozen; None if there is none.
        score: name of the metric by which the best checkpoint is chosen, the higher the better.
        predict: (variables, batch) -> what ``evaluate`` takes of each example (N, ...), such as its most likely class;
            None if nothing needs it.
        evaluate: (predictions (N, ...), batches as ``eval_batches`` gives them), both lists -> metrics that need all
            predictions together.
        test_details: what ``evaluate`` kept of the test split -> the content of ``test_details.json``, for the report.
        report: (what ``evaluate`` kept of the test split, and of the validation split or None, folder) -> further
            entries of the summary; it draws figures into the folder.
        make_stepper: makes what takes the steps of a phase if a step is more than a gradient of ``loss``; called and
            used as ``train.step.Stepper`` is.
        predict_inputs: (variables, what a user typed) -> the prediction for each input, for JSON, and the same as text.
        draw_predictions: (results of ``predict_inputs``, folder) -> paths of the images drawn into the folder.
        explain: (variables, what a user named) -> where in it the network sees what it says.
    """

    name: str
    classes: tuple[str, ...]
    init: Callable[[jax.Array], Variables]
    loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Any, Sums]]]
    metrics: Callable[[Variables, Batch], Sums]
    features: Callable[[Variables, Batch], jax.Array]
    train_batch: Callable[[int], Batch]
    eval_batches: Callable[[str], Iterator[Batch]]
    sizes: Mapping[str, int]
    facts: Mapping[str, Any]
    stages: tuple[str, ...] = ()
    pretext: Objective | None = None
    cache_features: Callable[["Task", Variables, Any], "Task"] | None = None
    score: str = "accuracy"
    predict: Callable[[Variables, Batch], jax.Array] | None = None
    evaluate: Callable[[Sequence[Any], Sequence[Batch]], Evaluation] | None = None
    test_details: Callable[..., dict[str, Any]] | None = None
    report: Callable[[Any, Any, Path], dict[str, Any]] | None = None
    make_stepper: Callable[..., Any] | None = None
    predict_inputs: Callable[[Variables, Sequence[str]], tuple[list[dict[str, Any]], str]] | None = None
    draw_predictions: Callable[[Sequence[Mapping[str, Any]], Path], list[Path]] | None = None
    explain: Callable[[Variables, Sequence[str]], Any] | None = None

    def objective(self, name: str) -> Objective:
        """Return what a phase with the objective ``name`` learns."""
        supervised = Objective(self.loss, self.train_batch, self.make_stepper)
        return self.pretext if name == "pretext" and self.pretext else supervised
