"""Three lines from data to predictions: ``fine_tune`` gives a ``Learner``, and a folder of a run gives it back::

    learner = tl_jax.fine_tune("photos")            # FOLDER/CLASS/IMAGE
    learner.evaluate()
    learner.predict(["new.jpg"])
    learner = tl_jax.load_learner(learner.workdir)  # in another program

The command line has the same calls: ``--mode=train`` is ``Learner.fit``, ``--mode=predict`` ``show_predictions``, or
``write_predictions`` with ``--output``, and ``--mode=eval`` ``test``, or ``evaluate`` with ``--data``.
"""

import functools
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
    """A task without its examples, its trained variables, and the step that they are of."""

    task: Task
    variables: Any
    step: int


class Metrics(Mapping[str, float]):
    """Values by name, with 95 % intervals by sampling of test examples where they are known.

    Attributes:
        examples: how many were tested.
        intervals: (low, high) by name.
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
        """Return (name, value, interval) in words."""
        ends = {name: "{:.4f} to {:.4f}".format(*pair) for name, pair in self.intervals.items()}
        return [(name, f"{value:.4f}", ends.get(name, "")) for name, value in self.items()]

    def __repr__(self) -> str:
        lines = [f"{name:20} {value:>8}  {ends}".rstrip() for name, value, ends in self.rows()]
        return "\n".join([*lines, f"{self.examples:,} examples"])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in self.rows())
        return f"<table><tr><th>metric</th><th>value</th><th>95 %</th></tr>{rows}</table>{self.examples:,} examples"


class Learner:
    """A run in a folder: what was learned, and what may be asked of it.

    Attributes:
        config: of the run, frozen.
        workdir: its folder.
    """

    def __init__(self, config: recipe.Config | RunConfig, workdir: str | Path):
        """Check a configuration, and name the folder of its run; nothing is loaded."""
        self.workdir = Path(workdir).expanduser()
        self.config = choose_method.chosen(validate.validate(config), self.workdir)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.summary.get("metrics", {}).items() if value)
        state = f"test {metrics}" if metrics else "not finished"
        return f"Learner({self.config.name!r}: {self.config.model.name}, {self.workdir}; {state})"

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says of the finished run; {} before."""
        return read_summary(self.workdir)

    def fit(self) -> "Learner":
        """Train, or go on where training was cut short, and test once at the end."""
        training.train(self.config, self.workdir)
        self.config = choose_method.chosen(self.config, self.workdir)
        self.__dict__.pop("_trained", None)
        return self

    @functools.cached_property
    def _trained(self) -> TrainedTask:
        """What answers questions about inputs; loaded once."""
        if self.config.ensemble:
            return TrainedTask(*ensemble.load(self.config, self.workdir))
        task, _, state = restore(self.config, self.workdir, data=False)
        return TrainedTask(task, state.variables, int(state.step))

    def _open_for(self, mode: str) -> TrainedTask:
        """Return what answers, for a call that not every kind of task has, and, but for ``predict``, no ensemble."""
        TASKS[self.config.task].check_mode(mode)
        if mode != "predict":
            self._check_single(mode)
        return self._trained

    def _check_single(self, what: str) -> None:
        """Refuse what needs a single network, where there is an ensemble."""
        if self.config.ensemble:
            first, _ = ensemble.runs(self.config, self.workdir)[0]
            raise UserError(
                f"{self.workdir}: {what} takes one network, not an ensemble of {self.config.ensemble}; open the folder "
                f"of one, such as {first}"
            )

    def evaluate(
        self, data: Any = None, classes: Mapping[str, str] | None = None, name: str = "", group: str = ""
    ) -> Metrics:
        """Return the metrics of the test split, or of all examples of another labelled set.

        Those of another set are written to ``evaluations/NAME.json`` in the folder of the run, beside its own; they are
        measured at the threshold and temperature of the run. Nothing else in the folder changes.

        Args:
            data: of the other set, as ``fine_tune`` takes them; None for the run's own test split.
            classes: class there -> class of the run, for those that are called otherwise; it need not have all.
            name: of the file; by default that of the data.
            group: column of the other set's index.csv that says which images belong together, to a patient say; by
                default that of the run. Intervals then count whole groups.
        """
        if data is not None:
            return self._evaluate_elsewhere(data, classes or {}, name, group)
        is_tested = self._is_tested()
        summary = self.summary if is_tested else self.test()
        details = read_json(self.workdir / "test_details.json") if is_tested else {}
        intervals = {name: (low, high) for name, (low, high, _) in run_intervals(summary, details).items()}
        return Metrics(summary["metrics"], summary["examples_evaluated"], intervals)

    def _is_tested(self) -> bool:
        """Whether the summary is about the checkpoint that the configuration names."""
        stored_checkpoint = read_json(self.workdir / "config.json").get("eval_checkpoint")
        return bool(self.summary) and self.config.eval_checkpoint == stored_checkpoint

    def test(self) -> dict[str, Any]:
        """Test the checkpoint that ``config.eval_checkpoint`` names anew; return what ``--mode=eval`` prints."""
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
            # The temperature of an ensemble is in its probabilities already.
            known = {k: v for k, v in self.summary.items() if k != "calibration" or not self.config.ensemble}
            summary |= other.report_elsewhere(scored_examples, known)
        intervals = {metric: (low, high) for metric, (low, high, _) in run_intervals(summary, details).items()}
        own = {key: self.summary[key] for key in ("metrics", "examples_evaluated") if key in self.summary}
        write_json(folder / f"{name}.json", {**summary, "intervals95": intervals, "run": own, "details": details})
        return Metrics(summary["metrics"], result.examples, intervals)

    def predict(self, inputs: Any, top: int | None = None, embeddings: bool = False) -> Predictions:
        """Return what the network says of each input.

        Args:
            inputs: one, or several. Images: files, folders with all below them, tables with a column ``file``, arrays
                uint8 (H, W, 3) or (N, H, W, 3), or what Pillow opened. Texts: a str, a pair, a list of words, or a
                file of them (.txt, .csv, .tsv, .jsonl, .conll).
            top: how many classes ``probabilities`` keeps, the most likely ones first; None for all.
            embeddings: whether ``details`` has the ``embedding`` (D,) of each input: its features before the head.
        """
        if embeddings:
            self._check_single("a call with embeddings")
        task, variables, _ = self._open_for("predict")
        rows = predictions.predict(task, variables, inputs, embeddings)
        return Predictions(predictions.as_prediction(row, top) for row in rows)

    def show_predictions(self, inputs: Any) -> list[dict[str, Any]]:
        """Tell what the network says of each input, through ``logging``; keep it as ``predictions.json``, with pictures
        of boxes. That is what ``--mode=predict`` does."""
        task, variables, _ = self._open_for("predict")
        return predictions.show(task, variables, inputs, self.workdir)

    def write_predictions(
        self, inputs: Any, output: str | Path, top: int | None = None, embeddings: bool = False
    ) -> Written:
        """Write what the network says of each input to a table, .csv or .jsonl, in bounded memory.

        Args:
            inputs: as ``predict`` takes them; a damaged one has its ``error`` in its row.
            output: the table; see ``predictions.write``.
            top: how many classes are kept, the most likely ones; None for all.
            embeddings: whether the features of all inputs (N, D) go to ``NAME.embeddings.npy`` beside it.
        """
        if embeddings:
            self._check_single("a call with embeddings")
        inputs = as_list(inputs)
        predictions.check_output(output, inputs)  # before the network is loaded
        task, variables, _ = self._open_for("predict")
        return predictions.write(task, variables, inputs, output, top, embeddings)

    def explain(self, inputs: Any) -> Path:
        """Draw where in each image the network sees its class; return the picture."""
        task, variables, _ = self._open_for("explain")
        path, text = task.explain(variables, task.read_inputs(inputs), self.workdir)
        say(f"{text}\npicture: {path}")
        return path

    def preview(self) -> list[Path]:
        """Draw what training gets to see as ``preview.png``; return the pictures.

        Images of the first steps' batches are drawn beside what augmentation makes of them, with their boxes. Texts
        are drawn in the pieces that the network reads, with labels, tags, padding and hidden words. Of a policy it is
        an episode as the run starts. A pretext has a picture of its own, ``preview_pretext.png``.
        """
        _, task = self._first_run()
        with workdir.exclusive(self.workdir):
            paths = task.preview(self.workdir)
        for path in paths:
            say(f"picture: {path}")
        return paths

    def find_lr(self) -> lr_finder.Sweep:
        """Try rising learning rates on the first phase, which ``find_lr.json`` and ``find_lr.png`` keep.

        Returns:
            The losses; ``suggested`` is the rate to take. If the head has another rate than the layers below it
            (``optim.backbone_lr_scale``), it is that of these layers, and ``head.suggested`` that of the head.
        """
        config, task = self._first_run()
        if task.loss is None:
            raise UserError(f"find_lr reads the loss of a batch; task={task.kind} has none, compare runs instead")
        plan = task.plan()
        if not plan:
            raise UserError("config.epochs=0 trains nothing; raise it to look for a learning rate")
        phase = plan[0]
        say(f"{task.name}, phase {phase.name}: up to 100 steps with rising learning rates ...")
        sweep = lr_finder.sweep_groups(task, phase, config.seed)
        title = f"{task.name}, phase {phase.name}, {phase.optim.name}, batches of {config.batch_size}"
        with workdir.exclusive(self.workdir):
            head = sweep.head and _sweep_lists(sweep.head)
            write_json(self.workdir / "find_lr.json", {**_sweep_lists(sweep), **({"head": head} if head else {})})
            (self.workdir / "find_lr_head.png").unlink(missing_ok=True)  # of an earlier call
            if sweep.head:
                _draw_sweep(sweep.head, f"{title}, head alone", self.workdir / "find_lr_head.png")
            _draw_sweep(sweep, title, self.workdir / "find_lr.png")
        scale = phase.rate.lr / config.optim.lr if config.optim.lr else 1.0  # the phase's own factor
        suggested = (sweep.head or sweep).suggested / (scale or 1.0)
        text = f"try config.optim.lr={suggested:.1e} (it was {config.optim.lr:g})"
        if sweep.head:
            share, before = min(1.0, sweep.suggested / sweep.head.suggested), phase.optim.backbone_lr_scale
            text += (
                f" and, for the layers below the head, config.optim.backbone_lr_scale={share:.2g} (it was {before:g})"
            )
        say(text)
        return sweep

    def _first_run(self) -> tuple[RunConfig, Task]:
        """Return the configuration of the first run, if there are several, and its task with the data."""
        config = schema.freeze(recipe.comparison_runs(self.config)[0][2])
        check_batches(config)
        return config, make_task(config)

    def play(self) -> Path:
        """Let a policy act for one episode; return the animation."""
        task, variables, _ = self._open_for("play")
        path, text = task.play(variables, self.workdir)
        say(f"{text}; picture: {path}")
        return path

    def report(self) -> Path:
        """Write the page of the results again, from the files in the folder; return it."""
        path, message = write_report(self.workdir)
        say(message)
        return path

    def export(self, dtype: str = "float32") -> Path:
        """Write a bundle that others can load, here or in other frameworks; return its folder."""
        self._check_single("export")
        export(self.config, self.workdir, dtype=dtype)
        return self.workdir / EXPORT_FOLDER


