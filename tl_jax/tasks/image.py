"""Image classification: a pretrained (or random) network, a new head, pictures with one label each."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import pretrained
from tl_jax.data import batches, changes, sources, value_range
from tl_jax.data.augment import Augment
from tl_jax.data.decoding import Decoding
from tl_jax.data.fingerprint import relative_names
from tl_jax.data.pictures import Split
from tl_jax.errors import UserError
from tl_jax.network import Pretrained, variable_shapes, with_head
from tl_jax.task import Objective, Task
from tl_jax.tasks import details, judging, kept_head, picture_answers, starting
from tl_jax.tasks.caching import Frozen
from tl_jax.tasks.objectives import (
    Inputs,
    Network,
    make_features,
    make_loss,
    make_metrics,
    make_predict,
    make_pretext_loss,
)
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train.log import say
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.class_weights import class_weights
from tl_jax.transfer.penalties import Regularize
from tl_jax.transfer.pretext import Pretext


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    net, inputs = opened(config)
    source = record.source(lambda: load_source(config, inputs.size), *no_images(record))
    classes = starting.check_classes(config, source)
    net = kept_head.of_images(config, net, source.classes) if net else None
    functions = functools.partial(classifier, config.test_views)
    task, network, parts = build(config, net, inputs, source, classes, functions, record)
    asked = picture_answers.Asked(
        network,
        source.classes,
        config.test_views,
        (parts["train"].images.shape[1], parts["train"].images.shape[2]),
        Decoding(tuple(config.data.windows), source.value_range, config.data.max_pixels, outside=config.data.outside),
        config.data.fit,
        config.eval_batch_size,
        functools.partial(task.eval_batches, "validation") if config.calibrate and task.sizes["validation"] else None,
        record.fitted.get("temperature"),
    )
    files = parts["test"].files
    names = None if files is None else relative_names(files, config.data.dir)
    return task._replace(
        score=config.score,
        answer=functools.partial(picture_answers.answer, asked),
        explain=functools.partial(picture_answers.explain, asked),
        details=functools.partial(details.of_pictures, source.classes, parts["test"].images, names=names),
        **(judging.fields(judging.of(config, source.classes, parts)) if record.reads_data else {}),
    )


def no_images(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (0, H, W, 3), of the size that a run has stored them in, and labels int32 (0,)."""
    return np.zeros((0, *record.facts.get("input_shape", (0, 0)), 3), np.uint8), np.zeros(0, np.int32)


def opened(config: Any) -> tuple[Pretrained | None, Inputs]:
    """Return the network of ``config``, None where it is to be drawn, and what its inputs are."""
    drawn = config.init.source == "random"
    net = None if drawn else load_network(config)  # before the data are read: wrong weights should fail at once
    spec = net.spec if net else pretrained.spec_of(config.model.name, config.init.layout)
    inputs = Inputs(
        net.model.channels if net else config.model.channels,
        config.input.size or spec.image_size,
        config.input.crop,
        config.input.interpolation or spec.interpolation,
        spec.scaling if config.input.scaling == "spec" else config.input.scaling,
    )
    return net, inputs


def classifier(
    count: int, network: Network, how: Augment, penalties: Regularize, beside: Pretext | None
) -> dict[str, Any]:
    """Return the functions of a task of classes, tested on ``count`` views, by the names of ``Task``."""
    loss = make_loss(network, how, penalties, beside)
    return {"loss": loss, "metrics": make_metrics(network, count), "predict": make_predict(network, count)}


def build(
    config: Any,
    net: Pretrained | None,
    inputs: Inputs,
    source: sources.Source,
    outputs: int,
    functions: Callable[..., dict[str, Any]],
    record: RunRecord = NEW_RUN,
) -> tuple[Task, Network, dict[str, Split]]:
    """Put the task together, and return with it the network with its head and the parts of the data.

    Args:
        config: the configuration.
        net, inputs: see ``opened``.
        source: the data.
        outputs: of the network's head; 0 for none.
        functions: (network, augmentation, penalties, pretext) -> the task's ``loss``, ``metrics`` and so on.
        record: what is known of the run.
    """
    keep = "keep" if config.init.head == "keep" else "new"
    net = with_head(net, outputs, keep) if net else draw_network(config, outputs)
    for note in net.notes:
        say(note)
    check_norms(config, net)
    network = Network(net.model, inputs, Adapters(**config.adapt.to_dict()))
    parts = record.cut(config, source)
    weighted = config.regularize.class_weights if record.reads_data else ""  # predictions have no loss
    weights = class_weights(weighted, parts["train"].labels, source.classes)
    hows = regularize(config, net)._replace(weights=weights), pretext_of(config)
    beside = hows[1] if config.pretext.weight else None
    frozen = Frozen(config, network, parts, hows[0], functions)
    seen = config.seed, config.batch_size
    pretext = None
    if hows[1]:
        unlabelled = parts["unlabelled"]
        pretext = Objective(
            make_pretext_loss(network, hows[1]), batches.Stream(unlabelled.images, unlabelled.labels, *seen)
        )
    task = Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(start, config, net, frozen, *hows),
        **functions(network, Augment(**config.augment.to_dict()), hows[0], beside),
        features=make_features(network),
        train_batch=batches.Stream(parts["train"].images, parts["train"].labels, *seen),
        eval_batches=lambda part: batches.eval_batches(parts[part], config.eval_batch_size),
        sizes=record.sizes(parts),
        facts={**facts_of(net, inputs, source, parts), **record.describe(source, parts, config.data.dir)},
        parts=net.model.part_names(),
        pretext=pretext,
        shortcut=frozen.task,
    )
    return task, network, parts


