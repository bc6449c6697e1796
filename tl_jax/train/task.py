"""The task interface of the training loop: a class with data, a loss, metrics and predictions.

A task is one class, usually in one file, registered by ``register_task``. Everything that differs between tasks belongs
in these classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import jax
import numpy as np

from tl_jax.config.options import Field
from tl_jax.metrics import Batch, Evaluation, Sums, Variables
from tl_jax.train.run_config import RunConfig
from tl_jax.transfer import phases
from tl_jax.transfer.regularizers import REGULARIZERS, Penalty
from tl_jax.utils.errors import UserError
from tl_jax.utils.registry import Registry

Conflicts = Mapping[str, Any]  # error message -> whether it applies


class Objective(NamedTuple):
    """A training objective: ``loss``, ``train_batch`` and ``make_stepper`` as in ``Task``."""

    loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Any, Sums]]]
    train_batch: Callable[[int], Batch]
    make_stepper: Callable[..., Any] | None = None


class Task:
    """A task, built for a run: ``Task(config, record)``.

    Functions of arrays are attributes rather than methods: equal options give the same function, so that runs share
    compiled programs.

    Attributes of the class:
        kind: value of ``config.task``; set by ``register_task``.
        about: short description of the task.
        input_kind: input of the network: "images", "texts" or "observations".
        data_inputs: key of the task's datasets in ``data.registry.DATASETS``; empty for a task without data.
        synthetic: name of the dataset used if ``config.data.generate`` is set.
        config_class: subclass of ``RunConfig`` with the task's own options.
        unused_fields: fields of it, or prefixes of fields, that the task ignores.
        needs_labels: whether examples must have labels.
        tags_words: whether each word of a text has a class.
        has_classes: whether each example has a class.
        has_features: whether the head sits on ``features`` (N, D), which penalties may use.
        extra_heads: names of further heads, under ``extra/`` in the parameters, that the loss trains.
        can_choose_method: whether ``method="auto"`` is available. The task then uses the splits of its record and has a
            ``feature_cache``, so training can be compared with a linear probe.
        can_average: whether networks may form an ensemble: ``outputs`` are probabilities (N, K) of one class per
            example, ``evaluate`` keeps them as ``classification.Predictions``, and ``predict`` takes ``Members``.
        random_files: whether random initialization also needs the files of ``config.init.path``.
        pretext_fields: fields of ``config.pretext`` that have an effect without a pretext.
        prediction_columns: columns of a ``predict`` row after its input.

    Attributes:
        config: configuration of the run.
        name: short description of the run, for messages.
        classes: names of the K classes.
        loss: (variables, batch, key) -> (loss, (new batch_stats, sums)), in training mode with augmentation. If
            ``init`` returns a third collection, "source", the variables hold it: data derived from the initial weights.
            None if steps are not gradients of a batch loss; ``make_stepper`` then defines them.
        metrics: (variables, batch) -> sums, in evaluation mode.
        features: (variables, batch) -> (N, D) features before the head.
        outputs: (variables, batch) -> per-example outputs (N, ...) for ``evaluate``, such as probabilities; None if
            unused.
        train_batch: step -> batch of NumPy arrays, a pure function of seed and step; None like ``loss``.
        eval_batches: split name -> iterator of padded, masked batches that hold every example once.
        sizes: split name -> number of examples.
        facts: weights and data that were loaded, and their origin, for the summary and for resuming.
        stages: names of the network's stages, input first, for freeze recipes and layer-wise rates.
        pretext: objective without labels; None if unused.
        score: metric that selects the best checkpoint; higher is better.
        evaluates_outputs: whether metrics need the outputs of all examples at each evaluation. Otherwise outputs are
            used in the final test only.
        reports_validation: whether ``report`` also takes the outputs for the validation split.
        test_order: (N,) indices of the test examples in the order of ``eval_batches``; None if unchanged.
        feature_cache: computes the features of examples once; None if the task has none.
        make_stepper: replaces ``train.step.Stepper``, with the same interface, if a step is more than a gradient of
            ``loss``.
    """

    kind: ClassVar[str] = ""
    about: ClassVar[str] = ""
    input_kind: ClassVar[str] = ""
    data_inputs: ClassVar[str] = ""
    synthetic: ClassVar[str] = ""
    config_class: ClassVar[type[RunConfig]] = RunConfig
    unused_fields: ClassVar[tuple[str, ...]] = ()
    needs_labels: ClassVar[bool] = True
    tags_words: ClassVar[bool] = False
    has_classes: ClassVar[bool] = True
    has_features: ClassVar[bool] = True
    extra_heads: ClassVar[tuple[str, ...]] = ()
    can_choose_method: ClassVar[bool] = False
    can_average: ClassVar[bool] = False
    random_files: ClassVar[bool] = False
    pretext_fields: ClassVar[tuple[str, ...]] = ()
    prediction_columns: ClassVar[tuple[str, ...]] = ("probabilities",)

    config: Any
    name: str
    classes: tuple[str, ...] = ()
    loss: Any = None
    metrics: Callable[[Variables, Batch], Sums]
    features: Any = None
    outputs: Callable[[Variables, Batch], Any] | None = None
    train_batch: Any = None
    eval_batches: Callable[[str], Iterator[Batch]]
    sizes: Mapping[str, int]
    facts: Mapping[str, Any]
    stages: tuple[str, ...] = ()
    pretext: Objective | None = None
    score: str = "accuracy"
    evaluates_outputs: bool = False
    reports_validation: bool = False
    test_order: Any = None
    feature_cache: Any = None
    make_stepper: Callable[..., Any] | None = None

    def __init__(self, config: Any, record: Any):
        """Load the data and network of ``config``; ``record`` is the run's ``tasks.run_record.RunRecord``."""
        self.config = config

    # ---- configuration, before anything is loaded

    @classmethod
    def networks(cls) -> tuple[str, ...]:
        """Return the supported values of ``config.model.name``."""
        raise NotImplementedError

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        """Return the supported values of ``config.init.source``."""
        raise NotImplementedError

    @classmethod
    def stage_names(cls, config: Any) -> tuple[str, ...]:
        """Return the names of the network's stages, without computing anything."""
        raise NotImplementedError

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> Conflicts:
        """Return error messages about this task's fields; ``changed(*fields)`` is whether one is not its default."""
        return {}

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """Return the configuration fields of this task, by dotted path."""
        penalties = [f"regularize.{name}" for name, penalty in REGULARIZERS.items() if not cls._can_use(penalty)]
        unused = (*cls.unused_fields, *penalties)
        return {path: field for path, field in cls.config_class.fields().items() if not path.startswith(unused)}

    @classmethod
    def _can_use(cls, penalty: Penalty) -> bool:
        has_needs = cls.has_classes >= penalty.needs_classes and cls.has_features >= penalty.needs_features
        return has_needs and penalty.inputs in ("", cls.input_kind)

    @classmethod
    def set_defaults(cls, config: Any) -> None:
        """Set the defaults of this task, in place, for a user who names only the data."""

    @classmethod
    def data_name(cls, config: Any) -> str:
        """Return the name of the dataset of a run."""
        return cls.synthetic if config.data.generate and not config.data.dir else config.data.name

    @classmethod
    def load_data(cls, config: Any) -> Any:
        """Return the ``data.dataset.Dataset`` of a configuration, before the run splits it."""
        raise NotImplementedError

    @classmethod
    def fitted_value(cls, config: Any) -> str:
        """Return the name of the value fitted to the validation split, such as "temperature"; "" for none."""
        return ""

    @classmethod
    def check_mode(cls, mode: str) -> None:
        """Raise UserError if this task has no method ``mode``, such as "predict"; name the tasks that have it."""
        if getattr(cls, mode) is getattr(Task, mode):
            supported = [kind for kind, other in TASKS.items() if getattr(other, mode) is not getattr(Task, mode)]
            raise UserError(
                f"config.task={cls.kind}: {mode} is not available; it is for config.task={' or '.join(supported)}"
            )

    @classmethod
    def keeps_norms(cls, config: Any) -> bool:
        """Return whether frozen BatchNorm statistics are advisable when the network trains on few examples."""
        return False

    @classmethod
    def feature_size(cls, config: Any) -> int:
        """Return the number of input features D of the head, without computing anything; 0 if unknown."""
        return 0

    @classmethod
    def is_portable(cls, folder: Path, facts: Mapping[str, Any]) -> bool:
        """Return whether the files of a run suffice to build its network, without the source weights."""
        return "spec" in facts

    # ---- training

    def plan(self, config: Any = None) -> tuple[phases.Phase, ...]:
        """Return the phases of the run, in steps; those of another configuration if given."""
        return phases.resolve(config or self.config, self.sizes, self.stages, self.extra_heads)

    def keep(self, folder: Path) -> None:
        """Write further files that predictions need into the folder of a run, at its start."""

    def init(self, key: jax.Array) -> Variables:
        """Return the initial variables: pretrained weights and a randomly initialized head."""
        raise NotImplementedError

    def objective(self, name: str) -> Objective:
        """Return the objective called ``name``."""
        supervised = Objective(self.loss, self.train_batch, self.make_stepper)
        return self.pretext if name == "pretext" and self.pretext else supervised

    def cache_features(self, variables: Variables, phase: Any) -> Task:
        """Return a task with the same results that caches the outputs of the layers frozen in the phase."""
        return self

    def replace(self, **changes: Any) -> Self:
        """Return a copy of the task with some attributes replaced."""
        other = copy.copy(self)
        for name, value in changes.items():
            getattr(self, name)  # raises for an unknown attribute
            setattr(other, name, value)
        return other

    # ---- evaluation

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        """Return the metrics that need all outputs together.

        Args:
            outputs: for each batch, (N, ...).
            batches: from ``eval_batches``, without inputs.
        """
        return Evaluation({}, {})

    def with_test(self, config: Any, classes: Mapping[str, str]) -> Self:
        """Return the task with all examples of another labelled dataset as its test split.

        Args:
            config: configuration of the run, with the fields of ``config.data`` that name the other dataset.
            classes: maps class names of that dataset to those of the run, if they differ.
        """
        raise NotImplementedError

    def with_views(self, count: int) -> Self | None:
        """Return the task with predictions averaged over ``count`` views of each example (test-time augmentation).

        None if the task's examples have no views.
        """
        return None

    def test_details(self, predictions: Any) -> dict[str, Any] | None:
        """Return the content of ``test_details.json``, from the evaluation of the test split."""
        return None

    def report(self, test: Any, validation: Any, folder: Path) -> dict[str, Any]:
        """Return further entries of the summary, and write figures into the folder.

        Args:
            test: predictions that ``evaluate`` kept for the test split.
            validation: the same for the validation split; None if it is empty or unused (``reports_validation``).
            folder: folder of the run.
        """
        return {}

    def report_elsewhere(self, test: Any, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return the results on another labelled dataset at the run's threshold and temperature.

        Args:
            test: predictions that ``evaluate`` kept for the dataset.
            summary: summary of the run.
        """
        return {}

    # ---- modes

    def read_inputs(self, inputs: Any) -> Sequence[Any]:
        """Return the inputs one by one, such as the images of a folder; large inputs stay on disk."""
        raise NotImplementedError

    def input_columns(self, inputs: Any) -> list[dict[str, Any]] | None:
        """Return for each input further columns that a table of predictions repeats; None if inputs have none."""
        return None

    def predict(
        self, variables: Variables, inputs: Sequence[Any], embeddings: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield a row for each input, in order: ``input``, and the prediction or the ``error`` of a damaged input.

        Args:
            variables: trained variables.
            inputs: from ``read_inputs``; one batch at a time is in memory.
            embeddings: whether to add ``embedding`` (D,); without it, rows can be written as JSON.
        """
        raise NotImplementedError

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        """Format a row of ``predict`` for the console."""
        raise NotImplementedError

    def draw_predictions(self, rows: Sequence[Mapping[str, Any]], inputs: Sequence[Any], folder: Path) -> list[Path]:
        """Draw the rows of ``predict`` on their inputs, into the folder of the run; return the paths of the images."""
        return []

    def preview(self, folder: Path) -> list[Path]:
        """Draw augmented training examples into the folder; return the paths of the images."""
        raise NotImplementedError

    def explain(self, variables: Variables, inputs: Sequence[Any], folder: Path) -> tuple[Path, str]:
        """Draw a saliency map for each input; return the path of the image, and a caption."""
        raise NotImplementedError

    def play(self, variables: Variables, folder: Path) -> tuple[Path, str]:
        """Render episodes of a policy; return the path of the animation, and a caption."""
        raise NotImplementedError

    def export_weights(self, folder: Path, start: Any, end: Any, dtype: str) -> Path:
        """Write the weights of a run into ``folder/export``, and return their path.

        Args:
            folder: folder of the run.
            start: ``TrainState`` before training; None if the source weights are missing.
            end: the state to export.
            dtype: data type of the exported values.
        """
        raise NotImplementedError

    def bundle_variables(self, folder: Path) -> Variables:
        """Return the trained variables from the files of a bundle, whose checksums were verified."""
        raise NotImplementedError

    def bundle_contents(self, folder: Path, step: int) -> Any:
        """Return the ``export.bundle.BundleContents`` of the weights in ``folder``, saved at a step."""
        raise NotImplementedError


def unread(errors: int, inputs: int) -> str:
    """Return a message with the number of unreadable inputs."""
    return f"{errors:,} of {inputs:,} inputs cannot be read"


def as_list(inputs: Any) -> list[Any]:
    """Return one input, or an iterable of inputs, as a list."""
    if isinstance(inputs, str | os.PathLike | np.ndarray) or hasattr(inputs, "convert"):  # a Pillow image
        return [inputs]
    if not isinstance(inputs, Iterable):
        raise UserError(f"input {inputs!r}: not supported; pass files, texts or arrays")
    return list(inputs)


def refuse_embeddings(kind: str, embeddings: bool) -> None:
    """Raise UserError if embeddings are requested from a task that has none."""
    if embeddings:
        raise UserError(f"config.task={kind}: embeddings are not available; omit --embeddings")


TASKS: Registry[type[Task]] = Registry("task")
_T = TypeVar("_T", bound=type[Task])


def register_task(kind: str) -> Callable[[_T], _T]:
    """Return a decorator that registers a class as the task ``kind``."""

    def register(cls: _T) -> _T:
        cls.kind = kind
        TASKS.add(kind, cls, cls.__module__, cls.__qualname__)
        return cls

    return register