def _sweep_lists(sweep: lr_finder.Sweep) -> dict[str, Any]:
    """Return the fields of a sweep for JSON."""
    return {name: np.asarray(value).tolist() for name, value in sweep._asdict().items() if name != "head"}


def _draw_sweep(sweep: lr_finder.Sweep, title: str, path: Path) -> None:
    """Draw a sweep and tell where its loss falls."""
    marks = {"steepest fall": sweep.steepest, "lowest loss": sweep.lowest, "suggested": sweep.suggested}
    plots.plot_lr_curve(*sweep[:3], marks, title, path)
    say(f"steepest fall at {sweep.steepest:.1e}, lowest loss at {sweep.lowest:.1e}; picture: {path}")


class BundleLearner(Learner):
    """What ``Learner.export`` wrote, with the files of its run that say how to use it; it is not trained further."""

    def __init__(self, folder: str | Path, options: Mapping[str, Any]):
        """Open a bundle; ``options`` are further fields, as ``load_learner`` takes them."""
        self.workdir = Path(folder).expanduser()
        self.config, task, variables, step = open_bundle(self.workdir, options)
        self._trained = TrainedTask(task, variables, step)

    def _is_tested(self) -> bool:
        return self.summary.get("tested_step") == self._trained.step

    @property
    def summary(self) -> dict[str, Any]:
        """What was measured of the run."""
        return read_summary(self.workdir / RUN_FOLDER)

    def test(self) -> dict[str, Any]:
        raise UserError(f"{self.workdir}: these weights were not tested by their run; pass data to evaluate")

    def fit(self) -> "Learner":
        raise UserError(f"{self.workdir} is an export; fine_tune(data, weights={str(self.workdir)!r}) starts from it")

    def preview(self) -> list[Path]:
        raise UserError(f"{self.workdir} is an export, without the data of its run; open the folder of the run")

    def find_lr(self) -> lr_finder.Sweep:
        raise UserError(f"{self.workdir} is an export; it is not trained further")

    def report(self) -> Path:
        """Return the page about the bundle."""
        return self.workdir / CARD_FILE

    def export(self, dtype: str = "float32") -> Path:
        raise UserError(f"{self.workdir} is an export already; copy the folder")


