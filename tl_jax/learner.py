"""Three lines from data to predictions: ``fine_tune`` gives a ``Learner``, and a folder of a run gives it back.

    learner = tl_jax.fine_tune("photos")            # FOLDER/CLASS/IMAGE
    learner.evaluate()
    learner.predict(["new.jpg"])
    learner = tl_jax.load_learner(learner.workdir)  # in another program

The command line has the same calls: ``--mode=eval`` is ``Learner.evaluate``.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax import api
from tl_jax.config import recipe, schema, stored, validate
from tl_jax.config.schema import default_workdir
from tl_jax.data.recognize import Found, recognize
from tl_jax.metrics.intervals import run_intervals
from tl_jax.models.registry import MODELS
from tl_jax.pretrained.catalog import EMBEDDED, EMBEDDED_BERT, known_sources, published_sources
from tl_jax.restore import restore
from tl_jax.train.evaluate import evaluate as evaluate_split
from tl_jax.train.lr_finder import Sweep
from tl_jax.train.run_config import RunConfig
from tl_jax.train.task import TASKS
from tl_jax.train.workdir import read_json, read_summary, write_json
from tl_jax.transfer.methods import METHODS, names_for_task
from tl_jax.utils.errors import UserError, nearest

AUTO = "auto"  # the method that chooses by the kind of task
DEFAULT_MODELS = {"texts": "bert", "boxes": "mobilenet_v2", "images": "mobilenet_v2"}
MIN_STEPS = 200  # of the default method: a small set is gone through more often
EVALUATIONS = 10  # of the default method, on the validation split while it trains
BERT_LEARNING_RATE = 5e-5  # where all of one trains under a random head (Devlin et al. 2019, arXiv:1810.04805, A.3)
LEARNING_RATE = 1e-4  # of the default method: the head is fitted before, and the rest should stay near the source


class Prediction(NamedTuple):
    """What a network says of one input.

    Attributes:
        input: file or text.
        label: the most likely class; "" where a kind of task has no class for each input, or the input is damaged.
        probability: of it.
        probabilities: of all K classes by name.
        details: all that is said: boxes, entities, an embedding's person, or the ``error`` of a damaged input.
    """

    input: str
    label: str
    probability: float
    probabilities: Mapping[str, float]
    details: Mapping[str, Any]


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
        self.config, self.workdir = validate.validate(config), Path(workdir).expanduser()

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
        api.run(self.config, self.workdir)
        self.__dict__.pop("_restored", None)
        return self

    @functools.cached_property
    def _restored(self) -> Any:
        """The task without its examples, the state before training, and the trained one; loaded once."""
        return restore(self.config, self.workdir, data=False)

    def evaluate(self, data: Any = None, classes: Mapping[str, str] | None = None, name: str = "") -> Metrics:
        """Return the metrics of the test split, or of all examples of another labelled set.

        Those of another set are written to ``evaluations/NAME.json`` in the folder of the run, beside its own; they are
        measured at the threshold and temperature of the run. Nothing else in the folder changes.

        Args:
            data: of the other set, as ``fine_tune`` takes them; None for the run's own test split.
            classes: class there -> class of the run, for those that are called otherwise; it need not have all.
            name: of the file; by default that of the data.
        """
        if data is not None:
            return self._evaluate_elsewhere(data, classes or {}, name)
        summary = self.summary or api.evaluate(self.config, self.workdir)
        details = read_json(self.workdir / "test_details.json") if self.summary else {}
        intervals = {name: (low, high) for name, (low, high, _) in run_intervals(summary, details).items()}
        return Metrics(summary["metrics"], summary["examples_evaluated"], intervals)

    def _evaluate_elsewhere(self, data: Any, classes: Mapping[str, str], name: str) -> Metrics:
        found, kind = recognize(data), TASKS[self.config.task]
        if found.inputs != kind.data_inputs or found.tags != kind.tags_words:
            raise UserError(f"the data are {found.inputs}, and the run has config.task={kind.kind}; pass {kind.about}")
        config = schema.edit(self.config)
        config.data.name, config.data.dir = found.name, found.folder
        task, _, state = self._restored
        other, folder = task.with_test(schema.freeze(config), classes), self.workdir / "evaluations"
        result = evaluate_split(other, state.variables, "test", final=True)
        predictions, name = result.evaluation.predictions, name or Path(found.folder).stem or found.name
        (figures := folder / name).mkdir(parents=True, exist_ok=True)
        details = other.test_details(predictions) if predictions is not None else {}
        summary = {"data": name, "step": int(state.step), "examples_evaluated": result.examples}
        summary |= {"metrics": {**result.values, **dict.fromkeys(result.evaluation.missing, math.nan)}}
        summary |= other.report(predictions, None, figures) if predictions is not None else {}
        summary |= other.report_elsewhere(predictions, self.summary) if predictions is not None else {}
        intervals = {metric: (low, high) for metric, (low, high, _) in run_intervals(summary, details or {}).items()}
        own = {key: self.summary[key] for key in ("metrics", "examples_evaluated") if key in self.summary}
        write_json(folder / f"{name}.json", {**summary, "intervals95": intervals, "run": own, "details": details})
        return Metrics(summary["metrics"], result.examples, intervals)

    def predict(self, inputs: str | Path | Sequence[Any], top: int | None = None) -> list[Prediction]:
        """Return what the network says of each input.

        Args:
            inputs: image files and folders of them, or texts; one, or several.
            top: how many classes ``probabilities`` keeps, the most likely ones first; None for all.
        """
        TASKS[self.config.task].check_mode("predict")
        task, _, state = self._restored
        rows, _ = task.predict(state.variables, _as_list(inputs))
        return [_prediction(row, top) for row in rows]

    def explain(self, inputs: str | Path | Sequence[Any]) -> Path:
        """Draw where in each image the network sees its class; return the picture."""
        return api.explain(self.config, self.workdir, _as_list(inputs))

    def preview(self) -> list[Path]:
        """Draw what training gets to see; return the pictures."""
        return api.preview(self.config, self.workdir)

    def find_lr(self) -> Sweep:
        """Try rising learning rates on the first phase; ``suggested`` is the one to take."""
        return api.find_lr(self.config, self.workdir)

    def play(self) -> Path:
        """Let a policy act for one episode; return the animation."""
        return api.play(self.config, self.workdir)

    def report(self) -> Path:
        """Write the page of the results again; return it."""
        return api.report(self.config, self.workdir)

    def export(self, dtype: str = "float32") -> Path:
        """Write a bundle that others can load, here or in other frameworks; return its folder."""
        return api.export(self.config, self.workdir, dtype=dtype).parent


def _as_list(inputs: str | Path | Sequence[Any]) -> list[Any]:
    """Return one input or several as a list, with paths as text."""
    given = [inputs] if isinstance(inputs, (str, Path)) else inputs
    return [str(each) if isinstance(each, Path) else each for each in given]


def _prediction(row: Mapping[str, Any], top: int | None) -> Prediction:
    probabilities = row.get("probabilities", {})
    order = sorted(probabilities, key=lambda name: -probabilities[name])
    label = order[0] if order else str(row.get("person") or "")
    return Prediction(
        str(row.get("input", "")),
        label,
        float(probabilities.get(label, math.nan)),
        {name: probabilities[name] for name in (order[:top] if top else order)},
        row,
    )


def load_learner(folder: str | Path) -> Learner:
    """Return the learner of a run, from its folder; neither its data nor its source weights are needed.

    Raises:
        UserError: no run, or a module that it needs is not imported.
    """
    return Learner(stored.get_config(str(folder)), folder)


def fine_tune(
    data: Any,
    *,
    model: str = "",
    method: str = AUTO,
    weights: str | Path | None = None,
    image_size: int | None = None,
    epochs: float | None = None,
    workdir: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """Take what a network has learned elsewhere to the examples of ``data``, and return the trained learner.

    Args:
        data: a folder of images (FOLDER/CLASS/IMAGE, with index.csv, or boxes of VOC or COCO), a file of texts, arrays,
            a table with the columns file or text, and label, or a ``Dataset``; see ``data.recognize``.
        model: name of the network, see ``models.names()``; by default MobileNetV2 for images, BERT for texts.
        method: how to transfer, a name of ``transfer.methods.METHODS``; "auto" fits a head to the features, then trains
            it and the last stages at a low rate with BatchNorm's statistics as they are.
        weights: file or folder, bundle, hub repository of texts, name of a source such as "torchvision", or "random";
            None takes those that ship, or downloads the published ones.
        image_size: side in pixels that the network gets; None takes that of the weights.
        epochs: passes over the training split; None takes 10, and at least ``MIN_STEPS`` steps.
        workdir: folder of the run; by default ``runs/NAME-HASH``, the same for the same call: a finished run is not
            repeated.
        seed: of the head, the order of examples and the split for validation.
        **options: further fields, with a double underscore for the dot: ``optim__lr=1e-3``.

    Raises:
        UserError: anything that the caller can mend, in one line.
    """
    found = recognize(data)
    config = _make_config(found, model, weights)
    config.seed = seed
    if image_size is not None:
        _set(config, "input.size", image_size)
    if epochs is not None:
        config.epochs = float(epochs)
    _apply_method(config, method, epochs)
    for name, value in options.items():
        _set(config, name.replace("__", "."), value)
    frozen = validate.validate(config)
    return Learner(frozen, workdir if workdir is not None else default_workdir(frozen)).fit()


def _make_config(found: Found, model: str, weights: str | Path | None) -> recipe.Config:
    """Return the defaults for data that were recognized, with the network and its weights."""
    kind = _task_of(found)
    config = recipe.get_config(kind)
    config.name = Path(found.folder).stem or found.name
    config.data.name, config.data.dir = found.name, found.folder
    config.model.name = model or DEFAULT_MODELS[found.inputs]
    if config.model.name not in TASKS[kind].networks():
        raise UserError(f"model={config.model.name!r}: {nearest(config.model.name, TASKS[kind].networks())}")
    config.init.source, config.init.path = _find_weights(config.model.name, found.inputs == "texts", weights)
    if config.init.source == "random" and "layout" in config.init:
        config.init.layout = next((spec.source for spec in MODELS[config.model.name].weights), "tl_jax")
    return config


def _task_of(found: Found) -> str:
    """Return the kind of task that learns from such data: the first that takes them."""
    for kind, cls in TASKS.items():
        if cls.data_inputs == found.inputs and cls.needs_labels and cls.tags_words == found.tags:
            return kind
    raise UserError(f"no kind of task learns from {found.inputs}")


def _find_weights(model: str, is_text: bool, weights: str | Path | None) -> tuple[str, str]:
    """Return ``init.source`` and ``init.path``."""
    if weights is None:
        if is_text:
            return "tl_jax", ""
        sources = [source for source in published_sources() if source in known_sources(model)]
        return ("tl_jax", "") if model in EMBEDDED or not sources else (sources[0], "")
    name = str(weights)
    if name == "random" or name in published_sources() or name == "tl_jax":
        return name, ""
    path = Path(name).expanduser()
    if is_text:
        return ("tl_jax" if path.resolve() == EMBEDDED_BERT.resolve() else "huggingface"), name
    if not path.exists():
        raise UserError(f"weights={name!r}: no such file, and no source; {nearest(name, published_sources())}")
    if path.is_dir() or path.suffix == ".safetensors":
        return "tl_jax", str(path)
    by_ending = {".h5": ("keras",), ".keras": ("keras",), ".npz": ("keras",)}
    sources = by_ending.get(path.suffix, tuple(s for s in known_sources(model) if s not in ("keras", "tl_jax")))
    return (sources or ("keras",))[0], str(path)


def _set(config: recipe.Config, path: str, value: Any) -> None:
    """Set a field of a configuration; a UserError says which there are."""
    schema.check_of_task(path, config.task)
    config.update_from_flattened_dict({path: value})


def _apply_method(config: recipe.Config, method: str, epochs: float | None) -> None:
    """Put a way to transfer into a configuration."""
    if method == AUTO:
        return _apply_default_method(config, epochs)
    names = names_for_task(config.task)
    if method not in names:
        raise UserError(f"method={method!r} is unknown; {nearest(method, (AUTO, *names))}")
    return METHODS[method](config)


def _apply_default_method(config: recipe.Config, epochs: float | None) -> None:
    """Fit a head to the features of the source, then train it and the last stages without haste.

    Kumar et al. 2022, arXiv:2202.10054: a head drawn at random would pull the features away before it has learned.
    """
    task = TASKS[config.task]
    fields, stages = task.fields(), len(task.stage_names(schema.freeze(config)))
    config.optim.schedule, config.optim.warmup = "cosine", 0.1
    if epochs is None:
        source = task.load_data(schema.freeze(config))
        examples = len(source.train.labels) * (1.0 if source.validation else 1.0 - config.data.validation)
        config.epochs = max(10.0, math.ceil(MIN_STEPS * config.batch_size / max(1, examples)))
    config.save_every = max(1.0, config.epochs / EVALUATIONS)
    if config.init.source == "random":
        return
    if "init.head" in fields and task.has_classes and task.has_features:
        config.init.head = "logistic"
        config.optim.lr = LEARNING_RATE
        config.freeze.recipe, config.freeze.stages = "last_n_stages", math.ceil(stages / 2)
    elif config.init.source == "huggingface":
        config.optim.lr = BERT_LEARNING_RATE
    if "freeze.batch_stats" in fields:
        config.freeze.batch_stats = "frozen"