def facts_of(net: Pretrained, inputs: Inputs, source: sources.Source, parts: Mapping[str, Split]) -> dict[str, Any]:
    """Return what a run must know of its weights and data to be evaluated, exported and reported."""
    return {
        "weights": str(net.path or "random"),
        "weights_sha256": net.sha256,
        "data": source.name,
        "tested": source.tested,
        "input": inputs._asdict(),
        **source.facts(),
        "new_head": net.new_head,
        "spec": net.spec.to_dict(),
        "input_shape": list(parts["train"].images.shape[1:3]),
    }


def check_norms(config: Any, net: Pretrained) -> None:
    """Refuse what acts on BatchNorm where the network has none."""
    recipes = {config.freeze.recipe, *(phase.get("recipe") for phase in config.phases)}
    modes = {config.freeze.batch_stats, *(phase.get("batch_stats", "auto") for phase in config.phases)}
    wanted = config.regularize.stochastic_norm or "norm_only" in recipes or modes != {"auto"}
    if wanted and "batch_stats" not in variable_shapes(net.model):
        raise UserError(
            f"{config.model.name} has no BatchNorm: config.freeze.recipe=norm_only, freeze.batch_stats and "
            "regularize.stochastic_norm would do nothing; choose another"
        )


def start(
    config: Any,
    net: Pretrained,
    frozen: Frozen,
    how: Regularize,
    pretext: Pretext | None,
    key: jax.Array,
) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded or fitted."""
    variables = starting.plain(net, key)
    network, parts, size = frozen.network, frozen.parts, config.eval_batch_size
    bare, train = network._replace(adapters=Adapters()), parts["train"]  # adapters change nothing yet
    fits = len(train.labels) > 0  # else the variables are only a layout for those of a checkpoint
    probed = fits and config.init.head in starting.PROBES
    if probed or (fits and how.delta):
        kind = config.init.head if probed else "logistic"
        probe = starting.Probe(kind, config.init.strength if probed else 1.0, parts, frozen.features)
        fitted = starting.with_probe(variables, probe)
        variables = fitted if probed else variables
    attention = starting.attention(bare, fitted, how.endpoints, train, size) if fits and how.delta else None
    width = starting.width(bare, variables, train) if pretext or how.co_tuning else 0
    source_head = load_source_head(config, width) if how.co_tuning else None
    relation = starting.relation(frozen.features, variables, source_head, train) if fits and how.co_tuning else None
    kept = starting.source(how, variables, attention=attention, relation=relation)
    variables = starting.adapted(variables, network.adapters, jax.random.fold_in(key, 1))
    variables = starting.with_extras(variables, width, pretext, source_head, jax.random.fold_in(key, 2))
    return {**variables, **({"source": kept} if kept else {})}


def regularize(config: Any, net: Pretrained) -> Regularize:
    """Return the penalties that ``config`` asks for; dropout and stochastic depth are attributes of the model."""
    values = {name: value for name, value in config.regularize.to_dict().items() if name in Regularize._fields}
    how = Regularize(**{**values, "endpoints": ()})
    if not how.compares_maps:
        return how
    return how._replace(endpoints=starting.check_endpoints(tuple(values["endpoints"]), net.model.part_names()))


def pretext_of(config: Any) -> Pretext | None:
    """Return what is learned without labels, None where nothing is."""
    return Pretext.of(config.pretext.to_dict()) if config.pretext.name else None


def load_source(config: Any, size: int) -> sources.Source:
    """Load the data set of ``config``, or draw the generator's pictures where ``data.generate`` says so."""
    drawn = config.data.generate and not config.data.dir
    name = "gratings" if drawn else config.data.name
    data = config.data
    windows = tuple(tuple(w) if isinstance(w, list) else w for w in data.windows)
    limits = value_range.parse(data.range)
    how = windows, data.group, data.label, data.fit, limits, data.max_pixels, data.outside
    return _read(changes.stamp(name, data.dir), name, data.dir, size, data.gigabytes * 1e9, *how)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _read(_: str, *how: Any) -> sources.Source:
    return sources.load(*how)


def load_network(config: Any) -> Pretrained:
    """Read the network of ``config`` with the head that the file has, where that is to be kept."""
    name, source, path = config.model.name, config.init.source, config.init.path or None
    how = {"head": "keep" if config.init.head == "keep" else "new", "rename": config.init.rename}
    return pretrained.load(name, source, path, seed=config.seed, **how, **model_options(config))


def load_source_head(config: Any, width: int) -> dict[str, Any]:
    """Return the kernel (D, Z) and bias (Z,) of the head that the weights came with; D is the ``width`` of features.

    Raises:
        UserError: they came without one, or it sits on something other than ``features``.
    """
    head = None
    if config.init.source != "random" and not config.model.endpoint:
        net = pretrained.load(
            config.model.name, config.init.source, config.init.path or None, rename=config.init.rename
        )
        head = net.variables["params"].get("head")
    if head is None or head["kernel"].shape[0] != width:
        raise UserError(
            "config.regularize.co_tuning needs weights with their own head on the network's features; "
            "take a file with the top, leave model.endpoint empty, or set it to 0"
        )
    return dict(head)


def draw_network(config: Any, classes: int) -> Pretrained:
    """Return the network of ``config`` with random weights."""
    return pretrained.random(config.model.name, classes, config.init.layout, **model_options(config))


def model_options(config: Any) -> dict[str, Any]:
    """Return the attributes of the model that ``config`` sets; linen needs tuples where JSON and flags give lists."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()}
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint}
    set_here = {name: config.regularize[name] for name in ("dropout", "drop_path") if config.regularize[name]}
    if config.adapt.kind == "bottleneck" and config.adapt.rank:
        set_here["adapter"] = config.adapt.rank
    return options | set_here | ({"channels": config.model.channels} if config.model.channels != 3 else {})
