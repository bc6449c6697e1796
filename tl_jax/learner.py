"""Fine-tune, evaluate and predict in three lines; ``load_learner`` reopens a run from its folder::

    learner = tl_jax.fine_tune("photos")            # FOLDER/CLASS/IMAGE
    learner.evaluate()
    learner.predict(["new.jpg"])
    learner = tl_jax.load_learner(learner.workdir)  # in another program

The command line makes the same calls: ``--mode=train`` calls ``Learner.fit``; ``--mode=predict`` calls
``show_predictions``, or ``write_predictions`` with ``--output``; ``--mode=eval`` calls ``test``, or ``evaluate`` with
``--data``.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax import choose_method, ensemble, predictions, training
from tl_jax.config import recipe, schema, stored, validate
from tl_jax.config.schema import default_workdir
from tl_jax.config_from_data import apply_method, as_inputs_of, make_config
from tl_jax.data.recognize import recognize
from tl_jax.export.bundle import export
from tl_jax.export.model_card import CARD_FILE
from tl_jax.final_report import write_report
from tl_jax.metrics.intervals import run_intervals
from tl_jax.predictions import Predictions, Written
from tl_jax.pretrained.formats import BUNDLE_FILE, EXPORT_FOLDER
from tl_jax.report import plots
from tl_jax.report.results import EVALUATIONS
from tl_jax.restore import RUN_FOLDER, check_batches, make_task, open_bundle, restore, set_changeable
from tl_jax.train import lr_finder, workdir
from tl_jax.train.evaluate import evaluate as evaluate_split
from tl_jax.train.logging import say
from tl_jax.train.run_config import AUTO, RunConfig
from tl_jax.train.task import TASKS, Task, as_list
from tl_jax.train.workdir import read_json, read_summary, write_json
from tl_jax.utils.errors import UserError


class TrainedTask(NamedTuple):
    """A task without its examples, its trained variables, and their training step."""

    task: Task
    variables: Any
    step: int


class Metrics(Mapping[str, float]):
    """Metrics by name, with 95 % bootstrap intervals over test examples where available.

    Attributes:
        examples: number of test examples.
        intervals: metric -> (low, high).
    """

    def __init__(self, values: Mapping[str, Any], examples: int, intervals: Mapping[str, tuple[float, float]]):
        self._values = {name: math.nan if value is None else float(value) for name, value in values.items()}
        self.examples, self.intervals = examples, dict(intervals)

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (name, value, interval) of each metric as text."""
        ends = {name: "{:.4f} to {:.4f}".format(*pair) for name, pair in self.intervals.items()}
        return [(name, f"{value:.4f}", ends.get(name, "")) for name, value in self.items()]

    def __repr__(self) -> str:
        lines = [f"{name:20} {value:>8}  {ends}".rstrip() for name, value, ends in self.rows()]
        return "\n".join([*lines, f"{self.examples:,} examples"])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in self.rows())
        return f"<table><tr><th>metric</th><th>value</th><th>95 %</th></tr>{rows}</table>{self.examples:,} examples"


