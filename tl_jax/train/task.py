"""What every kind of task is to the training loop: a class with data, a loss, metrics and predictions.

A kind of task is one file: a class, registered under its name by ``register_task``. What differs between kinds stands
in their classes and nowhere else.
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

Conflicts = Mapping[str, Any]  # what is wrong with a configuration, in words -> whether it is


class Objective(NamedTuple):
    """Something to learn: ``loss``, ``train_batch`` and ``make_stepper`` as those of a ``Task``."""

    loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Any, Sums]]]
    train_batch: Callable[[int], Batch]
    make_stepper: Callable[..., Any] | None = None


class Task:
    """One kind of task, built for a run: ``Task(config, record)``.

    Functions of arrays are attributes rather than methods: equal options give the same function, so that runs share
    what is compiled.

    Attributes of the class:
        kind: its name, which ``config.task`` holds; ``register_task`` sets it.
        about: what is learned, in a few words.
        input_kind: what goes into the network: "images", "texts" or "observations".
        data_inputs: whose data sets it takes, see ``data.registry.DATASETS``; empty for a kind without data.
        synthetic: name of the data set that stands in if ``config.data.generate`` says so.
        config_class: its options, a subclass of ``RunConfig`` with what this kind has of its own.
        unused_fields: of these, fields, or beginnings of such, that mean nothing for this kind.
        needs_labels: whether examples must have labels.
        tags_words: whether each word of a text has a class of its own.
        has_classes: whether each example has a class.
        has_features: whether the head sits on ``features`` (N, D), which penalties may read.
        extra_heads: names of further heads, under ``extra/`` in the parameters, that its loss trains.
        can_choose_method: whether ``method="auto"`` can compare what is trained with a linear probe of the features:
            the kind takes the splits of its record, and has a ``feature_cache``.
        can_average: whether networks may be an ensemble: ``outputs`` are probabilities (N, K) of one class an example,
            ``evaluate`` keeps them as ``classification.Predictions``, and ``predict`` takes ``Members``.
        random_files: whether random weights, too, need the files of ``config.init.path``.
        pretext_fields: those of ``config.pretext`` that have an effect without a pretext.
        prediction_columns: what a row of ``predict`` has beside its input.

    Attributes:
        config: of the run.
        name: what the run is about, for messages.
        classes: names of the K classes.
        loss: (variables, batch, key) -> (loss, (new batch_stats, sums)); train mode, augmented. The variables hold a
            third collection, "source", where ``init`` gives one: what the loss needs of the weights at the start. None
            for a kind whose steps are no gradients of a loss of a batch, which has ``make_stepper``.
        metrics: (variables, batch) -> sums; evaluation mode.
        features: (variables, batch) -> (N, D) features before the head.
        outputs: (variables, batch) -> what ``evaluate`` takes of each example (N, ...), such as its probabilities; None
            if nothing needs it.
        train_batch: step -> batch of numpy arrays, a pure function of seed and step; None as ``loss``.
        eval_batches: split name -> iterator of padded, masked batches that hold every example once.
        sizes: split name -> number of examples.
        facts: what was loaded and from where, for the summary and for resuming.
        stages: names of the network's stages from the input on, for freeze recipes and rates by depth.
        pretext: what may be learned from examples without labels, None if nothing is.
        score: name of the metric by which the best checkpoint is chosen, the higher the better.
        evaluates_outputs: whether metrics need the outputs of all examples together, at each evaluation; else these
            are looked at in the final test only.
        reports_validation: whether ``report`` takes the outputs for the validation split, too.
        test_order: which test example each is that ``eval_batches`` gives (N,); None if they come in their order.
        feature_cache: what computes the features of examples once; None for a kind that has none.
        make_stepper: makes what takes the steps of a phase if a step is more than a gradient of ``loss``; called and
            used as ``train.step.Stepper`` is.
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
        """Load what ``config`` names; ``record`` is a ``tasks.run_record.RunRecord``: what is known of the run."""
        self.config = config

    # ---- what a configuration of this kind may be, before anything is loaded

    @classmethod
    def networks(cls) -> tuple[str, ...]:
        """Return the names that ``config.model.name`` may have."""
        raise NotImplementedError

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        """Return the sources of weights that ``config.init.source`` may name."""
        raise NotImplementedError

    @classmethod
    def stage_names(cls, config: Any) -> tuple[str, ...]:
        """Return the names of the network's stages; nothing is computed."""
        raise NotImplementedError

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> Conflicts:
        """Return what may be wrong among the fields of this kind; ``changed(*fields)``: whether one is no default."""
        return {}

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """Return the fields of the configurations of this kind, by dotted path."""
        penalties = [f"regularize.{name}" for name, penalty in REGULARIZERS.items() if not cls._can_use(penalty)]
        unused = (*cls.unused_fields, *penalties)
        return {path: field for path, field in cls.config_class.fields().items() if not path.startswith(unused)}

    @classmethod
    def _can_use(cls, penalty: Penalty) -> bool:
        has_needs = cls.has_classes >= penalty.needs_classes and cls.has_features >= penalty.needs_features
        return has_needs and penalty.inputs in ("", cls.input_kind)

    @classmethod
    def set_defaults(cls, config: Any) -> None:
        """Change an editable configuration to what this kind of task takes where a user names data alone."""

    @classmethod
    def data_name(cls, config: Any) -> str:
        """Return the name of the data set that a run takes."""
        return cls.synthetic if config.data.generate and not config.data.dir else config.data.name

    @classmethod
    def load_data(cls, config: Any) -> Any:
        """Return the ``data.dataset.Dataset`` of a configuration, before it is split for a run."""
        raise NotImplementedError

    @classmethod
    def fitted_value(cls, config: Any) -> str:
        """Return the name of what a run fits to its validation split for predictions, such as "temperature"; "" for no
        such thing."""
        return ""

    @classmethod
    def check_mode(cls, mode: str) -> None:
        """Raise UserError where runs of this kind have no method ``mode``, "predict" say; it names those that have."""
        if getattr(cls, mode) is getattr(Task, mode):
            supported = [kind for kind, other in TASKS.items() if getattr(other, mode) is not getattr(Task, mode)]
            raise UserError(
                f"{mode} is for runs with config.task={' or '.join(supported)}; this one has config.task={cls.kind}"
            )

    @classmethod
    def keeps_norms(cls, config: Any) -> bool:
        """Whether BatchNorm had better use the source's statistics while the network is trained on little."""
        return False

    @classmethod
    def feature_size(cls, config: Any) -> int:
        """Return the number of features D that the head reads, 0 if it is not known; nothing is computed."""
        return 0

    @classmethod
    def is_portable(cls, folder: Path, facts: Mapping[str, Any]) -> bool:
        """Whether the files of a run say enough to build its network without the weights that it started from."""
        return "spec" in facts

    # ---- training

    def plan(self, config: Any = None) -> tuple[phases.Phase, ...]:
        """Return the phases of the run in steps; of another configuration if one is given."""
        return phases.resolve(config or self.config, self.sizes, self.stages, self.extra_heads)

    def keep(self, folder: Path) -> None:
        """Write into the folder of a run, as it starts, what its predictions need beside facts and checkpoints."""

    def init(self, key: jax.Array) -> Variables:
        """Return the variables that training starts from: pretrained weights, and a head drawn from the key."""
        raise NotImplementedError

    def objective(self, name: str) -> Objective:
        """Return what a phase with the objective ``name`` learns."""
        supervised = Objective(self.loss, self.train_batch, self.make_stepper)
        return self.pretext if name == "pretext" and self.pretext else supervised

    def cache_features(self, variables: Variables, phase: Any) -> Task:
        """Return a task with the same results that does not compute again what the phase leaves frozen."""
        return self

    def replace(self, **changes: Any) -> Self:
        """Return the task with other values of some attributes."""
        other = copy.copy(self)
        for name, value in changes.items():
            getattr(self, name)  # an unknown one is an error
            setattr(other, name, value)
        return other

    # ---- evaluation

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        """Return the metrics that need all outputs together.

        Args:
            outputs: of each batch, (N, ...).
            batches: as ``eval_batches`` gives them, without inputs.
        """
        return Evaluation({}, {})

    def with_test(self, config: Any, classes: Mapping[str, str]) -> Self:
        """Return the task with all examples of another labelled set as its test split.

        Args:
            config: of the run, with the fields of ``config.data`` that name the other set.
            classes: class there -> class of the run, for those that are called otherwise.
        """
        raise NotImplementedError

    def with_views(self, count: int) -> Self | None:
        """Return the task whose predictions are means over ``count`` views of each example; None for a kind whose
        examples have no views."""
        return None

    def test_details(self, predictions: Any) -> dict[str, Any] | None:
        """Return the content of ``test_details.json``, from what ``evaluate`` kept of the test split."""
        return None

    def report(self, test: Any, validation: Any, folder: Path) -> dict[str, Any]:
        """Return further entries of the summary, and draw figures into the folder.

        Args:
            test: what ``evaluate`` kept of the test split.
            validation: the same of the validation split, None if it is empty or not asked for (``reports_validation``).
            folder: of the run.
        """
        return {}

    def report_elsewhere(self, test: Any, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return what another labelled set shows at the threshold and temperature of a run.

        Args:
            test: what ``evaluate`` kept of the set.
            summary: of the run.
        """
        return {}

    # ---- what a user may ask of a run

    def read_inputs(self, inputs: Any) -> Sequence[Any]:
        """Return what inputs stand for, one by one, such as the images of a folder; what is large stays on disk."""
        raise NotImplementedError

    def predict(
        self, variables: Variables, inputs: Sequence[Any], embeddings: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield a row for each input, in order: ``input``, and what is predicted, or the ``error`` of a damaged one.

        Args:
            variables: trained.
            inputs: from ``read_inputs``; a batch of them is in memory at a time.
            embeddings: whether rows have ``embedding`` (D,), too; else they are for JSON.
        """
        raise NotImplementedError

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        """Return a row of ``predict`` as text for the screen."""
        raise NotImplementedError

    def draw_predictions(self, rows: Sequence[Mapping[str, Any]], inputs: Sequence[Any], folder: Path) -> list[Path]:
        """Draw the rows of ``predict`` on their inputs into the folder of the run; return the paths of the images."""
        return []

    def preview(self, folder: Path) -> list[Path]:
        """Draw what training gets to see into the folder; return the paths of the images."""
        raise NotImplementedError

    def explain(self, variables: Variables, inputs: Sequence[Any], folder: Path) -> tuple[Path, str]:
        """Draw where in each input the network sees what it says; return the image, and what it shows as text."""
        raise NotImplementedError

    def play(self, variables: Variables, folder: Path) -> tuple[Path, str]:
        """Draw what a policy does; return the animation, and what it shows as text."""
        raise NotImplementedError

    def export_weights(self, folder: Path, start: Any, end: Any, dtype: str) -> Path:
        """Write the weights of a run into ``folder/export``, and return their path.

        Args:
            folder: of the run.
            start: ``TrainState`` before training; None where the weights that it started from are gone.
            end: the state that is exported.
            dtype: of the values.
        """
        raise NotImplementedError

    def bundle_variables(self, folder: Path) -> Variables:
        """Return the trained variables from the files of a bundle, whose hashes were checked."""
        raise NotImplementedError

    def bundle_contents(self, folder: Path, step: int) -> Any:
        """Return the ``export.bundle.BundleContents`` that belong to the weights in ``folder``, those of a step."""
        raise NotImplementedError


def unread(errors: int, inputs: int) -> str:
    """Return in words how many of the inputs cannot be read."""
    return f"{errors:,} of {inputs:,} inputs cannot be read"


def as_list(inputs: Any) -> list[Any]:
    """Return one input, or several from whatever gives them one by one, as a list."""
    if isinstance(inputs, str | os.PathLike | np.ndarray) or hasattr(inputs, "convert"):  # which Pillow's images have
        return [inputs]
    if not isinstance(inputs, Iterable):
        raise UserError(f"an input is {inputs!r}; pass files, texts or arrays")
    return list(inputs)


def refuse_embeddings(kind: str, embeddings: bool) -> None:
    """Refuse to give embeddings of the inputs of a kind that has none."""
    if embeddings:
        raise UserError(f"runs with config.task={kind} have no embeddings of their inputs; leave --embeddings out")


TASKS: Registry[type[Task]] = Registry("task")
_T = TypeVar("_T", bound=type[Task])


def register_task(kind: str) -> Callable[[_T], _T]:
    """Return a decorator that makes a class known as the task ``kind``."""

    def register(cls: _T) -> _T:
        cls.kind = kind
        TASKS.add(kind, cls, cls.__module__, cls.__qualname__)
        return cls

    return register
