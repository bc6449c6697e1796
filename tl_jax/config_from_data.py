"""From data to a configuration: kind of task, network, weights and method, where the caller does not name them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tl_jax import method_trials
from tl_jax.config import recipe, schema
from tl_jax.data.recognize import RecognizedData, recognize
from tl_jax.data.registry import DATASETS
from tl_jax.models.registry import MODELS
from tl_jax.pretrained.catalog import EMBEDDED, EMBEDDED_BERT, published_sources
from tl_jax.pretrained.source_of_file import source_of_file
from tl_jax.tasks import head_init
from tl_jax.tasks.probe_strength import FOLDS, PROBES, START_LOSS
from tl_jax.train.run_config import AUTO
from tl_jax.train.task import TASKS, Task
from tl_jax.transfer import freeze
from tl_jax.transfer.methods import METHODS, names_for_task
from tl_jax.transfer.optimizer import OptimConfig
from tl_jax.transfer.phases import PRETEXT
from tl_jax.utils.errors import UserError, nearest

DEFAULT_MODELS = {"texts": "bert", "images": "mobilenet_v2"}  # by what goes into the network
MIN_STEPS = 200  # a small set is gone through more often
SMALL_DATA, SMALL_BATCH = 2000, 32  # examples below which batches are small, and how small
# Of pretrained layers, which should stay near the source; of BERT Devlin et al. 2019, arXiv:1810.04805, A.3.
LEARNING_RATES = {"images": 1e-4, "texts": 5e-5}


def make_config(data: Any, task: str, model: str, weights: str | Path | None) -> recipe.Config:
    """Return the defaults for data that were recognized, with the network and its weights."""
    if task and task not in TASKS:
        raise UserError(f"task={task!r}: {nearest(task, TASKS)}")
    if task and not TASKS[task].data_inputs:
        return _make_policy_config(data, task, weights)
    recognized = recognize(data)
    task = task or _task_of(recognized)
    recognized = as_inputs_of(TASKS[task], recognized)
    config = recipe.get_config(task)
    config.name = Path(recognized.folder).stem or recognized.name
    config.data.name, config.data.dir = recognized.name, recognized.folder
    config.model.name = model or DEFAULT_MODELS[TASKS[task].input_kind]
    if config.model.name not in TASKS[task].networks():
        raise UserError(f"model={config.model.name!r}: {nearest(config.model.name, TASKS[task].networks())}")
    config.init.source, config.init.path = _find_weights(config.model.name, recognized.inputs == "texts", weights)
    if config.init.source == "random" and "layout" in config.init:
        config.init.layout = next((spec.source for spec in MODELS[config.model.name].weights), "tl_jax")
    return config


def _make_policy_config(environment: Any, task: str, weights: str | Path | None) -> recipe.Config:
    """Return the defaults for an environment; ``weights`` are the export of a policy."""
    config = recipe.get_config(task)
    recipe.policy(config)
    config.name, config.rl.env = str(environment), str(environment)
    if weights is not None and str(weights) != "random":
        config.init.source, config.init.path = "tl_jax", str(weights)
    return config


def _task_of(recognized: RecognizedData) -> str:
    """Return the kind of task that learns from such data: the first that takes them."""
    for kind, cls in TASKS.items():
        if cls.data_inputs == recognized.inputs and cls.needs_labels and cls.tags_words == recognized.tags:
            return kind
    raise UserError(f"no kind of task learns from {recognized.inputs}")


def as_inputs_of(task: type[Task], recognized: RecognizedData) -> RecognizedData:
    """Return data for a kind of task that has data sets of its own for such a layout, as people are in folders."""
    is_other = recognized.inputs != task.data_inputs and recognized.inputs == task.input_kind
    if is_other and recognized.name in DATASETS[task.data_inputs]:
        return recognized._replace(inputs=task.data_inputs)
    if recognized.inputs != task.data_inputs or (task.needs_labels and recognized.tags != task.tags_words):
        raise UserError(f"the data are {recognized.inputs}, and task={task.kind} learns from {task.about}")
    return recognized


def _find_weights(model: str, is_text: bool, weights: str | Path | None) -> tuple[str, str]:
    """Return ``init.source`` and ``init.path``."""
    if weights is None:
        if is_text:
            return "tl_jax", ""
        known = MODELS[model].weights
        published = [spec.source for spec in known if spec.url or spec.hub or spec.package]
        sources = published or [spec.source for spec in known]
        return ("tl_jax", "") if model in EMBEDDED or not sources else (sources[0], "")
    name = str(weights)
    if name == "random" or name in published_sources() or name == "tl_jax":
        return name, ""
    path = Path(name).expanduser()
    if is_text:
        return ("tl_jax" if path.resolve() == EMBEDDED_BERT.resolve() else "huggingface"), name
    if not path.exists():
        raise UserError(f"weights={name!r}: no such file, and no source; {nearest(name, published_sources())}")
    return source_of_file(model, path), str(path)


def apply_method(config: recipe.Config, method: str, epochs: float | None, given: Collection[str] = ()) -> None:
    """Put a way to transfer into a configuration, with what training in that way usually takes.

    Args:
        config: with its data.
        method: a name of ``transfer.methods.METHODS``; ``AUTO`` does what is usual where nothing can be compared.
        epochs: that the caller asks for.
        given: fields that the caller has set, whatever to; defaults that go with them are made of these.
    """
    task, names = TASKS[config.task], names_for_task(config.task)
    if method not in names:
        raise UserError(f"method={method!r} is unknown; {nearest(method, names)}")
    if not task.data_inputs:  # ``recipe.policy`` has set all defaults
        return METHODS[method](config) if method != AUTO else None
    examples = _set_length(config, epochs, given)
    if method != AUTO:
        _put_method(config, method, examples)
    elif task.can_choose_method and config.init.source != "random" and config.init.head == "new":
        METHODS[method if config.epochs else "logistic"](config)
        return _choose_by_folds(config, given)
    _set_rates(config, given)
    _choose_by_folds(config, given)
    if config.phases or not config.epochs:
        config.min_steps = 0
    _weaken_start(config, given)
    is_augmented = any(field.startswith("augment.") for field in given)
    if method != AUTO and (config.phases or config.epochs) and not is_augmented:
        for path, value in method_trials.augmentation(schema.freeze(config), False, examples):
            schema.set_field(config, path, value)


def _set_length(config: recipe.Config, epochs: float | None, given: Collection[str]) -> int:
    """Set schedule, batch size and the minimum number of steps; return the number of training examples."""
    config.optim.schedule, config.optim.warmup = "cosine", 0.1
    frozen = schema.freeze(config)
    examples = len(head_init.split_data(frozen, TASKS[config.task].load_data(frozen))["train"].labels)
    if "batch_size" not in given and examples < SMALL_DATA:
        config.batch_size = SMALL_BATCH
    TASKS[config.task].set_defaults(config)
    config.min_steps = MIN_STEPS if epochs is None else 0
    return examples


def _put_method(config: recipe.Config, method: str, examples: int) -> None:
    """Put a method into a configuration; phases, which know no minimum number of steps, get as many epochs."""
    epochs = config.epochs
    config.epochs = enough = max(epochs, config.min_steps * config.batch_size / max(1, examples))
    METHODS[method](config)
    if config.epochs == enough:
        config.epochs = epochs


def _choose_by_folds(config: recipe.Config, given: Collection[str]) -> None:
    """Let folds choose the strength of a probe, for which a tenth of a small set is too little."""
    if config.init.get("head") in PROBES and not config.init.strength and "init.folds" not in given:
        config.init.folds = FOLDS


def _weaken_start(config: recipe.Config, given: Collection[str]) -> None:
    """Let training start from a weaker head than the best probe, which leaves the layers below little to learn."""
    is_fitted = config.init.get("head") in PROBES and not config.init.strength
    trains = (config.phases or config.epochs) and config.freeze.recipe not in freeze.NEW_PARTS_TRAIN
    if is_fitted and trains and "init.start_loss" not in given:
        config.init.start_loss = START_LOSS


def _set_rates(config: recipe.Config, given: Collection[str]) -> None:
    """Set learning rates, and what BatchNorm does, by what trains from what."""
    task, head = TASKS[config.task], config.init.get("head", "new")
    if config.init.source == "random":
        return
    if "freeze.batch_stats" not in given and task.keeps_norms(schema.freeze(config)):
        config.freeze.batch_stats = "frozen"  # a small batch says less of the target than the source's statistics
    has_pretext = any(dict(phase).get("objective") == PRETEXT for phase in config.phases)
    if not task.has_features or has_pretext:
        return
    if config.freeze.recipe in freeze.NEW_PARTS_TRAIN:
        if head == "new" and task.can_choose_method and "init.head" not in given:
            config.init.head = "logistic"  # so few values do not make up for a head that is still random
        return
    is_labelled = task.needs_labels and (task.has_classes or task.tags_words)
    if head == "new" and is_labelled:
        if "optim.backbone_lr_scale" not in given:
            _set_rates_of_groups(config, given)
    elif not {"optim.lr", "optim.backbone_lr_scale"}.intersection(given) and config.optim.lr == OptimConfig().lr:
        for path, value in method_trials.rates(schema.freeze(config), LEARNING_RATES[task.input_kind]):
            schema.set_field(config, path, value)


def _set_rates_of_groups(config: recipe.Config, given: Collection[str]) -> None:
    """Set the rate of a new head, and that of the pretrained layers below it."""
    task = TASKS[config.task]
    if "optim.lr" not in given and config.optim.lr == OptimConfig().lr:
        config.optim.lr = method_trials.head_rate(schema.freeze(config), config.optim.lr)
    rate = LEARNING_RATES[task.input_kind]
    config.optim.backbone_lr_scale = min(1.0, rate / config.optim.lr) if config.optim.lr else 0.0