class Learner:
    """A run and its folder: trains, evaluates, predicts, explains and exports.

    Attributes:
        config: the frozen configuration of the run.
        workdir: folder of the run.
    """

    def __init__(self, config: recipe.Config | RunConfig, workdir: str | Path):
        """Validate the configuration and set the folder of the run; loads nothing."""
        self.workdir = Path(workdir).expanduser()
        self.config = choose_method.chosen(validate.validate(config), self.workdir)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.summary.get("metrics", {}).items() if value)
        state = f"test {metrics}" if metrics else "not finished"
        return f"Learner({self.config.name!r}: {self.config.model.name}, {self.workdir}; {state})"

    @property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json`` of a finished run; {} before."""
        return read_summary(self.workdir)

    def fit(self) -> "Learner":
        """Train, or resume an interrupted training, and test once at the end."""
        training.train(self.config, self.workdir)
        self.config = choose_method.chosen(self.config, self.workdir)
        self.__dict__.pop("_trained", None)
        return self

    @functools.cached_property
    def _trained(self) -> TrainedTask:
        """The trained task, loaded on first use."""
        if self.config.ensemble:
            return TrainedTask(*ensemble.load(self.config, self.workdir))
        task, _, state = restore(self.config, self.workdir, data=False)
        return TrainedTask(task, state.variables, int(state.step))

    def _open_for(self, mode: str) -> TrainedTask:
        """Return the trained task; refuse a mode that the task lacks, or an ensemble for any mode but ``predict``."""
        TASKS[self.config.task].check_mode(mode)
        if mode != "predict":
            self._check_single(mode)
        return self._trained

    def _check_single(self, what: str) -> None:
        """Raise a UserError for an ensemble, if a call needs a single network."""
        if self.config.ensemble:
            first, _ = ensemble.runs(self.config, self.workdir)[0]
            raise UserError(
                f"{self.workdir}: {what} takes one network, not an ensemble of {self.config.ensemble}; open the folder "
                f"of one member, such as {first}"
            )

    def evaluate(
        self, data: Any = None, classes: Mapping[str, str] | None = None, name: str = "", group: str = ""
    ) -> Metrics:
        """Return the metrics on the test split, or on all examples of another labelled data set.

        Another data set is evaluated at the threshold and temperature of the run. Its metrics are written to
        ``evaluations/NAME.json`` in the folder of the run, next to the run's own; nothing else there changes.

        Args:
            data: the other data set, as ``fine_tune`` takes it; None for the test split of the run.
            classes: class of the other data set -> class of the run, for classes with other names; may be partial.
            name: name of the file; by default that of the data.
            group: column of the other data set's index.csv that groups images, for example by patient; by default
                that of the run. Intervals then resample groups.
        """
        if data is not None:
            return self._evaluate_elsewhere(data, classes or {}, name, group)
        is_tested = self._is_tested()
        summary = self.summary if is_tested else self.test()
        details = read_json(self.workdir / "test_details.json") if is_tested else {}
        intervals = {name: (low, high) for name, (low, high, _) in run_intervals(summary, details).items()}
        return Metrics(summary["metrics"], summary["examples_evaluated"], intervals)

    def _is_tested(self) -> bool:
        """Return whether the summary describes the checkpoint of ``config.eval_checkpoint``."""
        stored_checkpoint = read_json(self.workdir / "config.json").get("eval_checkpoint")
        return bool(self.summary) and self.config.eval_checkpoint == stored_checkpoint

    def test(self) -> dict[str, Any]:
        """Test the checkpoint of ``config.eval_checkpoint`` again; return the summary that ``--mode=eval`` prints."""
        return training.test(self.config, self.workdir)

    def _evaluate_elsewhere(self, data: Any, classes: Mapping[str, str], name: str, group: str) -> Metrics:
        found = as_inputs_of(TASKS[self.config.task], recognize(data, as_one_split=True))
        config = schema.edit(self.config)
        config.data.name, config.data.dir, config.data.generate = found.name, found.folder, False
        if group:
            schema.set_field(config, "data.group", group)
        task, variables, step = self._trained
        other, folder = task.with_test(schema.freeze(config), classes), self.workdir / EVALUATIONS
        result = evaluate_split(other, variables, "test", final=True)
        name = name or Path(found.folder).stem or found.name
        (figures := folder / name).mkdir(parents=True, exist_ok=True)
        summary = {"data": name, "step": step, "examples_evaluated": result.examples, "metrics": result.metrics}
        details, scored_examples = {}, result.evaluation.predictions
        if scored_examples is not None:
            details = other.test_details(scored_examples) or {}
            summary |= other.report(scored_examples, None, figures)
            # The probabilities of an ensemble include its temperature.
            known = {k: v for k, v in self.summary.items() if k != "calibration" or not self.config.ensemble}
            summary |= other.report_elsewhere(scored_examples, known)
        intervals = {metric: (low, high) for metric, (low, high, _) in run_intervals(summary, details).items()}
        own = {key: self.summary[key] for key in ("metrics", "examples_evaluated") if key in self.summary}
        write_json(folder / f"{name}.json", {**summary, "intervals95": intervals, "run": own, "details": details})
        return Metrics(summary["metrics"], result.examples, intervals)

    def predict(self, inputs: Any, top: int | None = None, embeddings: bool = False) -> Predictions:
        """Return the predictions for the inputs.

        Args:
            inputs: one input or several. Images: files, folders (searched recursively), tables with a column ``file``,
                uint8 arrays (H, W, 3) or (N, H, W, 3), or Pillow images. Texts: a str, a pair, a list of words, or a
                file of texts (.txt, .csv, .tsv, .jsonl, .conll).
            top: keep only the ``top`` most likely classes in ``probabilities``, in decreasing order; None for all.
            embeddings: whether ``details`` includes the ``embedding`` (D,) of each input, its features before the head.
        """
        if embeddings:
            self._check_single("a call with embeddings")
        task, variables, _ = self._open_for("predict")
        rows = predictions.predict(task, variables, inputs, embeddings)
        return Predictions(predictions.as_prediction(row, top) for row in rows)

    def show_predictions(self, inputs: Any) -> list[dict[str, Any]]:
        """Log the predictions and write them to ``predictions.json``, as ``--mode=predict`` does.

        Detections are also drawn on their images.
        """
        task, variables, _ = self._open_for("predict")
        return predictions.show(task, variables, inputs, self.workdir)

    def write_predictions(
        self, inputs: Any, output: str | Path, top: int | None = None, embeddings: bool = False
    ) -> Written:
        """Write predictions to a table, .csv or .jsonl, in bounded memory.

        Args:
            inputs: as ``predict`` takes them; the row of an unreadable input has its ``error``.
            output: path of the table; see ``predictions.write``.
            top: keep only the ``top`` most likely classes; None for all.
            embeddings: whether to write the features (N, D) of all inputs to ``NAME.embeddings.npy`` next to the table.
        """
        if embeddings:
            self._check_single("a call with embeddings")
        inputs = as_list(inputs)
        predictions.check_output(output, inputs)  # before loading the network
        task, variables, _ = self._open_for("predict")
        return predictions.write(task, variables, inputs, output, top, embeddings)

    def explain(self, inputs: Any) -> Path:
        """Draw the regions of each image that decide its class (Grad-CAM); return the path of the figure."""
        task, variables, _ = self._open_for("explain")
        path, text = task.explain(variables, task.read_inputs(inputs), self.workdir)
        say(f"{text}\nfigure: {path}")
        return path

    def preview(self) -> list[Path]:
        """Draw what training reads as ``preview.png``; return the paths of the figures.

        Images of the first batches are shown next to their augmented versions, with boxes. Texts are shown as tokens,
        with labels, tags, padding and masks. A policy is shown as the first steps of an episode. A pretext task has its
        own figure, ``preview_pretext.png``.
        """
        _, task = self._first_run()
        with workdir.exclusive(self.workdir):
            paths = task.preview(self.workdir)
        for path in paths:
            say(f"figure: {path}")
        return paths

    def find_lr(self) -> lr_finder.Sweep:
        """Run a learning-rate range test on the first phase, stored as ``find_lr.json`` and ``find_lr.png``.

        Returns:
            The losses and ``suggested``, the learning rate to use. If the head has another rate than the backbone
            (``optim.backbone_lr_scale``), ``suggested`` is for the backbone, and ``head.suggested`` for the head.
        """
        config, task = self._first_run()
        if task.loss is None:
            raise UserError(f"find_lr needs a loss per batch, which task={task.kind} lacks; compare runs instead")
        plan = task.plan()
        if not plan:
            raise UserError("find_lr: config.epochs=0 trains nothing; set config.epochs above 0")
        phase = plan[0]
        say(f"{task.name}, phase {phase.name}: up to 100 steps with rising learning rates ...")
        sweep = lr_finder.sweep_groups(task, phase, config.seed)
        title = f"{task.name}, phase {phase.name}, {phase.optim.name}, batches of {config.batch_size}"
        with workdir.exclusive(self.workdir):
            head = sweep.head and _sweep_lists(sweep.head)
            write_json(self.workdir / "find_lr.json", {**_sweep_lists(sweep), **({"head": head} if head else {})})
            (self.workdir / "find_lr_head.png").unlink(missing_ok=True)  # from an earlier call
            if sweep.head:
                _draw_sweep(sweep.head, f"{title}, head only", self.workdir / "find_lr_head.png")
            _draw_sweep(sweep, title, self.workdir / "find_lr.png")
        scale = phase.rate.lr / config.optim.lr if config.optim.lr else 1.0  # lr_scale of the phase
        suggested = (sweep.head or sweep).suggested / (scale or 1.0)
        text = f"try config.optim.lr={suggested:.1e} (it was {config.optim.lr:g})"
        if sweep.head:
            share, before = min(1.0, sweep.suggested / sweep.head.suggested), phase.optim.backbone_lr_scale
            text += f" and, for the backbone, config.optim.backbone_lr_scale={share:.2g} (it was {before:g})"
        say(text)
        return sweep

    def _first_run(self) -> tuple[RunConfig, Task]:
        """Return the configuration of the first run of a comparison, or of the only one, and its task with data."""
        config = schema.freeze(recipe.comparison_runs(self.config)[0][2])
        check_batches(config)
        return config, make_task(config)

    def play(self) -> Path:
        """Run the policy for one episode; return the path of the animation."""
        task, variables, _ = self._open_for("play")
        path, text = task.play(variables, self.workdir)
        say(f"{text}; figure: {path}")
        return path

    def report(self) -> Path:
        """Rebuild the report from the files in the folder; return its path."""
        path, message = write_report(self.workdir)
        say(message)
        return path

    def export(self, dtype: str = "float32") -> Path:
        """Write a bundle that tl_jax and other frameworks can load; return its folder."""
        self._check_single("export")
        export(self.config, self.workdir, dtype=dtype)
        return self.workdir / EXPORT_FOLDER


def _sweep_lists(sweep: lr_finder.Sweep) -> dict[str, Any]:
    """Return a sweep as lists, for JSON."""
    return {name: np.asarray(value).tolist() for name, value in sweep._asdict().items() if name != "head"}


def _draw_sweep(sweep: lr_finder.Sweep, title: str, path: Path) -> None:
    """Plot a sweep and log the learning rates of its steepest and lowest loss."""
    marks = {"steepest fall": sweep.steepest, "lowest loss": sweep.lowest, "suggested": sweep.suggested}
    plots.plot_lr_curve(*sweep[:3], marks, title, path)
    say(f"steepest fall at {sweep.steepest:.1e}, lowest loss at {sweep.lowest:.1e}; figure: {path}")


class BundleLearner(Learner):
    """An export of ``Learner.export`` with the run's files for predictions; it cannot be trained further."""

    def __init__(self, folder: str | Path, options: Mapping[str, Any]):
        """Open a bundle; ``options`` are the fields that ``load_learner`` takes."""
        self.workdir = Path(folder).expanduser()
        self.config, task, variables, step = open_bundle(self.workdir, options)
        self._trained = TrainedTask(task, variables, step)

    def _is_tested(self) -> bool:
        return self.summary.get("tested_step") == self._trained.step

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the exported run."""
        return read_summary(self.workdir / RUN_FOLDER)

    def test(self) -> dict[str, Any]:
        raise UserError(f"{self.workdir}: the run did not test these weights; pass data to evaluate")

    def fit(self) -> "Learner":
        raise UserError(f"{self.workdir}: an export; call fine_tune(data, weights={str(self.workdir)!r}) to train it")

    def preview(self) -> list[Path]:
        raise UserError(f"{self.workdir}: an export without training data; open the folder of its run")

    def find_lr(self) -> lr_finder.Sweep:
        raise UserError(f"{self.workdir}: an export cannot be trained further; open the folder of its run")

    def report(self) -> Path:
        """Return the path of the bundle's model card."""
        return self.workdir / CARD_FILE

    def export(self, dtype: str = "float32") -> Path:
        raise UserError(f"{self.workdir}: an export already; copy the folder")