def open_learner(config: recipe.Config, workdir: str | Path) -> Learner:
    """Return the learner of a configuration and a folder, which commands ask; a bundle has its own configuration."""
    folder = Path(workdir).expanduser()
    if not (folder / BUNDLE_FILE).is_file():
        return Learner(config, folder)
    own, asked = (schema.freeze(each).flat() for each in (stored.get_config(str(folder / RUN_FOLDER)), config))
    changes = {path: value for path, value in asked.items() if path not in own or value != own[path]}
    return BundleLearner(folder, changes)


def load_learner(folder: str | Path, **options: Any) -> Learner:
    """Return the learner of a run or of an export, from its folder; neither data nor source weights are needed.

    Args:
        folder: of the run, or a bundle.
        **options: fields that may change without training anew, with a double underscore for the dot, such as
            ``faces__known="people"``: the folder of those whom predictions know.

    Raises:
        UserError: no run, or a module that it needs is not imported.
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
    """Take what a network has learned elsewhere to the examples of ``data``, and return the trained learner.

    Args:
        data: a folder of images (FOLDER/CLASS/IMAGE, with index.csv, or boxes of VOC or COCO), a file of texts, arrays,
            a table with the columns file or text, and label, or a ``Dataset``; see ``data.recognize``.
        task: kind of task, if the data do not say it: "faces" for a folder of people (FOLDER/PERSON/IMAGE), "policy"
            for the name of an environment, "masked" for texts without labels, or one of your own.
        model: name of the network, see ``models.names()``; by default MobileNetV2 for images, BERT for texts.
        method: how to transfer, a name of ``transfer.methods.METHODS``; "auto" compares a linear probe with what
            trains more of the network, by cross-validation, see ``choose_method``.
        weights: file or folder, bundle, hub repository of texts, name of a source such as "torchvision", or "random";
            None takes those that ship, or downloads the published ones.
        image_size: side in pixels that the network gets; None takes that of the weights.
        epochs: passes over the training split; None takes 10, and more of a small set, so that it is 200 steps.
        budget: time that "auto" may take to choose, such as "10min"; empty for no limit.
        workdir: folder of the run; by default ``runs/NAME-HASH``, the same for the same call: a finished run is not
            repeated.
        seed: of the head, the order of examples and the split for validation.
        **options: further fields, with a double underscore for the dot: ``optim__lr=1e-3``.

    Raises:
        UserError: anything that the caller can mend, in one line.
    """
    config = make_config(data, task, model, weights)
    config.seed = seed
    if image_size is not None:
        schema.set_field(config, "input.size", image_size)
    training.export_sources(config)
    fields = {name.replace("__", "."): value for name, value in options.items()}
    if epochs is not None:
        fields = {"epochs": float(epochs), **fields}
    for path, value in fields.items():  # which the method needs to read the data
        schema.set_field(config, path, value)
    apply_method(config, method, epochs, tuple(fields))
    config.budget = budget
    for path, value in fields.items():  # what is asked for counts more than what the method sets
        schema.set_field(config, path, value)
    frozen = validate.validate(config)
    return Learner(frozen, workdir if workdir is not None else default_workdir(frozen)).fit()