def open_learner(config: recipe.Config, workdir: str | Path) -> Learner:
    """Return the learner that a command uses: of ``config`` and a folder, or of a bundle, which has its own config."""
    folder = Path(workdir).expanduser()
    if not (folder / BUNDLE_FILE).is_file():
        return Learner(config, folder)
    own, asked = (schema.freeze(each).flat() for each in (stored.get_config(str(folder / RUN_FOLDER)), config))
    changes = {path: value for path, value in asked.items() if path not in own or value != own[path]}
    return BundleLearner(folder, changes)


def load_learner(folder: str | Path, **options: Any) -> Learner:
    """Load a run or an export from its folder; needs neither the data nor the source weights.

    Args:
        folder: folder of the run, or a bundle.
        **options: fields that may change without retraining, with a double underscore for the dot, such as
            ``faces__known="people"``, the folder of the people to identify.

    Raises:
        UserError: the folder holds no run, or a module that the run needs is not imported.
    """
    folder, fields = Path(folder).expanduser(), {name.replace("__", "."): value for name, value in options.items()}
    if (folder / BUNDLE_FILE).is_file():
        return BundleLearner(folder, fields)
    config = stored.get_config(str(folder))
    set_changeable(config, fields)
    return Learner(config, folder)


def fine_tune(
    data: Any,
    *,
    task: str = "",
    model: str = "",
    method: str = AUTO,
    weights: str | Path | None = None,
    image_size: int | None = None,
    epochs: float | None = None,
    budget: str = "",
    workdir: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """Fine-tune a pretrained network on ``data``, and return the trained learner.

    Args:
        data: a folder of images (FOLDER/CLASS/IMAGE, with index.csv, or with VOC or COCO boxes), a file of texts,
            arrays, a table with the columns file or text, and label, or a ``Dataset``; see ``data.recognize``.
        task: kind of task, if the data do not determine it: "faces" for a folder of people (FOLDER/PERSON/IMAGE),
            "policy" for the name of an environment, "masked" for texts without labels, or a registered task.
        model: name of the network, see ``models.names()``; by default MobileNetV2 for images, BERT for texts.
        method: transfer method, a name of ``transfer.methods.METHODS``; "auto" compares a linear probe with deeper
            fine-tuning by cross-validation, see ``choose_method``.
        weights: file, folder, bundle, hub repository of texts, name of a source such as "torchvision", or "random";
            None uses the shipped weights, or downloads the published ones.
        image_size: side of the network's input in pixels; None uses that of the weights.
        epochs: passes over the training split; None for 10, or for as many as give a small data set 200 steps.
        budget: time limit for the choice of method="auto", such as "10min"; empty for none.
        workdir: folder of the run; by default ``runs/NAME-HASH``, which is the same for the same call, so that a
            finished run is not repeated.
        seed: random seed of the head, the order of examples and the validation split.
        **options: further fields, with a double underscore for the dot: ``optim__lr=1e-3``.

    Raises:
        UserError: an error that the caller can fix, in one line.
    """
    config = make_config(data, task, model, weights)
    config.seed = seed
    if image_size is not None:
        schema.set_field(config, "input.size", image_size)
    training.export_sources(config)
    fields = {name.replace("__", "."): value for name, value in options.items()}
    for name in fields.keys() - schema.all_fields().keys():
        if near := difflib.get_close_matches(name, inspect.signature(fine_tune).parameters, n=1, cutoff=0.8):
            raise UserError(f"unknown argument {name!r}; did you mean {near[0]!r}?")
    if epochs is not None:
        fields = {"epochs": float(epochs), **fields}
    for path, value in fields.items():  # the method reads the data with them
        schema.set_field(config, path, value)
    apply_method(config, method, epochs, tuple(fields))
    config.budget = budget
    for path, value in fields.items():  # explicit options override the method
        schema.set_field(config, path, value)
    frozen = validate.validate(config)
    return Learner(frozen, workdir if workdir is not None else default_workdir(frozen)).fit()
